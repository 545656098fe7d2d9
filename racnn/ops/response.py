"""Read a box from a response map: the teacher of the attention proposal networks.

Convention
    A response map is [B, h, w], non-negative where something is; cell (i, j) covers the frame from
    ``2 j / w - 1`` to ``2 (j + 1) / w - 1`` in x and likewise in y. Regions as in :mod:`racnn.ops.regions`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.ops.boxmask import pixel_centres
from racnn.ops.regions import bounding_region, clamp


def peak_region(response: Tensor, half_side: float = 0.5) -> Tensor:
    """Return the paper's start: a square of fixed size centred on the highest response.

    Args:
        response: [B, h, w].
        half_side: ``tl`` of the square; the paper's "half the side" is 0.5.

    Returns:
        [B, 3], moved inside the image where it would stick out.
    """
    _batch, height, width = response.shape
    place = response.flatten(1).argmax(dim=1)
    x = pixel_centres(width, device=response.device)[place % width]
    y = pixel_centres(height, device=response.device)[place // width]
    return clamp(torch.stack([x, y, torch.full_like(x, half_side)], dim=1))


def component_region(response: Tensor, level: float = 0.0) -> Tensor:
    """Return the bounding square of the largest connected part of the map above a threshold.

    The rule of the object localisation in MMAL-Net and of the crop in WS-DAN, here batched and without leaving the
    device. The paper takes a square of fixed size at the maximum instead (:func:`peak_region`).

    Args:
        response: [B, h, w].
        level: Height of the threshold from the map's mean (0) to its maximum (1, exclusive). MMAL-Net's rule is 0.

    Returns:
        [B, 3] regions inside the image; the whole image where the map is constant.
    """
    response = response.float()
    mean = response.mean(dim=(1, 2), keepdim=True)
    above = response > mean + level * (response.amax(dim=(1, 2), keepdim=True) - mean)
    component = largest_component(above)
    box = torch.cat([_extent(component.any(dim=1)), _extent(component.any(dim=2))], dim=1)  # x0, x1, y0, y1
    return bounding_region(box[:, [0, 2, 1, 3]])


def largest_component(mask: Tensor) -> Tensor:
    """Return only the largest 8-connected component of each mask; all True where a mask is empty.

    Labels spread by max-pooling inside the mask. A path through n cells that never touches itself is shorter than
    (2/3) n, so that many rounds suffice without asking the device whether anything still changed.

    Args:
        mask: [B, h, w] bool.

    Returns:
        [B, h, w] bool.
    """
    batch, height, width = mask.shape
    cells = height * width
    start = torch.arange(1, cells + 1, device=mask.device, dtype=torch.float32).view(1, 1, height, width)
    inside = mask[:, None].float()
    labels = start * inside
    for _ in range(2 * cells // 3 + 1):
        labels = F.max_pool2d(labels, 3, stride=1, padding=1) * inside
    flat = labels.flatten(1).long()  # [B, h*w]
    counts = torch.zeros(batch, cells + 1, device=mask.device, dtype=torch.long)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    counts[:, 0] = 0  # the background is no component; if nothing else is there, label 0 wins and all is True
    winner = counts.argmax(dim=1, keepdim=True)
    return (flat == winner).view(batch, height, width)


def _extent(occupied: Tensor) -> Tensor:
    """Return the frame coordinates [B, 2] where the first occupied cell begins and the last one ends."""
    num = occupied.shape[1]
    index = torch.arange(num, device=occupied.device)
    first = torch.where(occupied, index, num).amin(dim=1)
    last = torch.where(occupied, index, -1).amax(dim=1) + 1
    return torch.stack([first, last], dim=1).float() * (2.0 / num) - 1.0
