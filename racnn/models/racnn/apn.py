"""Attention proposal networks: from the features of a view to the region to look at next (equation 2).

Convention
    Regions are (tx, ty, tl) in the frame of the view that the features come from, see :mod:`racnn.ops.regions`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racnn.models.backbone import Backbone
from racnn.ops.regions import squash


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
        normalised: False: without those two normalisations, as checkpoints of format 1 were trained.
    """

    def __init__(
        self,
        *,
        channels: int,
        bounds: tuple[float, float],
        width: int = 64,
        hidden: int = 256,
        grid: int = 7,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.grid = grid
        self.normalised = normalised
        self.reduce = nn.Conv2d(channels, width, 1)
        self.hidden = nn.Linear(width * grid * grid, hidden)
        self.out = _middle_of_the_bounds(nn.Linear(hidden, 3))

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
    """

    def __init__(self, *, channels: int, cells: int, bounds: tuple[float, float], pool: bool) -> None:
        super().__init__()
        self.bounds = bounds
        self.pool = pool
        cells = cells // 2 if pool else cells
        self.hidden = nn.Linear(channels * cells * cells, 1024)
        self.out = _middle_of_the_bounds(nn.Linear(1024, 3))

    def forward(self, features: Tensor) -> Tensor:
        """Return regions [B, 3], float32, from features [B, C, h, w]; autocast is switched off inside."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.pool:
                features = F.max_pool2d(features, 2)
            return squash(self.out(torch.tanh(self.hidden(features.flatten(1)))), *self.bounds)


def build_apn(
    kind: str, backbone: Backbone, *, view_size: int, bounds: tuple[float, float], pool: bool
) -> nn.Module:
    """Return an attention proposal network by name: 'compact', 'paper' or 'compact_unnormalised'."""
    if kind == "paper":
        cells = view_size // backbone.stride
        return PaperAPN(channels=backbone.channels, cells=cells, bounds=bounds, pool=pool)
    assert kind in ("compact", "compact_unnormalised"), kind
    return CompactAPN(channels=backbone.channels, bounds=bounds, normalised=kind == "compact")


def _middle_of_the_bounds(layer: nn.Linear) -> nn.Linear:
    """Zero the last layer, so that the first proposal is the centred region in the middle of the bounds."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _pooling_matrix(cells: int, grid: int, like: Tensor) -> Tensor:
    """Return adaptive average pooling of one axis as a matrix [grid, cells]: its backward is deterministic."""
    return F.adaptive_avg_pool1d(torch.eye(cells, device=like.device, dtype=like.dtype), grid).T
