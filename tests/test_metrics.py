"""The numbers people read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from racnn import metrics

NAN = math.nan


def _one_hot(labels: Tensor, classes: int, value: float = 30.0) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).float() * value


def _random(n: int = 200, classes: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)


def _report(**changed: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    n, classes = 40, 6
    labels = torch.arange(n) % classes
    half = torch.rand(n, 1, generator=generator) * 0.3 + 0.3
    region = torch.cat([torch.rand(n, 2, generator=generator) * 0.4 - 0.2, half], dim=1)
    given: dict[str, Any] = {
        "dataset": "birds",
        "split": "test",
        "class_names": [f"bird {c}" for c in range(classes)],
        "logits": {f"scale_{s}": torch.randn(n, classes, generator=generator) for s in (1, 2, 3)},
        "fused": torch.randn(n, classes, generator=generator),
        "labels": labels,
        "regions": [region, region],
        "composed": [region, region],
        "bounds": [(0.2, 0.95), (0.3, 0.8)],
        "boxes": torch.tensor([[-0.5, -0.25, 0.5, 0.25]]).expand(n, 4),
        "parts": torch.tensor([[[0.1, 0.2, 1.0], [0.3, 0.4, 0.0]]]).expand(n, 2, 3),
        "focus_parts": [0, 1],
    }
    return metrics.evaluation_report(**{**given, **changed})


class TestTopK:
    def test_perfect_prediction_is_one(self) -> None:
        labels = torch.arange(10) % 5
        assert metrics.topk_accuracy(_one_hot(labels, 5), labels, 1) == 1.0

    def test_always_wrong_is_zero(self) -> None:
        labels = torch.arange(10) % 5
        assert metrics.topk_accuracy(_one_hot((labels + 1) % 5, 5), labels, 1) == 0.0

    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_equals_torch_topk_where_there_are_no_ties(self, k: int) -> None:
        logits, labels = _random()
        expected = (logits.topk(k).indices == labels[:, None]).any(1).double().mean().item()
        assert metrics.topk_accuracy(logits, labels, k) == pytest.approx(expected, abs=1e-12)

    def test_k_above_the_number_of_classes_is_all_of_them(self) -> None:
        logits, labels = _random(classes=3)
        assert metrics.topk_accuracy(logits, labels, 5) == 1.0

    def test_does_not_fall_with_k(self) -> None:
        logits, labels = _random()
        values = [metrics.topk_accuracy(logits, labels, k) for k in range(1, 8)]
        assert values == sorted(values)

    def test_order_of_photos_does_not_matter(self) -> None:
        logits, labels = _random()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))
        assert metrics.topk_accuracy(logits, labels, 2) == metrics.topk_accuracy(
            logits[order], labels[order], 2
        )

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

    def test_swapping_right_and_wrong_mirrors_it(self) -> None:
        low, high = metrics.wilson_interval(13, 50)
        assert metrics.wilson_interval(37, 50) == pytest.approx([1 - high, 1 - low])

    def test_nothing_seen_is_nothing_known(self) -> None:
        assert metrics.wilson_interval(0, 0) == [0.0, 1.0]

    @pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5)])
    def test_impossible_counts_are_refused(self, correct: int, n: int) -> None:
        with pytest.raises(ValueError, match="correct"):
            metrics.wilson_interval(correct, n)


class TestCalibration:
    def test_constant_confidence_that_is_true_has_no_error(self) -> None:
        probs = torch.tensor([[0.75, 0.25]]).expand(100, 2)
        labels = (torch.arange(100) >= 75).long()
        assert metrics.expected_calibration_error(probs, labels) == pytest.approx(0.0, abs=1e-12)

    def test_constant_confidence_errs_by_its_distance_from_the_accuracy(self) -> None:
        probs = torch.tensor([[0.9, 0.1]], dtype=torch.float64).expand(100, 2)
        labels = (torch.arange(100) >= 60).long()
        assert metrics.expected_calibration_error(probs, labels) == pytest.approx(0.3)

    def test_sure_and_wrong_is_one_sure_and_right_is_zero(self) -> None:
        probs = torch.eye(4)
        assert metrics.expected_calibration_error(probs, torch.arange(4)) == 0.0
        assert metrics.expected_calibration_error(probs, (torch.arange(4) + 1) % 4) == 1.0

    def test_equals_a_plain_loop_over_bins(self) -> None:
        logits, labels = _random()
        probs = (2.0 * logits.double()).softmax(1)
        expected = 0.0
        confidence, answer = probs.max(1)
        for b in range(15):
            inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
            if inside.any():
                hits = (answer == labels)[inside].double().mean()
                expected += float(inside.double().mean() * (hits - confidence[inside].mean()).abs())
        assert metrics.expected_calibration_error(probs, labels) == pytest.approx(expected, abs=1e-12)

    def test_one_bin_is_the_gap_of_the_means(self) -> None:
        logits, labels = _random()
        probs = logits.double().softmax(1)
        gap = abs(metrics.topk_accuracy(probs, labels, 1) - probs.amax(1).mean().item())
        assert metrics.expected_calibration_error(probs, labels, bins=1) == pytest.approx(gap)


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

    def test_disjoint_along_both_axes_does_not_overlap(self) -> None:
        # two negative sides would multiply to a positive area
        assert _measure([-0.7, -0.7, 0.2], [0.6, 0.6, 0.9, 0.8])["iou"] == 0.0

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

    def test_overlap_in_the_frame_is_the_overlap_in_the_pixels_of_the_photo(self) -> None:
        region, box, size = [0.1, -0.2, 0.6], [-0.4, -0.9, 0.8, 0.3], (300, 200)  # w, h
        to_pixels = [(c + 1) / 2 * size[i % 2] for i, c in enumerate([-0.5, -0.8, 0.7, 0.4])]
        other = [(c + 1) / 2 * size[i % 2] for i, c in enumerate(box)]
        sides = [max(0.0, min(to_pixels[i + 2], other[i + 2]) - max(to_pixels[i], other[i])) for i in (0, 1)]
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (to_pixels, other)]
        inter = sides[0] * sides[1]
        assert _measure(region, box)["iou"] == pytest.approx(inter / (sum(areas) - inter))

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

    def test_order_of_photos_does_not_matter(self) -> None:
        generator = torch.Generator().manual_seed(5)
        region = torch.rand(30, 3, generator=generator).double()
        boxes = torch.rand(30, 4, generator=generator).double().sort(dim=1).values
        order = torch.randperm(30, generator=generator)
        assert metrics.localisation(region, boxes) == pytest.approx(
            metrics.localisation(region[order], boxes[order])
        )


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


class TestReport:
    def test_has_the_promised_keys(self) -> None:
        report = _report()
        assert list(report) == [
            "dataset", "split", "num_images", "num_classes", "top1", "top1_interval", "top5", "ece", "log_prob",
            "per_class", "localisation", "regions",
        ]  # fmt: skip
        single = ["scale_1", "scale_2", "scale_3", "mean", "fused"]
        assert list(report["top1"]) == ["scale_1", "scale_2", "scale_3", "scale_1+2", "mean", "fused"]
        assert list(report["top1_interval"]) == list(report["top1"])
        assert all(list(report[key]) == single for key in ("top5", "ece", "log_prob"))
        assert list(report["per_class"][0]) == ["name", "n", "correct"]
        assert list(report["per_class"][0]["correct"]) == single
        assert list(report["localisation"]["region_2"]) == [
            "iou", "iou_50", "coverage", "pointing", "iou_centred", "coverage_centred", "part_hit", "part_hit_centred",
        ]  # fmt: skip
        assert list(report["regions"]["region_2"]) == [
            "tx_mean", "tx_std", "ty_mean", "ty_std", "tl_mean", "tl_std", "at_bound",
        ]  # fmt: skip

    def test_of_an_older_run_is_shown(self) -> None:
        report = _report()
        for measures in report["localisation"].values():
            del measures["iou_centred"], measures["coverage_centred"]
        assert "region_2" in metrics.format_report(report)

    def test_survives_strict_json(self) -> None:
        report = _report()
        assert json.loads(json.dumps(report, allow_nan=False)) == report

    def test_per_class_adds_up_to_top1(self) -> None:
        report = _report()
        assert sum(row["n"] for row in report["per_class"]) == report["num_images"]
        for key in ("scale_1", "scale_3", "mean", "fused"):
            total = sum(row["correct"][key] for row in report["per_class"])
            assert total / report["num_images"] == report["top1"][key]

    def test_mean_is_of_probabilities_not_of_logits(self) -> None:
        # probabilities of class 0: 0.98 and 0.6, then 0.01 and 0.01; the mean of three favours class 0, of logits 1
        probs = [torch.tensor([[0.98, 0.02]]), torch.tensor([[0.60, 0.40]]), torch.tensor([[1e-4, 1 - 1e-4]])]
        logits = {f"scale_{s}": p.log() for s, p in enumerate(probs, start=1)}
        report = _report(
            logits=logits, fused=None, labels=torch.tensor([0]), class_names=["a", "b"], regions=[], composed=[],
            bounds=[], boxes=torch.full((1, 4), NAN), parts=torch.zeros(1, 0, 3), focus_parts=[],
        )  # fmt: skip
        assert report["top1"]["mean"] == 1.0
        assert torch.stack([p.log() for p in probs]).sum(0)[0].argmax() == 1
        assert report["log_prob"]["mean"] == pytest.approx(math.log((0.98 + 0.6 + 1e-4) / 3), rel=1e-5)
        assert report["top5"]["scale_3"] == 1.0
        assert "fused" not in report["top1"]

    def test_mean_of_two_is_of_the_first_two(self) -> None:
        labels = torch.arange(40) % 6
        right, wrong = _one_hot(labels, 6), _one_hot((labels + 1) % 6, 6)
        report = _report(logits={"scale_1": right, "scale_2": right, "scale_3": 3 * wrong})
        assert report["top1"]["scale_1+2"] == 1.0
        assert report["top1"]["scale_3"] == 0.0

    def test_one_scale_has_no_mean_of_two_and_no_regions(self) -> None:
        logits = {"scale_1": _one_hot(torch.arange(40) % 6, 6)}
        report = _report(logits=logits, fused=None, regions=[], composed=[], bounds=[])
        assert list(report["top1"]) == ["scale_1", "mean"]
        assert report["top1"]["scale_1"] == report["top1"]["mean"] == 1.0
        assert report["localisation"] == report["regions"] == {}

    def test_sure_and_wrong_stays_finite(self) -> None:
        wrong = _one_hot((torch.arange(40) + 1) % 6, 6, value=5000.0)
        report = _report(logits={"scale_1": wrong, "scale_2": wrong}, fused=None)
        assert report["log_prob"]["mean"] == pytest.approx(-5000.0)
        json.dumps(report, allow_nan=False)

    def test_without_annotation_localisation_is_null(self) -> None:
        report = _report(boxes=torch.full((40, 4), NAN), parts=torch.zeros(40, 0, 3), focus_parts=[])
        assert report["localisation"] == {"region_1": None, "region_2": None}

    def test_centred_parent_of_region_2_is_region_1(self) -> None:
        # the part is where region_1 looks, and region_2 looks away from it
        first = torch.tensor([[0.5, -0.5, 0.4]]).expand(40, 3)
        second = torch.tensor([[0.7, -0.3, 0.1]]).expand(40, 3)
        parts = torch.tensor([[[0.5, -0.5, 1.0]]]).expand(40, 1, 3)
        report = _report(composed=[first, second], parts=parts, focus_parts=[0])["localisation"]
        assert (report["region_1"]["part_hit"], report["region_1"]["part_hit_centred"]) == (1.0, 0.0)
        assert (report["region_2"]["part_hit"], report["region_2"]["part_hit_centred"]) == (0.0, 1.0)

    def test_bfloat16_logits_are_the_float32_of_the_same_values(self) -> None:
        logits = {f"scale_{s}": torch.randn(40, 6).bfloat16() for s in (1, 2)}
        same = {key: values.float() for key, values in logits.items()}
        fused = torch.randn(40, 6).bfloat16()
        assert _report(logits=logits, fused=fused) == _report(logits=same, fused=fused.float())

    def test_logits_that_carry_a_graph_give_the_same_report(self) -> None:
        logits = {"scale_1": torch.randn(40, 6, requires_grad=True)}
        plain = {"scale_1": logits["scale_1"].detach()}
        rest = {"fused": None, "regions": [], "composed": [], "bounds": []}
        assert json.dumps(_report(logits=logits, **rest)) == json.dumps(_report(logits=plain, **rest))

    def test_logits_that_are_not_finite_are_refused_by_name(self) -> None:
        broken = torch.zeros(40, 6)
        broken[3, 2] = NAN
        with pytest.raises(ValueError, match="scale_2"):
            _report(logits={"scale_1": torch.zeros(40, 6), "scale_2": broken})

    def test_class_names_must_fit_the_logits(self) -> None:
        with pytest.raises(ValueError, match=r"scale_1 must be \[N, 2\]"):
            _report(class_names=["a", "b"])


class TestText:
    def test_shows_every_answer_and_region_in_percents(self) -> None:
        report = _report()
        text = metrics.format_report(report)
        for word in (
            "birds, test: 40 photos, 6 classes",
            "scale_1+2",
            "mean",
            "fused",
            "region_1",
            "region_2",
        ):
            assert word in text
        assert f"{100 * report['top1']['fused']:.2f}" in text
        assert max(len(line) for line in text.splitlines()) <= 90
        assert text.isascii()

    def test_rows_of_a_table_are_aligned(self) -> None:
        for block in metrics.format_report(_report()).split("\n\n")[1:]:
            assert len({len(line) for line in block.splitlines()}) == 1

    def test_without_annotation_says_nothing_about_boxes(self) -> None:
        text = metrics.format_report(_report(boxes=torch.full((40, 4), NAN), focus_parts=[]))
        assert "IoU" not in text
        assert "at bound" in text

    def test_reads_a_report_that_went_through_json(self) -> None:
        report = _report()
        assert metrics.format_report(json.loads(json.dumps(report))) == metrics.format_report(report)
