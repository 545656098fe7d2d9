"""The zoom: cut a region out of an image and sample it to a view of any size, one axis after the other.

Convention
    Regions are squares (tx, ty, tl) or rectangles (tx, ty, sx, sy) in the frame of the image, see :mod:`racnn.ops.regions`; sizes are (h, w);
    ``align_corners=False``: sample i of n lies at ``(2 i + 1) / n - 1`` of the region. A sample reads image pixels
    beyond the region's edge where its kernel reaches them, and repeats the edge of the image itself; one that lies beyond the image
    is taken at its edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.ops.mask import boxcar, pixel_centres
from racnn.ops.regions import halves

REACH = 5.0  # standard deviations of a Gaussian, beyond which it is 0
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
        region: [B, 3], or rectangles [B, 4]: what a spatial transformer without shear or turning cuts (Jaderberg et al.,
            "Spatial Transformer Networks", NeurIPS 2015, equation 2; here with anti-aliasing).
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
    return _sampled(
        image,
        region,
        size,
        _Triangle(antialias),
        steepness=steepness,
        move_samples=move_samples,
        dense=dense,
    )


def cut(
    image: Tensor,
    region: Tensor,
    size: tuple[int, int],
    *,
    antialias: bool = True,
    steepness: float | None = None,
    move_samples: bool = True,
    dense: bool | None = None,
) -> Tensor:
    """Cut the whole pixels nearest to a region out, at least one each way, and resize them to a view: hard attention.

    Unlike :func:`zoom` it reads no pixel beyond them, stretches what is left of a region that sticks out of the image, and lets no
    derivative reach the region, so that only what needs none can teach it. Arguments as there.
    """
    centre, half = region[:, :2].detach(), halves(region.detach())
    centres, sides = [], []
    for axis, pixels in ((0, image.shape[3]), (1, image.shape[2])):
        at, by = centre[:, axis], half[:, axis]
        low = ((at - by + 1.0) / 2.0 * pixels).round().clamp(0.0, pixels - 1.0)
        high = torch.maximum(((at + by + 1.0) / 2.0 * pixels).round().clamp(max=pixels), low + 1.0)
        centres.append((low + high) / pixels - 1.0)
        sides.append((high - low) / pixels)
    box = torch.stack([*centres, *sides], dim=1)
    return _sampled(
        image,
        box,
        size,
        _Triangle(antialias, inside=True),
        steepness=steepness,
        move_samples=False,
        dense=dense,
    )


def gaussian(
    image: Tensor,
    region: Tensor,
    size: tuple[int, int],
    *,
    sigma: float = 0.5,
    antialias: bool = True,
    steepness: float | None = None,
    move_samples: bool = True,
    dense: bool | None = None,
) -> Tensor:
    """Sample a region by a grid of Gaussians: DRAW's glimpse.

    Gregor et al., "DRAW: A Recurrent Neural Network For Image Generation", ICML 2015, the selective attention. Its grid is that
    of :func:`zoom`: a stride of d pixels between N filters is ``tl = N d / W``. Unlike there the width is no output of a network but a multiple of the
    stride, there is no factor of intensity, and a filter beyond the edge reads the edge, where theirs reads little or nothing.
    Rows add up to 1 over the pixels within :data:`REACH` standard deviations.

    Args:
        image: [B, C, H, W], any floating type.
        region: [B, 3], or rectangles [B, 4], see :func:`zoom`.
        size: (h, w) of the view in pixels.
        sigma: Standard deviation, in spacings of the samples or, where these are closer, in pixels of the image.
        antialias: Must be true: a Gaussian is as wide as it is.
        steepness: Steepness of the mask, see :func:`zoom`; None applies no mask.
        move_samples: Whether the derivative in the region follows the sample points, see :func:`zoom`.
        dense: Whether whole matrices are multiplied, see :func:`zoom`.

    Returns:
        [B, C, h, w] in the image's type.
    """
    assert antialias, "a Gaussian has its width"
    return _sampled(
        image, region, size, _Gaussian(sigma), steepness=steepness, move_samples=move_samples, dense=dense
    )


# the affine sampler is the zoom of rectangles, which networks propose for it
SAMPLERS: dict[str, Callable[..., Tensor]] = {"zoom": zoom, "crop": cut, "gaussian": gaussian, "affine": zoom}


@dataclass(frozen=True)
class _Triangle:
    """A triangle that falls from a sample to 0 at the next one, or at the next pixel where these are further apart.

    With ``inside`` pixels beyond the region are not read.
    """

    antialias: bool
    inside: bool = False

    def support(self, spacing: Tensor) -> Tensor:
        return spacing.clamp(min=1.0) if self.antialias else torch.ones_like(spacing)

    def margin(self) -> float:
        """Return how far inside the edge of the image samples are taken at least, in pixels."""
        return 0.0 if self.antialias else 0.5

    def weights(self, distance: Tensor, spacing: Tensor, valid: Tensor) -> Tensor:
        weights = (1.0 - distance / self.support(spacing)).clamp(min=0.0) * valid
        return weights / weights.sum(dim=2, keepdim=True)


@dataclass(frozen=True)
class _Gaussian:
    """A bell of a standard deviation in spacings, cut off where it is next to nothing."""

    sigma: float
    inside: bool = False

    def support(self, spacing: Tensor) -> Tensor:
        return (REACH * self.sigma * spacing.clamp(min=1.0)).clamp(min=1.0)  # one pixel at least is near

    def margin(self) -> float:
        return 0.0

    def weights(self, distance: Tensor, spacing: Tensor, valid: Tensor) -> Tensor:
        logs = -0.5 * (distance / (self.sigma * spacing.clamp(min=1.0))).square()
        return logs.masked_fill(~(valid & (distance <= self.support(spacing))), -math.inf).softmax(dim=2)


def _sampled(
    image: Tensor,
    region: Tensor,
    size: tuple[int, int],
    kernel: _Triangle | _Gaussian,
    *,
    steepness: float | None,
    move_samples: bool,
    dense: bool | None,
) -> Tensor:
    """Return the views of :func:`zoom` by any kernel."""
    dtype = torch.promote_types(image.dtype, torch.float32)
    with torch.autocast(image.device.type, enabled=False):
        region = region.to(dtype)
        spans = torch.cat([region[:, :2], halves(region)], dim=1)
        held = spans if move_samples else spans.detach()
        if dense is None:
            dense = image.device.type != "cpu" or torch.compiler.is_exporting()
        view = image.to(dtype)
        for axis, source, target in ((1, image.shape[2], size[0]), (0, image.shape[3], size[1])):  # y, then x
            span, now = (each[:, axis::2] for each in (spans, held))  # centre and half side
            pixels, weights = _kernels(now, source, target, kernel, dense)
            if steepness is not None:  # of the span, at the sample points of where it is held
                mask = boxcar(_sample_points(now, target), span[:, :1], span[:, 1:], steepness)
                weights = weights * mask[:, :, None]
            view = (_multiply if dense else _gather)(view, pixels, weights)
        return view.to(image.dtype)


def _kernels(
    span: Tensor, source: int, target: int, kernel: _Triangle | _Gaussian, dense: bool
) -> tuple[Tensor, Tensor]:
    """Return which pixels of an axis each sample reads and how it weighs them.

    Args:
        span: [B, 2], (centre, half side) of the region on the axis.
        source: Pixels of the image on the axis.
        target: Samples of the view.
        kernel: What weighs them.
        dense: Whether every sample reads all pixels, most of them without weight.

    Returns:
        Pixel numbers, broadcast to [B, target, K], and weights [B, target, K], which add up to 1.
    """
    position = (_sample_points(span, target) + 1.0) * (source / 2.0)  # in pixels of the image, outer corner 0
    low, high = (
        torch.zeros_like(span[:, :1]),
        torch.full_like(span[:, :1], source),
    )  # of the pixels that are read
    if kernel.inside:
        low, high = ((span[:, :1] + side * span[:, 1:] + 1.0) * (source / 2.0) for side in (-1.0, 1.0))
    position = torch.minimum(torch.maximum(position, low + kernel.margin()), high - kernel.margin())
    spacing = span[:, 1:] * (source / target)  # of the samples, in pixels
    if dense:
        pixels = torch.arange(source, device=span.device)[None, None]
    else:
        pixels = _some_pixels(position.detach(), kernel.support(spacing).detach(), source)
    distance = (position[:, :, None] - (pixels + 0.5)).abs()
    middle = pixels + 0.5
    weights = kernel.weights(
        distance, spacing[:, :, None], (middle > low[:, :, None]) & (middle < high[:, :, None])
    )
    return pixels.clamp(0, source - 1), weights


def _some_pixels(position: Tensor, support: Tensor, source: int) -> Tensor:
    """Return the numbers of the pixels that a kernel can reach, [B, target, K], some beyond the image."""
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
