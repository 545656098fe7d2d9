"""Regions of an image: make them valid, compose them, jitter them, turn them into pixel boxes and back.

Convention
    A region is a square ``(tx, ty, tl)``, tensors are [B, 3], in the normalised frame of the image it cuts: x to the right,
    y down, both in [-1, 1] with the outer corners of the image at +-1 (``align_corners=False``). ``tl`` is the half
    side as a fraction of half the image, in (0, 1], so the whole image is (0, 0, 1) and nothing depends on pixels.
    The paper's half side as a fraction of the image is ``tl / 2``. Or it is a rectangle ``(tx, ty, sx, sy)``, [B, 4], with two half
    sides, across and down; functions take either, and return what they are given. Pixel boxes are ``(x0, y0, x1, y1)`` with outer
    corners: the whole image of size (h, w) is (0, 0, w, h).
"""

from __future__ import annotations

import torch
from torch import Tensor


def whole(
    batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the region that is the whole image, [batch, 3] of (0, 0, 1)."""
    region = torch.zeros(batch, 3, device=device, dtype=dtype)
    region[:, 2].fill_(1.0)  # on the device: a tensor made from a list would wait for it
    return region


def halves(region: Tensor) -> Tensor:
    """Return the half sides [B, 2], across and down, of squares [B, 3] or rectangles [B, 4]."""
    return region[:, 2:].expand(-1, 2)


def rectangle(region: Tensor) -> Tensor:
    """Return squares [B, 3] or rectangles as rectangles [B, 4]."""
    return torch.cat([region[:, :2], halves(region)], dim=1)


def corners(region: Tensor) -> Tensor:
    """Return the box [B, 4] of regions in the frame itself, (x0, y0, x1, y1)."""
    return torch.cat([region[:, :2] - region[:, 2:], region[:, :2] + region[:, 2:]], dim=1)


def squash(raw: Tensor, low: float, high: float) -> Tensor:
    """Map any real numbers to a region that lies inside its image and whose sides are within bounds.

    ``tl = low + (high - low) * sigmoid(raw_l)`` and ``tx = (1 - tl) * tanh(raw_x)``. Zeros give the centred region
    in the middle of the bounds. The paper squashes all three by a sigmoid and leaves ``tl`` without an upper bound;
    there the box can leave the image and grow to all of it.

    Args:
        raw: [B, 3], any real numbers; [B, 4] for rectangles.
        low: Least side as a fraction of the image's side.
        high: Largest side as a fraction of the image's side, at most 1.
    """
    tl = low + (high - low) * torch.sigmoid(raw[:, 2:])
    centre = (1.0 - tl) * torch.tanh(raw[:, :2])
    return torch.cat([centre, tl], dim=1)


def clamp(region: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Return the nearest region with sides within bounds that lies inside its image."""
    tl = region[:, 2:].clamp(low, high)
    room = 1.0 - tl
    centre = torch.maximum(torch.minimum(region[:, :2], room), -room)
    return torch.cat([centre, tl], dim=1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the region of the source that is ``inner``, in the frame of ``outer``, of ``outer``, in that of the source.

    It is ``(ox + ol * ix, oy + ol * iy, ol * il)``; a rectangle where either is one.
    """
    side = outer[:, 2:]
    return torch.cat([outer[:, :2] + side * inner[:, :2], side * inner[:, 2:]], dim=1)


def relative(outer: Tensor, region: Tensor) -> Tensor:
    """Return ``region`` in the frame of ``outer``: the inverse of :func:`compose`, both given in the source."""
    side = outer[:, 2:]
    return torch.cat([(region[:, :2] - outer[:, :2]) / side, region[:, 2:] / side], dim=1)


def jitter(region: Tensor, noise: Tensor, *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Jitter regions as a proposal errs: centre by up to 0.1 ``tl``, logarithm of the side by up to 0.2.

    Args:
        region: [B, 3], or [B, 4].
        noise: [B, 3], of the same order, in [-1, 1]; larger jitters more, 0 changes nothing. The sides of a rectangle change
            by the same factor.
        low: Least side that may come out.
        high: Largest side that may come out.
    """
    tl = region[:, 2:] * torch.exp(0.2 * noise[:, 2:])
    centre = region[:, :2] + 0.1 * region[:, 2:] * noise[:, :2]
    return clamp(torch.cat([centre, tl], dim=1), low, high)


def to_boxes_xyxy(region: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the pixel boxes [B, 4] of regions of an image of size (h, w); not square where the image is not."""
    height, width = size
    return (corners(region) + 1.0) / 2.0 * region.new_tensor([width, height, width, height])


def from_boxes_xyxy(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the smallest region that holds each pixel box [B, 4], moved inside the image where it would stick out.

    Its side is the longer one of the box in the frame, at most 1.
    """
    height, width = size
    return bounding_region(boxes / boxes.new_tensor([width, height, width, height]) * 2.0 - 1.0)


def bounding_region(boxes: Tensor, sides: int = 1) -> Tensor:
    """Return the bounding square, inside the image, of boxes [B, 4] that are given in the frame itself; with 2 ``sides`` the rectangle."""
    low, high = boxes[:, :2], boxes[:, 2:]
    tl = (high - low) / 2.0
    return clamp(torch.cat([(low + high) / 2.0, tl if sides == 2 else tl.amax(dim=1, keepdim=True)], dim=1))
