"""The zoom: cut a square region out of an image and sample it to a view of any size, one axis after the other.

Convention
    Regions are (tx, ty, tl) in the frame of the image, see :mod:`racnn.ops.regions`; sizes are (h, w);
    ``align_corners=False``: sample i of n lies at ``(2 i + 1) / n - 1`` of the region. A sample reads image pixels
    beyond the region's edge where its kernel reaches them, and repeats the edge of the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.ops.mask import boxcar, pixel_centres

SLACK = 1e-3  # pixels: a pixel just at the foot of a triangle weighs nothing, but its weight has a derivative


def zoom(
    image: Tensor,
    region: Tensor,
    size: tuple[int, int],
    *,
    antialias: bool = True,
    steepness: float | None = None,
    move_samples: bool = True,
    dense: bool | None = None,
) -> Tensor:
    """Sample a region of each image bilinearly to a view (equation 7), optionally under its soft mask (4 to 6).

    Bilinear sampling of an upright box is separable: ``view = Wy @ image @ Wx^T`` with one triangle kernel per
    output row and column. One batched call, exact derivatives in the image and in the region, and deterministic on every
    device, which ``grid_sample`` is not. A GPU multiplies by these matrices, full of zeros as they are, and never waits
    for the host; a CPU adds up the few pixels under each triangle, which is several times faster there. Where the region
    holds more pixels than the view the triangles widen (anti-aliasing as in ``F.interpolate(antialias=True)``, with which
    the zoom of the whole image agrees); the paper samples without it.

    The arithmetic runs in the wider of float32 and the image's type; under autocast too.

    Args:
        image: [B, C, H, W], any floating type.
        region: [B, 3].
        size: (h, w) of the view in pixels.
        antialias: Widen the kernel when shrinking; False is plain bilinear sampling.
        steepness: Steepness of the mask, per unit of the image's frame; None applies no mask. At the view's own sample
            points the mask depends on ``tl`` alone.
        move_samples: The derivative in the region follows the sample points as they move with it: exact. False
            holds them where they are and moves the mask over them alone, the derivative of equations 11 to 13.
        dense: Multiply by whole matrices, as said above; None does so on every device but a CPU, and where a graph is exported,
            which cannot depend on how many pixels count.

    Returns:
        [B, C, h, w] in the image's type.
    """
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        region = region.to(dtype)
        held = region if move_samples else region.detach()
        if dense is None:
            dense = image.device.type != "cpu" or torch.compiler.is_exporting()
        view = image.to(dtype)
        for axis, source, target in ((1, image.shape[2], size[0]), (0, image.shape[3], size[1])):  # y, then x
            # centre and half side
            span, now = (torch.stack([each[:, axis], each[:, 2]], dim=1) for each in (region, held))
            pixels, weights = _triangles(now, source, target, antialias, dense)
            if steepness is not None:  # of the span, at the sample points of where it is held
                mask = boxcar(_sample_points(now, target), span[:, :1], span[:, 1:], steepness)
                weights = weights * mask[:, :, None]
            view = (_multiply if dense else _gather)(view, pixels, weights)
        return view.to(image.dtype)


CROPS: dict[str, Callable[..., Tensor]] = {"box": zoom}  # samplers by name, all called as ``zoom`` is


def _triangles(span: Tensor, source: int, target: int, antialias: bool, dense: bool) -> tuple[Tensor, Tensor]:
    """Return which pixels of an axis each sample reads and how it weighs them.

    Args:
        span: [B, 2], (centre, half side) of the region on the axis.
        source: Pixels of the image on the axis.
        target: Samples of the view.
        antialias: Whether triangles widen.
        dense: Whether every sample reads all pixels, most of them without weight.

    Returns:
        Pixel numbers, broadcast to [B, target, K], and weights [B, target, K], which add up to 1.
    """
    position = (_sample_points(span, target) + 1.0) * (source / 2.0)  # in pixels of the image, outer corner 0
    if not antialias:  # samples beyond the image, of a region that sticks out, read its edge pixel
        position = position.clamp(0.5, source - 0.5)
    support = torch.ones_like(span[:, 1:])  # image pixels per view pixel
    if antialias:
        support = (span[:, 1:] * (source / target)).clamp(min=1.0)
    if dense:
        pixels = torch.arange(source, device=span.device)[None, None]
    else:
        pixels = _some_pixels(position.detach(), support.detach(), source)
    distance = (position[:, :, None] - (pixels + 0.5)).abs() / support[:, :, None]
    weights = (1.0 - distance).clamp(min=0.0) * ((pixels >= 0) & (pixels < source))
    return pixels.clamp(0, source - 1), weights / weights.sum(dim=2, keepdim=True)


def _some_pixels(position: Tensor, support: Tensor, source: int) -> Tensor:
    """Return the numbers of the pixels that a triangle can reach, [B, target, K], some beyond the image."""
    # of a network that has diverged both may be NaN: its weights, not the choice of pixels, shall tell
    position = position.nan_to_num().clamp(-source, 2 * source)
    support = support.nan_to_num(nan=1.0).clamp(max=source)
    widest = float(support.max()) if support.numel() else 1.0
    reach = math.floor(2.0 * (widest + SLACK))
    first = (position - 0.5 - support - SLACK).ceil().long()
    return first[:, :, None] + torch.arange(reach + 1, device=position.device)


def _multiply(image: Tensor, pixels: Tensor, weights: Tensor) -> Tensor:
    """Return [B, C, W, n], the samples of the columns of an image [B, C, H, W], its axes swapped, by a product."""
    return image.transpose(2, 3) @ weights.transpose(1, 2)[:, None]


def _gather(image: Tensor, pixels: Tensor, weights: Tensor) -> Tensor:
    """Return the same from the few pixels that count, rows of the image at a time."""
    batch, channels, height, width = image.shape
    table = torch.arange(batch * channels, device=image.device).view(batch, channels, 1, 1) * height
    index = (pixels[:, None] + table).flatten(0, 2)  # [B * C * n, K] rows of the table
    weights = weights[:, None].expand(-1, channels, -1, -1).flatten(0, 2)
    rows = image.reshape(-1, width)
    sampled = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)
    return sampled.view(batch, channels, pixels.shape[1], width).transpose(2, 3)


def _sample_points(span: Tensor, target: int) -> Tensor:
    """Return where the samples of one axis lie in the image's frame, [B, target]."""
    return span[:, :1] + span[:, 1:] * pixel_centres(target, device=span.device, dtype=span.dtype)
