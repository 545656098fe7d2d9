"""Attention proposal networks: from the features of a view to the region to look at next (equation 2).

Two sorts: networks that learn the region by gradient steps, and proposals that read it from a response map, whose one or no
direction is found in a single pass over the training photos (:mod:`racnn.models.racnn.looks`).

Convention
    Regions are (tx, ty, tl) in the frame of the view that the features come from, see :mod:`racnn.ops.regions`; with two ``sides``
    rectangles (tx, ty, sx, sy).
    ``reads`` says what of a view a proposal is made from: its 'features', the 'inner' map, or the 'evidence' for its class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.models.backbone import Backbone
from racnn.ops.ddt import CommonPart
from racnn.ops.heatmap import component_box, peak_point, peak_region
from racnn.ops.regions import bounding_region, clamp, squash


class CompactAPN(nn.Module):
    """Propose a region through a 1x1 convolution, a 7x7 pooled map and two small layers.

    The paper flattens the full feature map into 1024 units: 100 million weights at 14x14x512. A globally pooled
    vector cannot say where. This keeps a coarse map and is some 60 times smaller. The features are divided by their
    mean, so that backbones of any scale of activation learn at the same rate. The pooled map and the hidden layer are
    normalised: a step of Adam moves all weights of a unit the same way where its thousands of inputs are all positive,
    and a few such steps leave the tanh at its ends, without a derivative.

    Args:
        channels: Channels of the features.
        bounds: Least and largest side of the region, fractions of the view's side.
        width: Channels after the 1x1 convolution.
        hidden: Units of the hidden layer.
        grid: Cells per side of the pooled map.
        sides: 1 for squares, 2 for rectangles.
        normalised: False: without those two normalisations, as checkpoints of format 1 were trained.
    """

    reads = "features"

    def __init__(
        self,
        *,
        channels: int,
        bounds: tuple[float, float],
        width: int = 64,
        hidden: int = 256,
        grid: int = 7,
        sides: int = 1,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.grid = grid
        self.normalised = normalised
        self.reduce = nn.Conv2d(channels, width, 1)
        self.hidden = nn.Linear(width * grid * grid, hidden)
        self.out = _middle_of_the_bounds(nn.Linear(hidden, 2 + sides))

    def forward(self, features: Tensor) -> Tensor:
        """Return regions [B, 3], float32, from features [B, C, h, w]; autocast is switched off inside."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            features = features / features.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
            maps = F.relu(self.reduce(features))  # [B, width, h, w]
            rows = _pooling_matrix(maps.shape[2], self.grid, maps)
            columns = _pooling_matrix(maps.shape[3], self.grid, maps)
            pooled = (rows @ maps @ columns.T).flatten(1)  # [B, width * grid * grid]
            hidden = self.hidden(self._normalise(pooled))
            return squash(self.out(torch.tanh(self._normalise(hidden))), *self.bounds)

    def _normalise(self, units: Tensor) -> Tensor:
        return F.layer_norm(units, units.shape[1:]) if self.normalised else units


class PaperAPN(nn.Module):
    """Propose a region as the paper does: flatten, 1024 units, tanh, 3 units; bounded, unlike the paper's.

    Args:
        channels: Channels of the features.
        cells: Cells per side of the feature map, which the flattened layer is tied to.
        bounds: Least and largest side of the region, fractions of the view's side.
        pool: Max-pool 2x2 first, which the paper does at scale 1.
        sides: 1 for squares, 2 for rectangles.
    """

    reads = "features"

    def __init__(
        self, *, channels: int, cells: int, bounds: tuple[float, float], pool: bool, sides: int = 1
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.pool = pool
        cells = cells // 2 if pool else cells
        self.hidden = nn.Linear(channels * cells * cells, 1024)
        self.out = _middle_of_the_bounds(nn.Linear(1024, 2 + sides))

    def forward(self, features: Tensor) -> Tensor:
        """Return regions [B, 3], float32, from features [B, C, h, w]; autocast is switched off inside."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.pool:
                features = F.max_pool2d(features, 2)
            return squash(self.out(torch.tanh(self.hidden(features.flatten(1)))), *self.bounds)


class ObjectProposal(nn.Module):
    """Propose the box around what the training photos have in common, see :mod:`racnn.ops.ddt`; nothing is trained.

    Args:
        channels: Channels of the inner map.
        bounds: Least and largest side of the region, fractions of the view's side.
        level: Height of the threshold from the response's mean (0) to its maximum (1).
        trim: Share of the response that the box leaves out a side.
        margin: Factor of the box's sides.
        sides: 1 for the bounding square, 2 for the box itself.
    """

    reads = "inner"
    mean: Tensor
    direction: Tensor

    def __init__(
        self,
        *,
        channels: int,
        bounds: tuple[float, float],
        level: float = 0.2,
        trim: float = 0.02,
        margin: float = 1.1,
        sides: int = 1,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.level, self.trim, self.margin, self.sides = level, trim, margin, sides
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("direction", torch.zeros(channels))  # responds nowhere: the whole view

    def forward(self, inner: Tensor) -> Tensor:
        """Return regions [B, 3], float32, from the inner map [B, C, h, w]; autocast is switched off inside."""
        with torch.autocast(inner.device.type, enabled=False):
            response = CommonPart(self.mean, self.direction).response(inner)
            region = bounding_region(component_box(response, self.level, self.trim), self.sides)
            grown = torch.cat([region[:, :2], self.margin * region[:, 2:]], dim=1)
            return clamp(grown, *self.bounds)


class PartProposal(nn.Module):
    """Propose a square of fixed side where a view holds most evidence for the class that it is taken for.

    The start that the paper gives its APNs, the highest response (section 3.3), with the class activation as the response;
    nothing is trained.

    Args:
        bounds: Least and largest side of the region; the square's side is ``side`` within them.
        side: As a fraction of the view's side.
    """

    reads = "evidence"

    def __init__(self, *, bounds: tuple[float, float], side: float = 0.65) -> None:
        super().__init__()
        self.side = min(max(side, bounds[0]), bounds[1])

    def forward(self, evidence: Tensor) -> Tensor:
        """Return regions [B, 3], float32, from the evidence of each cell [B, h, w]; the middle where it is all the same."""
        smooth = F.avg_pool2d(evidence[:, None].float(), 3, stride=1, padding=1, count_include_pad=False)
        point = peak_point(smooth[:, 0])
        flat = (smooth.amax(dim=(2, 3)) <= smooth.amin(dim=(2, 3))).expand_as(point)
        return peak_region(torch.where(flat, 0.0, point), self.side)


def build_apn(
    kind: str,
    backbone: Backbone,
    *,
    view_size: int,
    bounds: tuple[float, float],
    scale: int,
    sides: int = 1,
    parallel: bool = False,
) -> nn.Module:
    """Return what proposes the region after a scale, by name: 'compact', 'paper', 'compact_unnormalised' or 'response'.

    Args:
        kind: The name.
        backbone: What makes the features that it reads.
        view_size: Side in pixels of the view that these are of.
        bounds: Least and largest side of the region.
        scale: Counted from 1.
        sides: 1 for squares, 2 for rectangles; the parts of 'response' are squares of their views.
        parallel: It reads the first view, whatever the scale.
    """
    if kind == "response":
        if scale > 1:
            return PartProposal(bounds=bounds)
        return ObjectProposal(channels=backbone.inner_channels(), bounds=bounds, sides=sides)
    if kind == "paper":
        cells, pool = view_size // backbone.stride, parallel or scale == 1
        return PaperAPN(channels=backbone.channels, cells=cells, bounds=bounds, pool=pool, sides=sides)
    assert kind in ("compact", "compact_unnormalised"), kind
    return CompactAPN(channels=backbone.channels, bounds=bounds, sides=sides, normalised=kind == "compact")


def _middle_of_the_bounds(layer: nn.Linear) -> nn.Linear:
    """Zero the last layer, so that the first proposal is the centred region in the middle of the bounds."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _pooling_matrix(cells: int, grid: int, like: Tensor) -> Tensor:
    """Return adaptive average pooling of one axis as a matrix [grid, cells]: its backward is deterministic."""
    return F.adaptive_avg_pool1d(torch.eye(cells, device=like.device, dtype=like.dtype), grid).T
