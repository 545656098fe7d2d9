"""Activation checkpointing: keep few activations of a trunk, and compute the others again in the backward pass.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016: for one more forward pass the memory falls to about
the square root. The gradients are the same, and batch norm counts every batch once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_in_segments(layers: nn.Sequential, view: Tensor) -> Tensor:
    """Return ``layers(view)``; between its segments alone are activations kept for the backward pass."""
    if not torch.is_grad_enabled():
        return layers(view)
    num = max(1, round(math.sqrt(len(layers))))
    ends = [round(i * len(layers) / num) for i in range(num + 1)]
    for start, end in pairwise(ends):
        segment = layers[start:end]

        def contexts(
            part: nn.Module = segment,
        ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _batch_norm_counts_nothing(part)

        view = checkpoint(segment, view, use_reentrant=False, context_fn=contexts)
    return view


@contextmanager
def _batch_norm_counts_nothing(part: nn.Module) -> Iterator[None]:
    """Keep batch norm from taking a batch that is computed again into its running statistics again."""
    layers = [layer for layer in part.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [(layer, layer.momentum, _copy(layer.num_batches_tracked)) for layer in layers]
    for layer in layers:
        layer.momentum = (
            0.0  # not track_running_stats: checkpoint compares what is saved for the backward pass
        )
    try:
        yield
    finally:
        for layer, momentum, count in before:
            layer.momentum = momentum
            layer.num_batches_tracked = count


def _copy(count: Tensor | None) -> Tensor | None:
    return None if count is None else count.clone()
