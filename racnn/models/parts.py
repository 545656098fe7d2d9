"""Passes without a gradient that fit the GPU: a batch that it has no memory for is taken in smaller parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

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


@torch.no_grad()
def read_rows(
    read: Callable[[dict[str, Tensor]], dict[Any, Tensor]],
    batches: Iterable[dict[str, Tensor]],
    *,
    device: torch.device,
    gather: Callable[[list[Any]], list[Any]] = list,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[Any, Tensor]:
    """Return what is read of each batch, joined; on a CPU of :data:`FEW` photos at a time.

    Args:
        read: Returns the rows of a batch, or of a part of it.
        batches: Photos with what goes with them.
        device: Where they are read.
        gather: Joins the rows of all processes that share the batches.
        after_batch: Called after each batch; it may raise to stop.
    """
    parts, rows = Parts(FEW if device.type == "cpu" else 0), []
    for batch in batches:
        found = parts.run(read, batch)
        rows.append({key: torch.cat([part[key] for part in found]) for key in found[0]})
        after_batch()
    rows = gather(rows)
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
