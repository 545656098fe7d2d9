"""Small decisions of training, in plain numbers: the learning rate, and which epoch is better."""

from __future__ import annotations

import math
from collections.abc import Mapping


def learning_rate(done: float, warmup: float) -> float:
    """Return the factor on the base rate after a share ``done`` in [0, 1) of a phase: linear rise, then cosine."""
    if done < warmup:
        return (done + 0.01 * warmup) / (1.01 * warmup)
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def shown_items(items: Mapping[str, float]) -> str:
    """Return the items of :meth:`racnn.models.phase.Phase.scores` in words, the mean of several."""
    mean = sum(items.values()) / len(items)
    return f"loss {-mean:.4f}" if "loss" in items else f"log-probability {mean:.3f}"


def better(new: Mapping[str, float], old: Mapping[str, float], *, no_item_may_fall: bool) -> bool:
    """Return whether the mean of the items rose and, if asked, none of them fell."""
    if no_item_may_fall and any(new[name] < old[name] for name in old):
        return False
    return sum(new.values()) > sum(old.values())
