"""Rows of all photos in a file of a run's folder, mapped into memory: what is too large to keep there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from racnn.engine.checkpoint import write_text
from racnn.errors import TrainingError

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class StoredRows:
    """Rows [N, ...] that are filled in any order and found again only when all of them are there.

    Args:
        path: The file; beside it a second one says what it holds, written last.
        key: Says from what the rows were made.
        num: N.
    """

    def __init__(self, path: Path, key: str, num: int) -> None:
        self.path = path
        self.about = path.with_suffix(".json")
        self.key = key
        self.num = num
        self._rows: Tensor | None = None

    def read(self) -> Tensor | None:
        """Return the rows if all of them are there and were made from the same."""
        try:
            about = json.loads(self.about.read_text(encoding="utf-8"))
            shape, dtype = tuple(map(int, about["shape"])), TYPES[about["dtype"]]
            size = math.prod(shape) * dtype.itemsize
            if about["key"] != self.key or shape[0] != self.num or self.path.stat().st_size != size:
                return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):  # none, or not written by a run
            return None
        return _mapped(self.path, shape, dtype)

    def keep(self, index: Tensor, rows: Tensor) -> None:
        """Fill in the rows [B, ...] of positions [B].

        Raises:
            TrainingError: The disk has no room for all of them.
        """
        if self._rows is None:
            shape = (self.num, *rows.shape[1:])
            size = math.prod(shape) * rows.dtype.itemsize
            self.path.parent.mkdir(exist_ok=True)
            self.about.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            try:
                with self.path.open("xb") as file:  # never through a link
                    if hasattr(os, "posix_fallocate"):  # or a full disk would end the program without a word
                        os.posix_fallocate(file.fileno(), 0, size)
                    file.truncate(size)
            except OSError as error:
                self.path.unlink(missing_ok=True)
                raise TrainingError(
                    f"{self.path}: no room for {size / 1e9:.1f} GB of what the frozen blocks make of the photos "
                    f"({error.strerror}); make room, take smaller model.view_sizes, or freeze more by model.frozen_stages"
                ) from None
            self._rows = _mapped(self.path, shape, rows.dtype)
        self._rows[index] = rows

    def finish(self) -> Tensor:
        """Return the rows, all of which were filled in, and let them be found again."""
        assert self._rows is not None
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        dtype = str(self._rows.dtype).removeprefix("torch.")
        write_text(self.about, json.dumps({"key": self.key, "shape": list(self._rows.shape), "dtype": dtype}))
        return self._rows


def _mapped(path: Path, shape: Iterable[int], dtype: torch.dtype) -> Tensor:
    shape = tuple(shape)
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).reshape(shape)
