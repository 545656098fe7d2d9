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

    Returns:
        [B, C, h, w] in the image's type.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        region = region.to(dtype)
        tx, ty, tl = region[:, 0:1], region[:, 1:2], region[:, 2:3]
        rows = _sampling_matrix(ty, tl, image.shape[2], size[0], antialias, steepness)  # [B, h, H]
        columns = _sampling_matrix(tx, tl, image.shape[3], size[1], antialias, steepness)  # [B, w, W]
        shrunk = image.to(dtype) @ columns.transpose(1, 2)[:, None]  # [B, C, H, w]
        return (rows[:, None] @ shrunk).to(image.dtype)  # [B, C, h, w]


def _sampling_matrix(
    centre: Tensor, half: Tensor, source: int, target: int, antialias: bool, steepness: float | None
) -> Tensor:
    """Return the weights [B, target, source] of one axis, times the soft mask at the sample points."""
    offsets = half * pixel_centres(
        target, device=half.device, dtype=half.dtype
    )  # [B, target], from the centre
    position = (centre + offsets + 1.0) * (source / 2.0)  # in pixels of the image, outer corner 0
    if not antialias:  # samples beyond the image, of a region that sticks out, read its edge pixel
        position = position.clamp(0.5, source - 0.5)
    pixels = torch.arange(source, device=half.device, dtype=half.dtype) + 0.5
    distance = (position[:, :, None] - pixels).abs()
    if antialias:
        support = (half * (source / target)).clamp(min=1.0)[:, :, None]  # image pixels per view pixel
        distance = distance / support
    weights = (1.0 - distance).clamp(min=0.0)
    weights = weights / weights.sum(dim=2, keepdim=True)
    if steepness is not None:
        weights = weights * boxcar(offsets, torch.zeros_like(half), half, steepness)[:, :, None]
    return weights
