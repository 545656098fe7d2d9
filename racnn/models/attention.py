"""Attention inside a network: which cells of a map count, and which channels.

All of it starts at exactly 1, so that loaded weights answer as they did before anything is learnt, and all of it reads features that are
divided by their mean size, as the attention proposal networks do, so that backbones of any scale of activation learn at the same rate.

Gates change the maps inside a trunk, after a stage of it: ``gate(maps, query)`` returns maps [B, C, h, w] of the type that it is given.
The query is the descriptor of the look before, [B, Q]; None where there is none.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CellAttention(nn.Module):
    """Weigh the cells of a map: ``e = v . tanh(W f + U q + b)``, ``w = L softmax(e)`` over its L cells.

    The deterministic soft attention of Xu et al., "Show, Attend and Tell", ICML 2015. The weights add up to L, not 1, so that the
    mean of weighed features is the weighted sum; they start at exactly 1.

    Args:
        channels: Channels of the features.
        hidden: Units between.
        query: Units of the query q; 0: there is none.
    """

    def __init__(self, channels: int, hidden: int = 128, query: int = 0) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(channels, hidden, 1)
        self.query = nn.Linear(query, hidden, bias=False) if query else None
        self.score = nn.Conv2d(hidden, 1, 1, bias=False)  # a constant for all cells would change nothing
        nn.init.zeros_(self.score.weight)

    def forward(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """Return weights [B, h, w], float32, of mean 1, of features [B, C, h, w]; autocast is switched off inside."""
        with _full_precision(features):
            hidden = self.hidden(_evened(features))
            if self.query is not None:
                hidden = hidden + _asked(self.query, query, hidden)[:, :, None, None]
            scores = self.score(torch.tanh(hidden))[:, 0]
            return _of_mean_one(scores.flatten(1)).view_as(scores)


class ChannelAttention(nn.Module):
    """Weigh the channels of a map by their means: ``e_c = v . tanh(w m_c + U_c q + b)``, ``w = C softmax(e)`` over its C channels.

    The channel-wise attention of Chen et al., "SCA-CNN", CVPR 2017, equations 5 and 6: one small network scores every channel from
    its mean and the query alone. The weights start at exactly 1.

    Args:
        channels: Channels of the features.
        hidden: Units between.
        query: Units of the query q; 0: there is none.
    """

    def __init__(self, channels: int, hidden: int = 16, query: int = 0) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, hidden)
        self.query = nn.Linear(query, channels, bias=False) if query else None
        self.score = nn.Linear(hidden, 1, bias=False)  # a constant for all channels would change nothing
        nn.init.zeros_(self.score.weight)

    def forward(self, features: Tensor, query: Tensor | None = None) -> Tensor:
        """Return weights [B, C], float32, of mean 1, of features [B, C, h, w]; autocast is switched off inside."""
        with _full_precision(features):
            hidden = self.hidden(_evened(features).mean(dim=(2, 3))[:, :, None])  # [B, C, hidden]
            if self.query is not None:
                hidden = hidden + _asked(self.query, query, hidden)[:, :, None]
            return _of_mean_one(self.score(torch.tanh(hidden))[:, :, 0])


class SCA(nn.Module):
    """Weigh channels, then cells, both steered by the look before: the order that Chen et al. (CVPR 2017) found best.

    Their weights add up to 1, which shrinks the maps by C h w; their code multiplies by constants, which no equation says. Here the
    mean weight is 1. They steer by the state of a language model, there is none here.

    Args:
        channels: Channels of the maps.
        query: Channels of the descriptor of the look before.
    """

    reads_query = True

    def __init__(self, channels: int, query: int) -> None:
        super().__init__()
        self.channel = ChannelAttention(channels, query=query)
        self.cell = CellAttention(channels, hidden=64, query=query)

    def forward(self, maps: Tensor, query: Tensor | None = None) -> Tensor:
        """Return the weighed maps."""
        maps = maps * self.channel(maps, query)[:, :, None, None].to(maps.dtype)
        return maps * self.cell(maps, query)[:, None].to(maps.dtype)


class CBAM(nn.Module):
    """Gate channels, then cells, each by a factor in (0, 2): Woo et al., "CBAM: Convolutional Block Attention Module", ECCV 2018.

    Channels by a shared small network of their mean and their maximum (equation 2), cells by a 7x7 convolution of the mean and the
    maximum over channels (equation 3). Theirs are sigmoids, near 1/2 at first, by which loaded features are quartered at
    every block; here they are doubled, and the last layers start at 0. There is no batch norm after the convolution. It reads no query.

    Args:
        channels: Channels of the maps.
        reduction: How many times fewer units the small network has between, at least 4.
    """

    reads_query = False

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, max(4, channels // reduction))
        self.channel = nn.Linear(self.hidden.out_features, channels, bias=False)
        self.cell = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        nn.init.zeros_(self.channel.weight)
        nn.init.zeros_(self.cell.weight)

    def forward(self, maps: Tensor, query: Tensor | None = None) -> Tensor:
        """Return the gated maps; autocast is switched off inside."""
        with _full_precision(maps):
            even = _evened(maps)
            pooled = even.mean(dim=(2, 3)), even.amax(dim=(2, 3))
            channel = 2.0 * torch.sigmoid(sum(self.channel(F.relu(self.hidden(each))) for each in pooled))
            even = even * channel[:, :, None, None]
            cell = torch.cat([even.amax(dim=1, keepdim=True), even.mean(dim=1, keepdim=True)], dim=1)
            factor = channel[:, :, None, None], 2.0 * torch.sigmoid(self.cell(cell))
        return maps * factor[0].to(maps.dtype) * factor[1].to(maps.dtype)


# By name: called with the channels of the maps and those of a look's descriptor.
GATES: dict[str, Callable[[int, int], nn.Module]] = {
    "cbam": lambda channels, query: CBAM(channels),
    "sca": SCA,
}


def _full_precision(like: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def _asked(layer: nn.Linear, query: Tensor | None, like: Tensor) -> Tensor:
    """Return what a layer makes of a query; without one of zeros, so that every parameter takes part in every step."""
    units: Tensor = layer(like.new_zeros(1, layer.in_features) if query is None else query.to(like.dtype))
    return units


def _evened(features: Tensor) -> Tensor:
    """Return features [B, C, h, w] of mean size 1, float32 at least."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features / features.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)


def _of_mean_one(scores: Tensor) -> Tensor:
    """Return the softmax of scores [B, n] times n; of equal scores it is exactly 1."""
    weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
    return weights / weights.mean(dim=1, keepdim=True)
