"""Small decisions of training, in plain numbers: the learning rate, and which epoch is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from racnn.engine.phases import Phase


def learning_rate(done: float, warmup: float) -> float:
    """Return the factor on the base rate after a share ``done`` in [0, 1) of a phase: linear rise, then cosine."""
    if done < warmup:
        return (done + 0.01 * warmup) / (1.01 * warmup)
    return 0.5 * (1.0 + math.cos(math.pi * (done - warmup) / (1.0 - warmup)))


def item_names(phase: Phase, num_scales: int) -> list[str]:
    """Return the names of what a phase is judged by, where so many scales are looked at."""
    kind = phase.config.kind
    if kind in ("apn_init", "fusion"):
        return ["loss" if kind == "apn_init" else "fused"]
    if kind == "ranking":  # a region moves every finer view, not only the next one
        return [f"scale_{s}" for s in range(min(phase.scales) + 1, num_scales + 1)]
    return [f"scale_{s}" for s in phase.scales]


def phase_items(phase: Phase, report: Mapping[str, Any], loss: float | None) -> dict[str, float]:
    """Return what a phase is judged by on the validation photos; larger is better.

    The mean log-probability of the true class at the trained scales (for ranking, at all scales that its regions move;
    for fusion, of the fused answer): steadier than top-1 on few photos. The difference of two scales' probabilities,
    which the ranking loss looks at, also rises when the coarser scale falls and is no criterion. For ``apn_init``
    minus its own loss.
    """
    if phase.config.kind == "apn_init":
        assert loss is not None
        return {"loss": -loss}
    log_prob = report["log_prob"]
    num_scales = sum(name.startswith("scale_") for name in log_prob)
    return {name: log_prob[name] for name in item_names(phase, num_scales)}


def shown_items(items: Mapping[str, float]) -> str:
    """Return the items of :func:`phase_items` in words, the mean of several."""
    mean = sum(items.values()) / len(items)
    return f"loss {-mean:.4f}" if "loss" in items else f"log-probability {mean:.3f}"


def better(new: Mapping[str, float], old: Mapping[str, float], *, no_item_may_fall: bool) -> bool:
    """Return whether the mean of the items rose and, if asked, none of them fell."""
    if no_item_may_fall and any(new[name] < old[name] for name in old):
        return False
    return sum(new.values()) > sum(old.values())
