"""What an answer costs, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def multiplications(run: Callable[[], Any]) -> float:
    """Return the multiplications in the convolutions and matrix products of a call; nothing else is counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2.0
