"""The soft mask is the paper's, in a frame that knows no pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from racnn.ops.mask import box_mask, frame_steepness, pixel_centres
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


@pytest.mark.parametrize(
    ("size", "rows"),
    [((56, 56), 10.0), ((30, 90), 30.0), ((90, 30), 10.0 / 3)],  # rows further apart in the frame are steeper
)
def test_mask_is_the_papers_in_pixels_with_one_steepness_in_the_frame(
    size: tuple[int, int], rows: float
) -> None:
    mask = box_mask(REGIONS, size, frame_steepness(10, size[1]))
    assert mask.shape == (3, 1, *size)
    for one, box in zip(mask[:, 0].numpy(), to_boxes_xyxy(REGIONS, size).numpy(), strict=True):
        np.testing.assert_allclose(one, _paper_mask(box, size, 10.0, rows), atol=1e-9)


def test_mask_gradcheck() -> None:
    region = REGIONS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: box_mask(r, (7, 11), 8.0), (region,))
