"""The zoom as others write it: a loop over the photos. Baselines of the benchmark, and oracles of its tests.

Convention
    Regions are (tx, ty, tl) in the frame of a square image, see :mod:`racnn.ops.regions`. Boxes of pixels have outer
    corners; the centre of pixel i lies at i + 0.5.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.ops.regions import to_boxes_xyxy


def sliced_loop(images: Tensor, regions: Tensor, *, side: int, steepness: float | None) -> Tensor:
    """Slice the box of whole pixels out of each image, resize it, and multiply by the mask at the view's samples.

    As fast as one can be without a batched operation: nothing is done to pixels outside the box, and the derivative is
    autograd's. It moves the box over its mask alone, since a slice has none in its corners. A resized slice repeats
    its own edge where the kernel of :func:`racnn.ops.crop.zoom` reads the pixels beyond; elsewhere the two agree where
    boxes fall on whole pixels.

    Args:
        images: [B, C, S, S].
        regions: [B, 3].
        side: Side of the square views.
        steepness: Steepness of the mask, per unit of the frame; None applies none.

    Returns:
        [B, C, side, side].
    """
    boxes = to_boxes_xyxy(regions.detach(), (images.shape[-2], images.shape[-1])).round().long().tolist()
    samples = (torch.arange(side, device=images.device) * 2.0 + 1.0) / side - 1.0  # of the region
    views = []
    # unbound first: a slice of the batch would fill a gradient as large as the batch for every photo
    for image, region, (x0, y0, x1, y1) in zip(images.unbind(), regions, boxes, strict=True):
        crop = image[None, :, y0:y1, x0:x1]
        view = F.interpolate(crop, (side, side), mode="bilinear", align_corners=False, antialias=True)[0]
        if steepness is not None:
            inside = torch.sigmoid(steepness * region[2] * (samples + 1.0))
            mask = inside - torch.sigmoid(steepness * region[2] * (samples - 1.0))
            view = view * mask[:, None] * mask
        views.append(view)
    return torch.stack(views)


def published_loop(images: Tensor, regions: Tensor, *, side: int, k: float) -> Tensor:
    """Cut views as public implementations of RA-CNN do, see :class:`PublishedZoom`.

    Args:
        images: [B, C, S, S].
        regions: [B, 3].
        side: Side of the square views.
        k: Steepness of the mask per pixel, as in the paper.

    Returns:
        [B, C, side, side].
    """
    half = images.shape[-1] / 2.0
    corner = regions.new_tensor([half, half, 0.0])
    views: Tensor = PublishedZoom.apply(images, regions * half + corner, side, k)
    return views


class PublishedZoom(torch.autograd.Function):
    """Equations 4 to 7 and 11 to 13 written out, photo by photo, over all pixels of the photo.

    The mask is made of four logistic functions of every pixel of every channel, as PyTorch copies do, and multiplied
    with the whole photo; then the box is sliced out of that and resized. The backward pass is written by hand: the
    derivatives of the mask in tx, ty and tl, again of every pixel of every channel as in the authors' released layer,
    are summed against the gradient that reaches the masked photo. Where those add constants or square the gradient,
    this is the derivative of the mask, with the slice held where it is; it costs the same.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, squares: Tensor, side: int, k: float) -> Tensor:
        """Return views [B, C, side, side] of squares [B, 3]: centre and half side in pixels."""
        ctx.save_for_backward(images, squares)
        ctx.k = k
        views = []
        for image, square in zip(images, squares, strict=True):
            left, right, top, bottom = _edges(image, square, k)
            attended = image * ((left - right) * (top - bottom))
            x0, y0, x1, y1 = _slice_of(square, image.shape[-1])
            crop = attended[None, :, y0:y1, x0:x1]
            views.append(F.interpolate(crop, (side, side), mode="bilinear", align_corners=True)[0])
        return torch.stack(views)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients in the images and in the squares."""
        images, squares = ctx.saved_tensors
        to_images, to_squares = torch.empty_like(images), torch.empty_like(squares)
        for i, (image, square) in enumerate(zip(images, squares, strict=True)):
            left, right, top, bottom = _edges(image, square, ctx.k)
            columns, rows = left - right, top - bottom
            left, right, top, bottom = (ctx.k * h * (1.0 - h) for h in (left, right, top, bottom))
            slopes = (  # of the mask in tx, ty and tl, [C, S, S] each
                (right - left) * rows,
                (bottom - top) * columns,
                (left + right) * rows + (top + bottom) * columns,
            )
            x0, y0, x1, y1 = _slice_of(square, image.shape[-1])
            reaching = torch.zeros_like(image)  # the gradient in the masked photo
            reaching[:, y0:y1, x0:x1] = _resize_backward(gradients[0][i], (y1 - y0, x1 - x0))
            to_images[i] = reaching * (columns * rows)
            for j, slope in enumerate(slopes):
                to_squares[i, j] = (reaching * image * slope).sum()
        return to_images, to_squares, None, None


def _edges(image: Tensor, square: Tensor, k: float) -> tuple[Tensor, ...]:
    """Return the logistic functions of every pixel at the left, right, top and bottom edge, [C, S, S] each."""
    tx, ty, tl = square
    pixels = torch.arange(image.shape[-1], device=image.device, dtype=image.dtype) + 0.5
    y, x = (grid.repeat(len(image), 1, 1) for grid in torch.meshgrid(pixels, pixels, indexing="ij"))
    distances = (x - (tx - tl), x - (tx + tl), y - (ty - tl), y - (ty + tl))
    return tuple(1.0 / (1.0 + torch.exp(-k * distance)) for distance in distances)


def _slice_of(square: Tensor, side: int) -> tuple[int, ...]:
    tx, ty, tl = square.tolist()
    return tuple(min(max(round(edge), 0), side) for edge in (tx - tl, ty - tl, tx + tl, ty + tl))


def _resize_backward(gradient: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the gradient in an image of a size, given that in its bilinear resizing with aligned corners."""
    shape = (1, len(gradient), *size)
    resize_backward = torch.ops.aten.upsample_bilinear2d_backward
    return resize_backward(gradient[None], gradient.shape[-2:], shape, True, None, None)[0]
