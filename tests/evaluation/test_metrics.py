"""The numbers people read."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from racnn.evaluation import metrics

NAN = math.nan


def _random(n: int = 200, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


class TestTopK:
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_equals_torch_topk_where_there_are_no_ties(self, k: int) -> None:
        logits, labels = _random()
        expected = (logits.topk(k).indices == labels[:, None]).any(1).double().mean().item()
        assert metrics.topk_accuracy(logits, labels, k) == pytest.approx(expected, abs=1e-12)

    def test_k_above_the_number_of_classes_is_all_of_them(self) -> None:
        logits, labels = _random(classes=3)
        assert metrics.topk_accuracy(logits, labels, 5) == 1.0

    def test_a_constant_answer_is_right_for_the_first_class_only(self) -> None:
        assert metrics.topk_accuracy(torch.zeros(8, 4), torch.arange(8) % 4, 1) == 0.25
        assert metrics.topk_accuracy(torch.zeros(8, 4), torch.arange(8) % 4, 2) == 0.5

    def test_bfloat16_is_read_exactly(self) -> None:
        logits, labels = _random()
        half = logits.bfloat16()
        assert metrics.topk_accuracy(half, labels, 1) == metrics.topk_accuracy(half.double(), labels, 1)

    @pytest.mark.parametrize(
        ("scores", "labels", "k"),
        [
            (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 1),
            (torch.zeros(2, 3), torch.tensor([0]), 1),
            (torch.zeros(2, 3), torch.tensor([0, 3]), 1),
            (torch.zeros(2, 3), torch.tensor([-1, 0]), 1),
            (torch.zeros(2, 3), torch.tensor([0, 1]), 0),
        ],
    )
    def test_what_does_not_fit_is_refused(self, scores: Tensor, labels: Tensor, k: int) -> None:
        with pytest.raises(ValueError, match=r"expected|must be"):
            metrics.topk_accuracy(scores, labels, k)


class TestWilson:
    def test_textbook_values(self) -> None:
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3: the score interval without correction
        assert metrics.wilson_interval(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
        assert metrics.wilson_interval(15, 148) == pytest.approx([0.0624, 0.1605], abs=5e-5)
        assert metrics.wilson_interval(0, 20) == pytest.approx([0.0, 0.1611], abs=5e-5)
        assert metrics.wilson_interval(1, 29) == pytest.approx([0.0061, 0.1718], abs=5e-5)

    @pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (3, 7), (50, 100), (5793, 5794)])
    def test_ends_solve_the_score_equation_and_hold_the_share(self, correct: int, n: int) -> None:
        low, high = metrics.wilson_interval(correct, n)
        share = correct / n
        assert 0.0 <= low <= share <= high <= 1.0
        for end in (low, high):  # (share - p)^2 = z^2 p (1 - p) / n
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, rel=1e-5, abs=1e-12)

    def test_nothing_seen_is_nothing_known(self) -> None:
        assert metrics.wilson_interval(0, 0) == [0.0, 1.0]

    @pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5)])
    def test_impossible_counts_are_refused(self, correct: int, n: int) -> None:
        with pytest.raises(ValueError, match="correct"):
            metrics.wilson_interval(correct, n)


class TestCalibration:
    def test_sure_and_wrong_is_one_sure_and_right_is_zero(self) -> None:
        probs = torch.eye(4)
        assert metrics.expected_calibration_error(probs, torch.arange(4)) == 0.0
        assert metrics.expected_calibration_error(probs, (torch.arange(4) + 1) % 4) == 1.0

    @pytest.mark.parametrize("bins", [1, 15])
    def test_equals_a_plain_loop_over_bins(self, bins: int) -> None:
        logits, labels = _random()
        probs = (2.0 * logits.double()).softmax(1)
        expected = 0.0
        confidence, answer = probs.max(1)
        for b in range(bins):
            inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
            if inside.any():
                hits = (answer == labels)[inside].double().mean()
                expected += float(inside.double().mean() * (hits - confidence[inside].mean()).abs())
        assert metrics.expected_calibration_error(probs, labels, bins) == pytest.approx(expected, abs=1e-12)


class TestFocusPoints:
    def test_is_the_mean_of_the_visible_focus_parts(self) -> None:
        parts = torch.tensor([[[0.2, 0.4, 1.0], [NAN, NAN, 0.0], [0.4, 0.8, 1.0], [9.0, 9.0, 1.0]]])
        torch.testing.assert_close(
            metrics.focus_points(parts, [0, 1, 2]), torch.tensor([[0.3, 0.6]]).double()
        )

    def test_none_visible_is_unknown(self) -> None:
        parts = torch.tensor([[[0.2, 0.4, 0.0], [0.1, 0.1, 1.0]], [[NAN, NAN, 1.0], [0.1, 0.1, 1.0]]])
        assert metrics.focus_points(parts, [0]).isnan().all()

    @pytest.mark.parametrize("num_parts", [0, 3])
    def test_no_focus_parts_is_unknown(self, num_parts: int) -> None:
        points = metrics.focus_points(torch.ones(4, num_parts, 3), [])
        assert points.shape == (4, 2)
        assert points.isnan().all()


def _measure(region: list[float], box: list[float], **more: Tensor) -> dict[str, float | None]:
    report = metrics.localisation(torch.tensor([region]).double(), torch.tensor([box]).double(), **more)
    assert report is not None
    return report


class TestLocalisation:
    def test_of_the_region_itself_is_perfect(self) -> None:
        report = _measure([0.2, -0.1, 0.5], [-0.3, -0.6, 0.7, 0.4])
        assert report == {
            "iou": pytest.approx(1.0),
            "iou_50": 1.0,
            "coverage": pytest.approx(1.0),
            "pointing": 1.0,
            # of [-0.5, 0.5]^2: they share 0.8 x 0.9 of 1.0 each
            "iou_centred": pytest.approx(0.72 / 1.28),
            "coverage_centred": pytest.approx(0.72),
        }

    def test_of_something_disjoint_is_zero(self) -> None:
        report = _measure([-0.5, -0.5, 0.3], [0.4, 0.4, 0.9, 0.8])
        assert report == dict.fromkeys(metrics.OVERLAPS, 0.0)

    def test_known_overlap_on_a_wide_box(self) -> None:
        # region [-0.5, 0.5]^2, area 1; box 1.2 x 0.4, area 0.48; they share 0.7 x 0.4 = 0.28
        report = _measure([0.0, 0.0, 0.5], [-0.2, -0.1, 1.0, 0.3])
        assert report["iou"] == pytest.approx(0.28 / 1.2)
        assert report["coverage"] == pytest.approx(0.28 / 0.48)
        assert report["pointing"] == 1.0
        assert report["iou_50"] == 0.0

    def test_swapped_axes_give_other_numbers(self) -> None:
        # region x [0, 0.8], y [-0.7, 0.1]; box 0.5 x 0.8 shares 0.5 x 0.1; with its axes swapped, 0.8 x 0.5
        straight = _measure([0.4, -0.3, 0.4], [0.2, 0.0, 0.7, 0.8])
        swapped = _measure([0.4, -0.3, 0.4], [0.0, 0.2, 0.8, 0.7])
        assert straight["iou"] == pytest.approx(0.05 / (0.64 + 0.4 - 0.05))
        assert swapped["iou"] == 0.0
        assert swapped["pointing"] == 0.0

    def test_pointing_needs_the_centre_in_the_box(self) -> None:
        assert _measure([0.5, 0.0, 0.5], [0.0, -0.1, 0.49, 0.1])["pointing"] == 0.0
        assert _measure([0.5, 0.0, 0.5], [0.0, -0.1, 0.51, 0.1])["pointing"] == 1.0

    def test_unknown_boxes_are_left_out(self) -> None:
        region = torch.tensor([[0.0, 0.0, 0.5], [0.3, 0.1, 0.2], [0.1, 0.0, 0.4]])
        boxes = torch.tensor(
            [[-0.5, -0.5, 0.5, 0.5], [NAN] * 4, [0.2, 0.2, 0.2, 0.8]]
        )  # the last has no area
        assert metrics.localisation(region, boxes) == metrics.localisation(region[:1], boxes[:1])

    def test_nothing_known_is_none(self) -> None:
        region = torch.tensor([[0.0, 0.0, 0.5]]).expand(3, 3)
        unknown = torch.full((3, 4), NAN)
        assert metrics.localisation(region, unknown) is None
        assert metrics.localisation(region, unknown, torch.full((3, 2), NAN)) is None

    def test_parts_without_boxes_are_measured(self) -> None:
        report = metrics.localisation(
            torch.tensor([[0.0, 0.0, 0.5]]), torch.full((1, 4), NAN), torch.zeros(1, 2)
        )
        assert report is not None
        assert report["iou"] is None
        assert report["part_hit"] == 1.0

    def test_part_hit_counts_the_photos_with_a_known_part(self) -> None:
        region = torch.tensor([[0.5, 0.0, 0.2]]).expand(4, 3)
        points = torch.tensor([[0.6, 0.1], [0.0, 0.6], [0.1, 0.6], [NAN, NAN]])
        report = metrics.localisation(region, torch.full((4, 4), NAN), points)
        assert report is not None
        assert report["part_hit"] == pytest.approx(1 / 3)
        assert report["part_hit_centred"] == 0.0

    def test_centred_region_is_in_the_middle_of_its_parent(self) -> None:
        region, parents = torch.tensor([[0.6, 0.6, 0.1]]), torch.tensor([[0.3, -0.4, 0.5]])
        points, box = torch.tensor([[0.35, -0.45]]), torch.tensor([[0.2, -0.5, 0.4, -0.3]])
        report = metrics.localisation(region, box, points, parents)
        assert report is not None
        assert (report["part_hit"], report["part_hit_centred"]) == (0.0, 1.0)
        assert (report["iou"], report["iou_centred"]) == (0.0, pytest.approx(1.0))


class TestRegionStatistics:
    def test_mean_and_spread_of_each_axis(self) -> None:
        region = torch.tensor([[-0.2, 0.1, 0.4], [0.4, 0.1, 0.6]]).double()
        report = metrics.region_statistics(region, (0.2, 0.95))
        expected = {"tx": (0.1, 0.3), "ty": (0.1, 0.0), "tl": (0.5, 0.1)}
        for name, (mean, std) in expected.items():
            assert report[f"{name}_mean"] == pytest.approx(mean)
            assert report[f"{name}_std"] == pytest.approx(std)

    def test_at_bound_is_two_percent_of_the_range(self) -> None:
        tl = torch.tensor([0.2, 0.211, 0.213, 0.5, 0.787, 0.789, 0.8])  # the range is 0.6, the margin 0.012
        region = torch.stack([torch.zeros(7), torch.zeros(7), tl], dim=1)
        assert metrics.region_statistics(region, (0.2, 0.8))["at_bound"] == pytest.approx(4 / 7)

    def test_one_photo_has_no_spread(self) -> None:
        report = metrics.region_statistics(torch.tensor([[0.1, 0.2, 0.3]]), (0.2, 0.8))
        assert report["tx_std"] == report["tl_std"] == 0.0
