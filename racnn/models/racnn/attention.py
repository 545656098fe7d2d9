"""Soft attention over the cells of a map: what the mean over the map weighs more, and what less.

The deterministic soft attention of Xu et al., "Show, Attend and Tell", ICML 2015, without a query: a look
knows nothing yet when it weighs its cells.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CellAttention(nn.Module):
    """Weigh the cells of a map: ``e = v . tanh(W f + b)``, ``w = L softmax(e)`` over its L cells.

    The weights add up to L, not 1, so that the mean of weighed features is the weighted sum. Classifiers, and what says why, read the
    weighed map, networks that propose regions the map before. Weights start at exactly 1, where the mean is the plain one. Features are divided by their mean size
    first, as the attention proposal networks do.

    Args:
        channels: Channels of the features.
        hidden: Units between.
    """

    def __init__(self, channels: int, hidden: int = 128) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(channels, hidden, 1)
        self.score = nn.Conv2d(hidden, 1, 1, bias=False)  # a constant for all cells would change nothing
        nn.init.zeros_(self.score.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return weights [B, h, w], float32, of mean 1, of features [B, C, h, w]; autocast is switched off inside."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            features = features / features.abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
            scores = self.score(torch.tanh(self.hidden(features)))[:, 0]
            weights = (scores - scores.amax(dim=(1, 2), keepdim=True)).exp()
            return weights / weights.mean(dim=(1, 2), keepdim=True)
