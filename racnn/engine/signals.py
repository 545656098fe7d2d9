"""SIGTERM and SIGINT ask for a stop at the next step; a second one ends the program at once.

Some managers send a job's signal to each of its processes and, through torchrun, once more to ours: what comes within a
second is still the first.
"""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

SAME = 1.0  # seconds


class Interrupt:
    """While used as a context, catch both signals; ``signal`` is 0 until one came, then its number."""

    def __init__(self) -> None:
        self.signal = 0
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._on_signal)
            except ValueError:  # not the main thread, as in a notebook's worker
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self._first = number, now
        elif now - self._first > SAME:
            raise SystemExit(128 + number)
