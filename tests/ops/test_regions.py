"""Regions stay inside their image, compose like maps, and meet pixels at outer corners."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from racnn.ops import regions

BOUNDS = [(0.2, 0.95), (0.3, 0.8), (0.05, 1.0)]


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _valid(num: int, *, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Return random valid regions, float64."""
    return regions.squash(torch.randn(num, 3, dtype=torch.float64), low, high)


def _sticks_out(region: Tensor) -> float:
    return float((region[:, :2].abs() + region[:, 2:]).max()) - 1.0


class TestSquash:
    @pytest.mark.parametrize(("low", "high"), BOUNDS)
    @pytest.mark.parametrize("spread", [0.1, 3.0, 1e4])
    def test_squash_of_anything_lies_inside_with_a_side_within_bounds(
        self, low: float, high: float, spread: float
    ) -> None:
        region = regions.squash(torch.randn(2000, 3) * spread, low, high)
        assert torch.isfinite(region).all()
        assert _sticks_out(region) <= 1e-6
        assert region[:, 2].min() >= low - 1e-6
        assert region[:, 2].max() <= high + 1e-6

    @pytest.mark.parametrize(("low", "high"), BOUNDS)
    def test_squash_reaches_both_bounds_and_every_border(self, low: float, high: float) -> None:
        far = regions.squash(torch.tensor([[50.0, -50.0, -50.0], [-50.0, 50.0, 50.0]]), low, high)
        expected = torch.tensor([[1 - low, low - 1, low], [high - 1, 1 - high, high]])
        torch.testing.assert_close(far, expected)

    @pytest.mark.parametrize(("low", "high"), BOUNDS)
    def test_squash_of_zeros_is_centred_with_the_middle_side(self, low: float, high: float) -> None:
        torch.testing.assert_close(
            regions.squash(torch.zeros(2, 3), low, high), torch.tensor([[0.0, 0.0, (low + high) / 2]] * 2)
        )

    def test_squash_grows_with_each_raw_number(self) -> None:
        raw = torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda r: regions.squash(r, 0.2, 0.9)[0], raw)[:, 0]
        assert (jacobian.diagonal() > 0).all()
        assert jacobian[2, :2].abs().max() == 0  # the side follows its own number alone

    def test_squash_gradcheck(self) -> None:
        raw = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda r: regions.squash(r, 0.2, 0.9), (raw,))


class TestClamp:
    def test_clamp_of_anything_is_valid(self) -> None:
        region = regions.clamp(torch.randn(500, 3) * 2, 0.2, 0.8)
        assert _sticks_out(region) <= 1e-6
        assert region[:, 2].min() >= 0.2
        assert region[:, 2].max() <= 0.8

    def test_clamp_leaves_valid_regions_alone(self) -> None:
        region = _valid(500)
        torch.testing.assert_close(regions.clamp(region), region, rtol=0, atol=1e-15)

    def test_clamp_moves_only_the_axis_that_sticks_out(self) -> None:
        region = regions.clamp(torch.tensor([[0.9, 0.1, 0.5], [-0.2, -2.0, 0.4]]))
        torch.testing.assert_close(region, torch.tensor([[0.5, 0.1, 0.5], [-0.2, -0.6, 0.4]]))


class TestCompose:
    def test_whole_is_the_identity_on_both_sides(self) -> None:
        region, whole = _valid(50), regions.whole(50, dtype=torch.float64)
        torch.testing.assert_close(regions.compose(whole, region), region)
        torch.testing.assert_close(regions.compose(region, whole), region)

    def test_relative_undoes_compose_and_the_other_way_round(self) -> None:
        outer, inner = _valid(50), _valid(50)
        torch.testing.assert_close(regions.relative(outer, regions.compose(outer, inner)), inner)
        torch.testing.assert_close(regions.compose(outer, regions.relative(outer, inner)), inner)

    def test_region_of_a_valid_region_lies_inside_it(self) -> None:
        outer, inner = _valid(500), _valid(500)
        composed = regions.compose(outer, inner)
        outside = (composed[:, :2] - outer[:, :2]).abs() + composed[:, 2:] - outer[:, 2:]
        assert outside.max() <= 1e-12

    def test_compose_is_what_cropping_pixels_twice_gives(self) -> None:
        # 40 x 80 (h, w): columns 20..60, rows 10..30; of that the right lower quarter: columns 40..60, rows 20..30
        outer = regions.from_boxes_xyxy(torch.tensor([[20.0, 10, 60, 30]]), (40, 80))
        inner = torch.tensor([[0.5, 0.5, 0.5]])
        box = regions.to_boxes_xyxy(regions.compose(outer, inner), (40, 80))
        torch.testing.assert_close(box, torch.tensor([[40.0, 20, 60, 30]]))


def _noise(num: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(num, 3, dtype=torch.float64, generator=generator) * 2 - 1


class TestJitter:
    def test_jitter_stays_valid_and_within_bounds(self) -> None:
        region = regions.jitter(_valid(2000, low=0.2, high=0.8), 3.0 * _noise(2000), low=0.2, high=0.8)
        assert _sticks_out(region) <= 1e-12
        assert region[:, 2].min() >= 0.2
        assert region[:, 2].max() <= 0.8

    def test_jitter_without_noise_is_clamp(self) -> None:
        region = torch.randn(200, 3, dtype=torch.float64)
        jittered = regions.jitter(region, torch.zeros_like(region), low=0.2, high=0.8)
        assert torch.equal(jittered[:, 2], regions.clamp(region, 0.2, 0.8)[:, 2])
        torch.testing.assert_close(jittered, regions.clamp(region, 0.2, 0.8))

    @pytest.mark.parametrize("strength", [0.5, 1.0])
    def test_jitter_moves_by_a_tenth_of_the_half_side_and_a_fifth_in_its_logarithm(
        self, strength: float
    ) -> None:
        start = torch.tensor([[0.1, -0.2, 0.4]], dtype=torch.float64).expand(400, 3)
        jittered = regions.jitter(start, strength * _noise(400))
        moves = torch.cat(
            [(jittered[:, :2] - start[:, :2]) / (0.1 * 0.4), (jittered[:, 2:] / 0.4).log() / 0.2], dim=1
        )
        torch.testing.assert_close(moves, strength * _noise(400))


class TestPixelBoxes:
    def test_box_of_a_region_by_hand(self) -> None:
        box = regions.to_boxes_xyxy(torch.tensor([[0.5, -0.5, 0.25]]), (40, 80))
        torch.testing.assert_close(box, torch.tensor([[50.0, 5.0, 70.0, 15.0]]))

    def test_box_of_the_whole_is_the_image(self) -> None:
        assert regions.to_boxes_xyxy(regions.whole(1), (30, 70)).tolist() == [[0, 0, 70, 30]]
        assert regions.from_boxes_xyxy(torch.tensor([[0.0, 0, 70, 30]]), (30, 70)).tolist() == [[0, 0, 1]]

    @pytest.mark.parametrize("size", [(37, 90), (90, 37), (64, 64)])
    def test_round_trip_through_pixels(self, size: tuple[int, int]) -> None:
        region = _valid(100)
        back = regions.from_boxes_xyxy(regions.to_boxes_xyxy(region, size), size)
        torch.testing.assert_close(back, region)

    def test_region_of_a_box_holds_it_and_is_the_smallest(self) -> None:
        height, width = 40, 100
        ends = torch.rand(300, 2, 2, dtype=torch.float64).sort(dim=1).values * torch.tensor([width, height])
        boxes = ends.flatten(1)  # x0, y0, x1, y1
        region = regions.from_boxes_xyxy(boxes, (height, width))
        held = regions.to_boxes_xyxy(region, (height, width))
        assert (held[:, :2] <= boxes[:, :2] + 1e-9).all()
        assert (held[:, 2:] >= boxes[:, 2:] - 1e-9).all()
        assert _sticks_out(region) <= 1e-12
        longer = torch.maximum(
            (boxes[:, 2] - boxes[:, 0]) / width, (boxes[:, 3] - boxes[:, 1]) / height
        )  # a fraction of the image is a side in the frame
        torch.testing.assert_close(region[:, 2], longer)

    def test_square_about_a_long_box_at_the_border_is_moved_inside(self) -> None:
        # a flat box at the top edge: the square around its centre would stick out above
        region = regions.from_boxes_xyxy(torch.tensor([[20.0, 0, 60, 4]]), (40, 80))
        torch.testing.assert_close(region, torch.tensor([[0.0, -0.5, 0.5]]))

    def test_bounding_region_takes_corners_of_the_frame(self) -> None:
        region = regions.bounding_region(torch.tensor([[-0.5, -0.25, 0.1, 0.05]]))
        torch.testing.assert_close(region, torch.tensor([[-0.2, -0.1, 0.3]]))


class TestRectangles:
    """(tx, ty, sx, sy): what holds of squares holds of them, axis by axis."""

    def _some(self, num: int, low: float = 0.1, high: float = 0.9) -> Tensor:
        return regions.squash(torch.randn(num, 4, dtype=torch.float64), low, high)

    @pytest.mark.parametrize("spread", [0.1, 3.0, 1e4])
    def test_squash_of_anything_lies_inside(self, spread: float) -> None:
        found = regions.squash(spread * torch.randn(500, 4, dtype=torch.float64), 0.2, 0.9)
        assert float((found[:, :2].abs() + found[:, 2:]).max()) <= 1.0 + 1e-12
        assert float(found[:, 2:].min()) >= 0.2
        assert float(found[:, 2:].max()) <= 0.9

    def test_equal_sides_are_a_square(self) -> None:
        squares, others = _valid(30), _valid(30)
        as_rectangles = regions.rectangle(squares)
        assert torch.equal(as_rectangles, torch.cat([squares, squares[:, 2:]], dim=1))
        for name in ("compose", "relative"):
            function = getattr(regions, name)
            torch.testing.assert_close(
                function(as_rectangles, regions.rectangle(others)),
                regions.rectangle(function(squares, others)),
            )
        noise = torch.rand(30, 3, dtype=torch.float64) * 2.0 - 1.0
        torch.testing.assert_close(
            regions.jitter(as_rectangles, noise, low=0.1, high=0.9),
            regions.rectangle(regions.jitter(squares, noise, low=0.1, high=0.9)),
        )
        torch.testing.assert_close(
            regions.to_boxes_xyxy(as_rectangles, (30, 50)), regions.to_boxes_xyxy(squares, (30, 50))
        )

    def test_relative_undoes_compose_for_any_pair(self) -> None:
        for outer, inner in (
            (self._some(40), self._some(40)),
            (self._some(40), _valid(40)),
            (_valid(40), self._some(40)),
        ):
            whole = regions.rectangle(regions.compose(outer, inner))
            torch.testing.assert_close(regions.relative(outer, whole), regions.rectangle(inner))

    def test_compose_is_what_cropping_pixels_twice_gives(self) -> None:
        outer = torch.tensor([[0.5, 0.0, 0.5, 1.0]])  # the right half of 100 x 80 pixels
        inner = torch.tensor([[0.0, 0.5, 1.0, 0.5]])  # the lower half of that
        box = regions.to_boxes_xyxy(regions.compose(outer, inner), (80, 100))
        torch.testing.assert_close(box, torch.tensor([[50.0, 40.0, 100.0, 80.0]]))

    def test_clamp_moves_and_shrinks_each_axis_by_itself(self) -> None:
        found = regions.clamp(torch.tensor([[0.9, 0.1, 0.5, 0.05]]), 0.1, 0.8)
        torch.testing.assert_close(found, torch.tensor([[0.5, 0.1, 0.5, 0.1]]))

    def test_the_bounding_rectangle_is_the_box_itself(self) -> None:
        boxes = torch.tensor([[-0.5, -0.25, 0.1, 0.05], [-1.0, -1.0, 1.0, 1.0]])
        found = regions.bounding_region(boxes, 2)
        torch.testing.assert_close(found, torch.tensor([[-0.2, -0.1, 0.3, 0.15], [0.0, 0.0, 1.0, 1.0]]))
        torch.testing.assert_close(regions.corners(found), boxes)
