"""The soft mask is the paper's, in a frame that knows no pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racnn.ops.mask import box_mask, boxcar, frame_steepness, pixel_centres
from racnn.ops.regions import to_boxes_xyxy

REGIONS = torch.tensor([[0.25, -0.4, 0.3], [-0.5, 0.1, 0.45], [0.0, 0.0, 0.9]], dtype=torch.float64)


def _logistic(values: np.ndarray, k: float) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * k * values))


def _paper_mask(box: np.ndarray, size: tuple[int, int], k_x: float, k_y: float) -> np.ndarray:
    """Equations 5 and 6 over pixels: [h(x - x0) - h(x - x1)] * [h(y - y0) - h(y - y1)]."""
    x = np.arange(size[1])[None, :] + 0.5
    y = np.arange(size[0])[:, None] + 0.5
    x0, y0, x1, y1 = box
    columns = _logistic(x - x0, k_x) - _logistic(x - x1, k_x)
    return columns * (_logistic(y - y0, k_y) - _logistic(y - y1, k_y))


def test_pixel_centres_lie_inside_evenly_and_symmetrically() -> None:
    assert pixel_centres(4).tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert pixel_centres(1).tolist() == [0.0]
    assert pixel_centres(3, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("size", [(48, 80), (80, 48)])
def test_mask_is_one_inside_and_zero_outside(size: tuple[int, int]) -> None:
    mask = box_mask(REGIONS, size, frame_steepness(10, size[1]))
    assert mask.shape == (3, 1, *size)
    for one, (x0, y0, x1, y1) in zip(mask[:, 0], to_boxes_xyxy(REGIONS, size).tolist(), strict=True):
        x, y = torch.arange(size[1]) + 0.5, torch.arange(size[0])[:, None] + 0.5
        inside = (x > x0 + 2) & (x < x1 - 2) & (y > y0 + 2) & (y < y1 - 2)
        outside = (x < x0 - 2) | (x > x1 + 2) | (y < y0 - 2) | (y > y1 + 2)
        assert inside.any()
        assert outside.any()
        assert one[inside].min() > 0.999
        assert one[outside].max() < 0.001


def test_mask_is_a_half_on_the_edge_and_a_quarter_on_the_corner() -> None:
    # 20 columns, an edge through the centre of column 4 (x = -0.55); 20 rows likewise
    mask = box_mask(torch.tensor([[-0.05, -0.05, 0.5]]), (20, 20), 200.0)[0, 0]
    torch.testing.assert_close(mask[8, 4], torch.tensor(0.5), atol=1e-4, rtol=0)
    torch.testing.assert_close(mask[4, 4], torch.tensor(0.25), atol=1e-4, rtol=0)


def test_mask_is_the_papers_in_pixels() -> None:
    size = (56, 56)
    mask = box_mask(REGIONS, size, frame_steepness(10, size[1]))
    for one, box in zip(mask[:, 0].numpy(), to_boxes_xyxy(REGIONS, size).numpy(), strict=True):
        np.testing.assert_allclose(one, _paper_mask(box, size, 10.0, 10.0), atol=1e-9)


def test_mask_of_a_non_square_image_has_one_steepness_in_the_frame() -> None:
    size = (30, 90)  # k = 10 per column is 30 per row: rows are three times as far apart in the frame
    mask = box_mask(REGIONS, size, frame_steepness(10, size[1]))
    for one, box in zip(mask[:, 0].numpy(), to_boxes_xyxy(REGIONS, size).numpy(), strict=True):
        np.testing.assert_allclose(one, _paper_mask(box, size, 10.0, 30.0), atol=1e-9)


def test_mask_at_a_point_of_the_frame_does_not_depend_on_the_image_size() -> None:
    coarse = box_mask(REGIONS, (10, 14), 12.0)
    fine = box_mask(REGIONS, (30, 42), 12.0)  # every third pixel centre is one of the coarse image
    torch.testing.assert_close(fine[:, :, 1::3, 1::3], coarse)


def test_mask_moves_with_its_region() -> None:
    size = (20, 40)
    still = box_mask(torch.tensor([[-0.3, 0.1, 0.2]]), size, 30.0)[0, 0]
    moved = box_mask(torch.tensor([[-0.3 + 4 * 2 / 40, 0.1 - 3 * 2 / 20, 0.2]]), size, 30.0)[0, 0]
    torch.testing.assert_close(moved[:-3, 4:], still[3:, :-4])  # 4 columns right, 3 rows up


def test_boxcar_is_symmetric_about_its_centre() -> None:
    offsets = torch.linspace(0.0, 1.0, 20, dtype=torch.float64)
    centre, half = torch.tensor([0.2], dtype=torch.float64), torch.tensor([0.35], dtype=torch.float64)
    right = boxcar(centre + offsets, centre, half, 15.0)
    torch.testing.assert_close(right, boxcar(centre - offsets, centre, half, 15.0))
    assert (right.diff() < 0).all()


def test_mask_gradcheck() -> None:
    region = REGIONS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: box_mask(r, (7, 11), 8.0), (region,))


def test_mask_grows_where_the_region_moves_to() -> None:
    region = torch.tensor([[0.1, -0.2, 0.4]], requires_grad=True)
    size = (40, 40)
    x, y = pixel_centres(40), pixel_centres(40)[:, None]
    box_mask(region, size, 20.0)[0, 0].mul((x > 0.1) & (y < -0.2)).sum().backward()  # right upper quarter
    assert region.grad is not None
    assert region.grad[0, 0] > 0
    assert region.grad[0, 1] < 0
    assert region.grad[0, 2] > 0
