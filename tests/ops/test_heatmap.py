"""The box read from a response map is that of its largest part, on the cells' borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from racnn.ops.heatmap import component_region, largest_component, peak_point, peak_region
from racnn.ops.regions import to_boxes_xyxy


def _map(height: int, width: int, *blocks: tuple[slice, slice]) -> Tensor:
    response = torch.zeros(1, height, width)
    for rows, columns in blocks:
        response[0, rows, columns] = 1.0
    return response


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Return the largest 8-connected components as scipy finds them; several if they tie."""
    labels, num = ndimage.label(mask, structure=np.ones((3, 3)))
    if num == 0:
        return [np.ones_like(mask)]
    counts = np.bincount(labels.ravel())[1:]
    return [labels == i + 1 for i in np.flatnonzero(counts == counts.max())]


def _snake(height: int, width: int) -> np.ndarray:
    """One cell wide, to and fro, every second row: the longest way through the map."""
    mask = np.zeros((height, width), bool)
    mask[::2] = True
    for turn, row in enumerate(range(1, height - 1, 2)):
        mask[row, -1 if turn % 2 == 0 else 0] = True
    return mask


def _spiral(side: int) -> np.ndarray:
    """One cell wide, inwards, one cell of air between the turns."""
    mask = np.zeros((side, side), bool)
    row = column = 0
    step, length = (0, 1), side - 1
    mask[0, 0] = True
    lengths = [side - 1] * 3 + [n for m in range(side - 3, 0, -2) for n in (m, m)]
    for length in lengths:
        for _ in range(length):
            row, column = row + step[0], column + step[1]
            mask[row, column] = True
        step = (step[1], -step[0])
    return mask


class TestLargestComponent:
    def test_largest_component_is_that_of_scipy_on_random_masks(self) -> None:
        generator = np.random.default_rng(0)
        density = np.linspace(0.1, 0.7, 100)[:, None, None]
        masks = generator.random((100, 9, 13)) < density
        found = largest_component(torch.from_numpy(masks)).numpy()
        for mask, one in zip(masks, found, strict=True):
            assert any(np.array_equal(one, expected) for expected in _components(mask))

    @pytest.mark.parametrize("mask", [_snake(11, 14), _snake(14, 11)[::-1].copy(), _spiral(15), _spiral(16)])
    def test_longest_winding_component_is_found_whole(self, mask: np.ndarray) -> None:
        assert ndimage.label(mask, structure=np.ones((3, 3)))[1] == 1
        for turned in (mask, mask[::-1, ::-1].copy(), mask.T.copy()):
            assert np.array_equal(largest_component(torch.from_numpy(turned)[None])[0].numpy(), turned)

    def test_opposite_borders_do_not_touch(self) -> None:
        mask = torch.zeros(1, 4, 6, dtype=torch.bool)
        mask[0, 1, 5] = mask[0, 2, 0] = True  # neighbours in memory order
        mask[0, 2, 1] = True
        assert largest_component(mask)[0].nonzero().tolist() == [[2, 0], [2, 1]]

    def test_empty_mask_is_all_of_it_and_full_mask_stays(self) -> None:
        assert largest_component(torch.zeros(2, 3, 5, dtype=torch.bool)).all()
        assert largest_component(torch.ones(2, 3, 5, dtype=torch.bool)).all()


class TestComponentRegion:
    def test_box_lies_on_the_borders_of_the_cells(self) -> None:
        # rows 2..5 of 8, columns 3..9 of 12: x in [-0.5, 0.5], y in [-0.5, 0.25]
        region = component_region(_map(8, 12, (slice(2, 5), slice(3, 9))))
        torch.testing.assert_close(region, torch.tensor([[0.0, -0.125, 0.5]]))

    def test_bigger_of_two_blobs_is_taken_not_the_higher(self) -> None:
        response = _map(10, 20, (slice(1, 3), slice(1, 3)), (slice(5, 9), slice(12, 18)))
        response[0, 1:3, 1:3] = 1.5
        box = to_boxes_xyxy(component_region(response), (10, 20))
        torch.testing.assert_close(
            box, torch.tensor([[11.0, 5, 19, 9]])
        )  # a square of the frame: 8 x 4 cells

    def test_box_at_the_borders_is_moved_inside(self) -> None:
        # a flat bar along the lower border: the square about it must not stick out below
        region = component_region(_map(10, 10, (slice(9, 10), slice(2, 8))))
        torch.testing.assert_close(region, torch.tensor([[0.0, 0.4, 0.6]]))

    def test_raising_the_level_never_grows_the_box(self) -> None:
        y, x = torch.meshgrid(torch.arange(20.0), torch.arange(28.0), indexing="ij")
        blob = torch.exp(-((x - 9.3) ** 2 / 30 + (y - 12.1) ** 2 / 18))[None]
        boxes = [component_region(blob, level)[0] for level in torch.linspace(0, 0.95, 12).tolist()]
        sides = torch.stack(boxes)[:, 2]
        assert (sides.diff() <= 0).all()
        assert sides[-1] < 0.4 * sides[0]

    def test_level_is_the_height_between_mean_and_maximum(self) -> None:
        response = torch.zeros(1, 10, 10)
        response[0, 2:8, 2:8] = 0.5
        response[0, 4:6, 4:6] = 1.0  # mean 0.2, so 0.5 lies at level 0.375
        low, high = (float(component_region(response, level)[0, 2]) for level in (0.35, 0.4))
        assert low == pytest.approx(0.6)
        assert high == pytest.approx(0.2)

    @pytest.mark.parametrize("trim", [0.0, 0.05])
    def test_batch_is_a_loop_of_singles_of_any_scale_and_offset(self, trim: float) -> None:
        response = torch.rand(6, 7, 11, generator=torch.Generator().manual_seed(0))
        together = component_region(response, 0.3, trim)
        alone = torch.cat([component_region(100.0 * one[None] + 2.0, 0.3, trim) for one in response])
        torch.testing.assert_close(together, alone)


class TestPeakRegion:
    def test_square_is_centred_on_the_highest_cell(self) -> None:
        response = torch.rand(1, 4, 10, generator=torch.Generator().manual_seed(0))
        response[0, 3, 1] = 2.0  # row 3 of 4, column 1 of 10
        region = peak_region(peak_point(response), 0.2)
        torch.testing.assert_close(region, torch.tensor([[-0.7, 0.75, 0.2]]))

    def test_square_is_moved_inside(self) -> None:
        response = torch.zeros(2, 4, 10)
        response[0, 3, 1] = response[1, 0, 9] = 1.0
        torch.testing.assert_close(
            peak_region(peak_point(response)), torch.tensor([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5]])
        )


class TestTrim:
    def test_a_share_of_an_even_block_is_a_share_of_its_width(self) -> None:
        # 10 columns and rows of equal mass: a tenth of it at each side is one cell
        region = component_region(_map(20, 20, (slice(4, 14), slice(6, 16))), trim=0.1)
        torch.testing.assert_close(to_boxes_xyxy(region, (20, 20)), torch.tensor([[7.0, 5, 15, 13]]))

    def test_borders_lie_within_cells(self) -> None:
        region = component_region(
            _map(20, 20, (slice(4, 14), slice(6, 16))), trim=0.025
        )  # a quarter of a cell
        torch.testing.assert_close(
            to_boxes_xyxy(region, (20, 20)), torch.tensor([[6.25, 4.25, 15.75, 13.75]])
        )

    def test_a_weak_tail_is_left_out_that_the_plain_rule_keeps(self) -> None:
        response = _map(20, 20, (slice(6, 14), slice(2, 10)))
        response[0, 9, 10:19] = 0.25  # a twig, 9 cells of 64.25 / 4, above the mean
        plain, trimmed = component_region(response), component_region(response, trim=0.03)
        torch.testing.assert_close(to_boxes_xyxy(plain, (20, 20))[0, [0, 2]], torch.tensor([2.0, 19.0]))
        assert float(to_boxes_xyxy(trimmed, (20, 20))[0, 2]) < 12.0

    @pytest.mark.parametrize("trim", [0.0, 0.1])
    @pytest.mark.parametrize("level", [0.0, 0.5])
    def test_constant_map_gives_the_whole_image(self, level: float, trim: float) -> None:
        values = [0.0, 7.3, *torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()]
        constants = torch.tensor(values)[:, None, None].expand(-1, 14, 11)
        region = component_region(constants, level, trim)
        torch.testing.assert_close(region, torch.tensor([[0.0, 0.0, 1.0]]).expand(402, -1))

    def test_a_vanishing_trim_is_the_plain_rule(self) -> None:
        response = torch.rand(8, 7, 11, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(
            component_region(response, trim=1e-6), component_region(response), atol=1e-3, rtol=0
        )
