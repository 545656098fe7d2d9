"""SIGTERM and SIGINT ask for a stop at the next step; a second one ends the program at once."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Stop(BaseException):
    """Raised at a step boundary after a signal; everything is saved by then."""


class Interrupt:
    """While used as a context, catch both signals; ``signal`` is 0 until one came, then its number."""

    def __init__(self) -> None:
        self.signal = 0
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
        if self.signal:
            raise SystemExit(128 + number)
        self.signal = number
