"""The soft boxcar mask that makes a crop differentiable in its box.

Convention
    Regions are (tx, ty, tl) in the frame of the image they cut, see :mod:`racnn.ops.regions`. Pixel centres lie at
    ``(2 i + 1) / n - 1``. Steepness here is per unit of the frame, which is half an image wide, so that nothing
    depends on the size in pixels; the paper's ``k = 10`` per pixel is :func:`frame_steepness` of it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frame_steepness(k: float, width: int) -> float:
    """Convert the paper's k, per pixel of an image ``width`` pixels wide, to the frame: ``k * width / 2``."""
    return k * width / 2.0


def pixel_centres(
    num: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the frame coordinates of ``num`` pixel centres, [num], in (-1, 1)."""
    return (torch.arange(num, device=device, dtype=dtype) * 2.0 + 1.0) / num - 1.0


def boxcar(points: Tensor, centre: Tensor, half: Tensor, steepness: float) -> Tensor:
    """Return the soft indicator of ``|points - centre| < half``: ``h(p - c + half) - h(p - c - half)``.

    ``h`` is the logistic function with the given steepness (equations 5 and 6 of the paper, one axis).

    Args:
        points: [..., n] coordinates.
        centre: Broadcasts against ``points``.
        half: Broadcasts against ``points``.
        steepness: Per unit of the frame.
    """
    offset = points - centre
    return torch.sigmoid(steepness * (offset + half)) - torch.sigmoid(steepness * (offset - half))


def box_mask(region: Tensor, size: tuple[int, int], steepness: float) -> Tensor:
    """Return the mask M of equations 5 and 6 over the image's pixels.

    Args:
        region: [B, 3] in the frame of the image.
        size: (h, w) of the image in pixels.
        steepness: Per unit of the frame; ``frame_steepness(10, w)`` is the paper's.

    Returns:
        [B, 1, h, w] in (0, 1), differentiable in ``region``.
    """
    height, width = size
    x = pixel_centres(width, device=region.device, dtype=region.dtype)
    y = pixel_centres(height, device=region.device, dtype=region.dtype)
    tx, ty, tl = region.split(1, dim=1)
    columns = boxcar(x, tx, tl, steepness)  # [B, w]
    rows = boxcar(y, ty, tl, steepness)  # [B, h]
    return (rows[:, :, None] * columns[:, None, :])[:, None]
