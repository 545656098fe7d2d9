"""Response maps, and boxes read from them: the teacher of the attention proposal networks.

Convention
    A response map is [B, h, w], non-negative where something is; cell (i, j) covers the frame from
    ``2 j / w - 1`` to ``2 (j + 1) / w - 1`` in x and likewise in y. Regions as in :mod:`racnn.ops.regions`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.ops.mask import pixel_centres
from racnn.ops.regions import bounding_region, clamp

UNASKED = (
    1024  # rounds on a GPU before the host waits for that, milliseconds; enough for maps of 39 x 39 cells
)
ROUNDS = 16  # of spreading labels, between two looks at whether any still changes


def evidence_map(features: Tensor, contrast: Tensor) -> Tensor:
    """Return what each cell [B, h, w] of features [B, C, h, w] adds to a photo's weights [B, C], where that is positive."""
    return F.relu(torch.einsum("bc,bchw->bhw", contrast, features.float()))


def peak_region(point: Tensor, half_side: float = 0.5) -> Tensor:
    """Return the paper's start: a square of fixed size centred on the highest response, [B, 3] regions inside the image.

    Args:
        point: [B, 2], from :func:`peak_point`.
        half_side: ``tl`` of the square; the paper's "half the side" is 0.5.
    """
    return clamp(torch.cat([point, torch.full_like(point[:, :1], half_side)], dim=1))


def peak_point(response: Tensor) -> Tensor:
    """Return the centre (x, y) of the cell with the highest response, [B, 2] from [B, h, w]."""
    _batch, height, width = response.shape
    place = response.flatten(1).argmax(dim=1)
    x = pixel_centres(width, device=response.device)[place % width]
    y = pixel_centres(height, device=response.device)[place // width]
    return torch.stack([x, y], dim=1)


def component_region(response: Tensor, level: float = 0.0, trim: float = 0.0) -> Tensor:
    """Return the bounding square of :func:`component_box`, [B, 3] regions inside the image."""
    return bounding_region(component_box(response, level, trim))


def component_box(response: Tensor, level: float = 0.0, trim: float = 0.0) -> Tensor:
    """Return the box around the largest connected part of the map above a threshold.

    The rule of the object localisation in MMAL-Net and of the crop in WS-DAN, here batched and on the device, and with
    ``trim``, which is ours: a leg, a twig or a shadow that hangs on the object by a few weak cells no longer widens the
    box. The paper takes a square of fixed size at the maximum (:func:`peak_region`).

    Args:
        response: [B, h, w].
        level: Height of the threshold from the map's mean (0) to its maximum (1, exclusive). MMAL-Net's rule is 0.
        trim: Share of the part's mass, its response above the threshold, that the box may leave out at each of its
            four sides; below 0.5. The borders then lie within cells. 0 is the two papers' rule.

    Returns:
        [B, 4] as (x0, y0, x1, y1) in the frame; the whole image where the map is constant.
    """
    response = response.float()
    mean = response.mean(dim=(1, 2), keepdim=True)
    peak = response.amax(dim=(1, 2), keepdim=True)
    threshold = mean + level * (peak - mean)
    component = largest_component(response > threshold)
    box = torch.cat([_extent(component.any(dim=axis)) for axis in (1, 2)], dim=1)  # x0, x1, y0, y1
    if trim > 0.0:
        mass = (response - threshold).clamp(min=0.0) * component
        trimmed = torch.cat([_trimmed_extent(mass.sum(dim=axis), trim) for axis in (1, 2)], dim=1)
        # constant but for rounding: there is nothing to trim
        flat = (peak - mean <= 1e-5 * peak.abs())[:, :, 0]
        box = torch.where(flat, box, trimmed)
    return box[:, [0, 2, 1, 3]]


def largest_component(mask: Tensor) -> Tensor:
    """Return only the largest 8-connected component of each mask [B, h, w]; all True where a mask is empty.

    Labels spread by max-pooling inside the mask. A path through n cells that never touches itself is shorter than
    (2/3) n, so that many rounds suffice. Most masks need far fewer: on a CPU, and of large maps, whether anything still
    changed is asked now and then. A GPU's host would wait for the answer, and is not asked about small ones; nor is an exported graph, which has no host.
    """
    batch, height, width = mask.shape
    cells = height * width
    start = torch.arange(1, cells + 1, device=mask.device, dtype=torch.float32).view(1, 1, height, width)
    inside = mask[:, None].float()
    labels = start * inside
    left = 2 * cells // 3 + 1
    rounds = ROUNDS if mask.device.type == "cpu" else UNASKED
    if torch.compiler.is_exporting():
        rounds = left
    while left > 0:
        before = labels
        for _ in range(min(left, rounds)):
            labels = F.max_pool2d(labels, 3, stride=1, padding=1) * inside
        left -= rounds
        if left > 0 and torch.equal(labels, before):
            break
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


def _trimmed_extent(mass: Tensor, trim: float) -> Tensor:
    """Return the frame coordinates [B, 2] between which all but a share ``trim`` at either end of a mass [B, n] lies."""
    num = mass.shape[1]
    if mass.device.type == "cpu":
        share = mass.cumsum(dim=1)
    else:  # whose own cumsum may differ from run to run
        share = mass @ torch.ones(num, num, device=mass.device).triu()
    share = share / mass.sum(dim=1, keepdim=True).clamp(min=1e-30)
    share = F.pad(share, (1, 0))  # [B, n + 1] at the cells' borders, even within a cell
    ends = []
    for wanted in (trim, 1.0 - trim):
        cell = (share < wanted).sum(dim=1, keepdim=True).clamp(1, num)  # the border after the wanted share
        before, after = share.gather(1, cell - 1), share.gather(1, cell)
        part = ((wanted - before) / (after - before).clamp(min=1e-30)).clamp(0.0, 1.0)
        ends.append(cell - 1 + part)
    return torch.cat(ends, dim=1) * (2.0 / num) - 1.0
