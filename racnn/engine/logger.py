"""What a run leaves to read: a progress bar, ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm


class Logger:
    """Write scalars and pictures of one run.

    Args:
        folder: Folder of the run.
        step: Step of the checkpoint that the run goes on from; later points of the curves are dropped.
        length: Length of ``metrics.jsonl`` in bytes when that checkpoint was written; the rest is dropped.
    """

    def __init__(self, folder: Path, *, step: int = 0, length: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        with self._path.open("ab") as file:
            file.truncate(min(length, file.tell()))
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        self._bar: tqdm[Any] | None = None

    def length(self) -> int:
        """Return the length of ``metrics.jsonl`` in bytes."""
        return self._path.stat().st_size

    def start_bar(self, title: str, total: int, done: int) -> None:
        """Show progress through a phase, in the place of another one; nothing is drawn where the output is no terminal."""
        self.close_bar()
        self._bar = tqdm(total=total, initial=done, desc=title, unit="step", leave=False, disable=None)

    def advance_bar(self, losses: Mapping[str, float]) -> None:
        """Count one step and show its loss."""
        if self._bar is not None:
            self._bar.set_postfix({"loss": f"{losses['loss']:.3f}"}, refresh=False)
            self._bar.update()

    def tick(self) -> None:
        """Count one batch of what is no training."""
        if self._bar is not None:
            self._bar.update()

    def close_bar(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def log(self, text: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def scalars(self, kind: str, values: Mapping[str, float], *, step: int, phase: str) -> None:
        """Write named values as one row of ``metrics.jsonl`` and as TensorBoard scalars under ``kind/``."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, "phase": phase, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def text(self, name: str, text: str, *, step: int = 0) -> None:
        """Write a text to TensorBoard."""
        self._board.add_text(name, text, step)

    def picture(self, name: str, picture: np.ndarray, *, step: int) -> None:
        """Write an [H, W, 3] uint8 picture to TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything."""
        self.close_bar()
        self._board.close()


class Silence:
    """A logger that records nothing, for all processes but the first."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_args, **_options: None
