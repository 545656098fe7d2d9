"""Figures: ratios against named baselines measured in turn, the targets they are held to, and how they are shown."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from racnn.written import write_text

Calls = Mapping[str, Callable[[], object]]
Times = dict[str, list[float]]

LEAST = 0.2  # seconds that a measurement takes


@dataclass(frozen=True)
class Figure:
    """One ratio.

    Attributes:
        name: Name of what was measured.
        measure: What the ratio is, such as 'times as fast as' or 'share of the time of' the baseline.
        baseline: Name of what it is compared with.
        ratio: The median over rounds.
        low: First quartile over rounds.
        high: Third quartile over rounds.
        wanted: On which side of the target the ratio should be.
        target: The worst ratio that is good enough; None where none is asked for.
        ok: Whether the target is met; None without one.
    """

    name: str
    measure: str
    baseline: str
    ratio: float
    low: float
    high: float
    wanted: Literal["at least", "at most"]
    target: float | None
    ok: bool | None


def take_turns(calls: Calls, rounds: int, *, wait: Callable[[], None] = lambda: None) -> Times:
    """Return how long each call takes in each round, after two warm-ups each.

    A call that is done within :data:`LEAST` is repeated until so much has passed: a GPU is then kept busy, as in training.

    Args:
        calls: By name.
        rounds: How often all are called, one after the other.
        wait: Returns when the device has done what it was told to.
    """
    for call in calls.values():
        call()
    repeats = {name: math.ceil(LEAST / seconds(call, wait)) for name, call in calls.items()}
    times: Times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, wait, repeats[name]))
    return times


def seconds(call: Callable[[], object], wait: Callable[[], None] = lambda: None, repeats: int = 1) -> float:
    """Return how long a call takes, the mean of so many in a row."""
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def times_as_fast(name: str, baseline: str, times: Times, target: float | None = None) -> Figure:
    """Return how many times as fast as the baseline a call was, at least the target."""
    ratios = _ratios(times[baseline], times[name])
    return summary(name, "times as fast as", baseline, ratios, "at least", target)


def share_of_time(name: str, whole: str, times: Times, target: float | None = None) -> Figure:
    """Return the share of the time of another call that a call took, at most the target."""
    return summary(name, "share of the time of", whole, _ratios(times[name], times[whole]), "at most", target)


def summary(
    name: str,
    measure: str,
    baseline: str,
    ratios: Sequence[float],
    wanted: Literal["at least", "at most"],
    target: float | None = None,
) -> Figure:
    """Return the figure of one ratio a round; one alone is its own range."""
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    ok = None if target is None else middle >= target if wanted == "at least" else middle <= target
    return Figure(name, measure, baseline, middle, low, high, wanted, target, ok)


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def show(figures: list[Figure], file: Path | None) -> None:
    """Print a markdown table and write the same as JSON."""
    print("| what | is | of what | ratio | middle half | target | ok |")
    print("|---|---|---|---|---|---|---|")
    for f in figures:
        target = "" if f.target is None else f"{f.wanted} {f.target:g}"
        met = {True: "yes", False: "NO", None: ""}[f.ok]
        print(
            f"| {f.name} | {f.measure} | {f.baseline} | {f.ratio:.2f} | {f.low:.2f} - {f.high:.2f} "
            f"| {target} | {met} |"
        )
    if file is not None:
        write_text(file, json.dumps([asdict(f) for f in figures], indent=2) + "\n", flag="--json")
