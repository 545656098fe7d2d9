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


def run_in_segments(trunk: nn.Module, view: Tensor) -> Tensor:
    """Return ``trunk(view)``; between its segments alone are activations kept for the backward pass.

    A trunk that is no plain sequence of layers is one segment: then no more than one scale's activations are there at a
    time.
    """
    if not torch.is_grad_enabled():
        features: Tensor = trunk(view)
        return features
    for segment in _segments(trunk):

        def contexts(
            part: nn.Module = segment,
        ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _batch_norm_counts_nothing(part)

        view = checkpoint(segment, view, use_reentrant=False, context_fn=contexts)
    return view


def _segments(trunk: nn.Module) -> list[nn.Module]:
    if not isinstance(trunk, nn.Sequential):
        return [trunk]
    num = max(1, round(math.sqrt(len(trunk))))
    ends = [round(i * len(trunk) / num) for i in range(num + 1)]
    # a layer that works in place would change what the segment before it has kept
    for i, end in enumerate(ends[1:-1], start=1):
        while end < len(trunk) and getattr(trunk[end], "inplace", False):
            end += 1
        ends[i] = end
    return [trunk[start:end] for start, end in pairwise(sorted(set(ends)))]


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
