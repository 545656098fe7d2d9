"""Passes without a gradient that fit the GPU: a batch that it has no memory for is taken in smaller parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from racnn.errors import TrainingError

# On a CPU: the C library gives tensors of more than 32 MiB back to the system when they are freed, which clears the memory of
# the next ones. Small networks spend half of their time so in passes of more photos.
FEW = 4

T = TypeVar("T")


class Parts:
    """Takes batches in parts of a size, which is halved where the GPU has no memory and stays so.

    Args:
        size: Photos at a time; 0: all of a batch.
    """

    def __init__(self, size: int = 0) -> None:
        self.size = size

    def run(self, call: Callable[[dict[str, Tensor]], T], batch: dict[str, Tensor]) -> list[T]:
        """Return what a call returns of each part of a batch, in order.

        Raises:
            TrainingError: There is no memory for a single photo.
        """
        num, start, found = len(next(iter(batch.values()))), 0, []
        while start < num:
            size = min(self.size or num, num - start)
            try:
                found.append(call({key: value[start : start + size] for key, value in batch.items()}))
                start += size
            except torch.OutOfMemoryError:
                self.size = halved(size)
        return found


def halved(size: int) -> int:
    """Return how many photos to try at a time where the GPU has no memory for ``size``.

    Raises:
        TrainingError: It has none for a single photo.
    """
    if size == 1:
        raise TrainingError(
            "the GPU has not enough memory for a single photo; take smaller model.view_sizes or a smaller backbone, "
            "run.precision=bf16, or another --device"
        )
    torch.cuda.empty_cache()
    return (size + 1) // 2
