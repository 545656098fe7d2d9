"""How much each scale's answer should count, fitted on photos that the scales were not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from racnn.models.racnn.heads import Head

# Standard deviation of the logarithm of a weight's factor: nearly always within 2.7 times the mean, or its inverse.
PRIOR = 0.5


def pool_weights(logits: Sequence[Tensor], labels: Tensor) -> list[float]:
    """Return the weights of the scales' logits whose weighted sum explains the labels best.

    A logarithmic opinion pool. Training photos cannot tell the weights, for there every scale is nearly always
    right. The weights need not sum to 1: their sum is an inverse temperature, so that the pool is calibrated too, where
    classifiers trained with label smoothing are too shy. A weight is 1 / S times a factor whose logarithm has a normal
    prior around 0, so that a few photos move the weights little from the plain mean, and none becomes negative.

    Args:
        logits: [N, C] per scale, of photos that the scales were not trained on.
        labels: [N].
    """
    stacked = torch.stack(list(logits)).double()
    log_factors = torch.zeros(len(stacked), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_factors], max_iter=100, line_search_fn="strong_wolfe")

    def negative_log_posterior() -> Tensor:
        optimizer.zero_grad()
        weights = log_factors.exp() / len(stacked)
        pooled = torch.einsum("s,snc->nc", weights, stacked)
        loss = F.cross_entropy(pooled, labels, reduction="sum") + (log_factors / PRIOR).square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(negative_log_posterior)
    weights: list[float] = (log_factors.detach().exp() / len(stacked)).tolist()
    return weights


def pooled_loss(logits: Sequence[Tensor], labels: Tensor) -> float:
    """Return the mean negative log-probability of labels [N] by :func:`pool_weights` of the logits [N, C] of these photos."""
    weights = pool_weights(logits, labels)
    pooled = torch.stack([weight * each.double() for weight, each in zip(weights, logits, strict=True)]).sum(
        0
    )
    return F.cross_entropy(pooled, labels).item()


def weights_out_of_fold(heads: Sequence[Head], labels: Tensor) -> list[float]:
    """Return :func:`pool_weights` of the answers of heads that have not seen the photos, equal ones where there are none."""
    known = heads[0].answered
    if not known.any():
        return [1.0 / len(heads)] * len(heads)
    return pool_weights([head.answers[known] for head in heads], labels[known])
