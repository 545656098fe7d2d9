"""The zoom: cut a square region out of an image and sample it to a view of any size, as two matrix products.

Convention
    Regions are (tx, ty, tl) in the frame of the image, see :mod:`racnn.ops.regions`; sizes are (h, w);
    ``align_corners=False``: sample i of n lies at ``(2 i + 1) / n - 1`` of the region. A sample reads image pixels
    beyond the region's edge where its kernel reaches them, and repeats the edge of the image itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from racnn.ops.boxmask import boxcar, pixel_centres


def zoom(
    image: Tensor,
    region: Tensor,
    size: tuple[int, int],
    *,
    antialias: bool = True,
    steepness: float | None = None,
    move_samples: bool = True,
) -> Tensor:
    """Sample a region of each image bilinearly to a view (equation 7), optionally under its soft mask (4 to 6).

    Bilinear sampling of an upright box is separable: ``view = Wy @ image @ Wx^T`` with one triangle kernel per
    output row and column. One batched call, no host synchronisation, exact derivatives in the image and in the
    region, and deterministic on every device, which ``grid_sample`` is not. Where the region holds more pixels than
    the view the triangles widen (anti-aliasing as in ``F.interpolate(antialias=True)``, with which the zoom of the
    whole image agrees); the paper samples without it.

    The arithmetic runs in the wider of float32 and the image's type; under autocast too.

    Args:
        image: [B, C, H, W], any floating type.
        region: [B, 3].
        size: (h, w) of the view in pixels.
        antialias: Widen the kernel when shrinking; False is plain bilinear sampling.
        steepness: Of the mask, per unit of the image's frame; None applies no mask. At the view's own sample
            points the mask depends on ``tl`` alone.
        move_samples: The derivative in the region follows the sample points as they move with it: exact. False
            holds them where they are and moves the mask over them alone, the derivative of equations 11 to 13.

    Returns:
        [B, C, h, w] in the image's type.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        region = region.to(dtype)
        held = region if move_samples else region.detach()
        rows = _sampling_matrix(held[:, [1, 2]], image.shape[2], size[0], antialias)  # [B, h, H]
        columns = _sampling_matrix(held[:, [0, 2]], image.shape[3], size[1], antialias)  # [B, w, W]
        if steepness is not None:
            rows = rows * _mask_of_samples(region[:, [1, 2]], held[:, [1, 2]], size[0], steepness)
            columns = columns * _mask_of_samples(region[:, [0, 2]], held[:, [0, 2]], size[1], steepness)
        shrunk = image.to(dtype) @ columns.transpose(1, 2)[:, None]  # [B, C, H, w]
        return (rows[:, None] @ shrunk).to(image.dtype)  # [B, C, h, w]


def _sampling_matrix(span: Tensor, source: int, target: int, antialias: bool) -> Tensor:
    """Return the weights [B, target, source] of one axis, on which the region is a span [B, 2] of (centre, half)."""
    position = (_sample_points(span, target) + 1.0) * (source / 2.0)  # in pixels of the image, outer corner 0
    if not antialias:  # samples beyond the image, of a region that sticks out, read its edge pixel
        position = position.clamp(0.5, source - 0.5)
    pixels = torch.arange(source, device=span.device, dtype=span.dtype) + 0.5
    distance = (position[:, :, None] - pixels).abs()
    if antialias:
        support = (span[:, 1:] * (source / target)).clamp(min=1.0)[:, :, None]  # image pixels per view pixel
        distance = distance / support
    weights = (1.0 - distance).clamp(min=0.0)
    return weights / weights.sum(dim=2, keepdim=True)


def _mask_of_samples(span: Tensor, held: Tensor, target: int, steepness: float) -> Tensor:
    """Return the soft mask [B, target, 1] of a span at the sample points of ``held``, the same span or its copy."""
    return boxcar(_sample_points(held, target), span[:, :1], span[:, 1:], steepness)[:, :, None]


def _sample_points(span: Tensor, target: int) -> Tensor:
    """Return where the samples of one axis lie in the image's frame, [B, target]."""
    return span[:, :1] + span[:, 1:] * pixel_centres(target, device=span.device, dtype=span.dtype)
