"""The schedules that a configuration can name instead of listing phases: ours, and the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FINE_VIEW = 448  # pixels; VGG's map of such a view has 28 cells a side, fine enough to read a box from


def recipe_schedule(view_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the default schedule: each scale taught well before the next, accept-if-better, fusion last."""
    num_scales = len(view_sizes)
    schedule: list[dict[str, Any]] = [{"kind": "classification", "scales": [1], "epochs": 30, "lr": 0.005}]
    for scale in range(2, num_scales + 1):
        # region 1 is the object, read from a fine map of what the photos have in common; the next ones are where the class
        # shows most
        enlarge = 2.0 if view_sizes[0] < FINE_VIEW else 1.0
        whole = {"response": "ddt", "enlarge": enlarge, "level": 0.1, "trim": 0.02}
        part = {"target": "peak", "response": "cam"}
        schedule.append(_apn_init_phase(scale - 1, epochs=6, **(whole if scale == 2 else part)))
        schedule.append(
            {"kind": "classification", "scales": [scale], "init_from": scale - 1, "epochs": 20, "lr": 0.003}
        )
    if num_scales > 1:
        ranking = {"kind": "ranking", "epochs": 2, "optimizer": "adamw", "lr": 1e-5, "keep": "if_better"}
        together = {"kind": "classification", "epochs": 4, "lr": 0.001, "keep": "if_better"}
        schedule.append({"alternate": [ranking, together], "rounds": 2})
        schedule.append(_fusion_phase())
    return schedule


def paper_schedule(view_sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the paper's schedule: all scales from the same weights, peak start, plain alternation."""
    num_scales = len(view_sizes)
    together = {"kind": "classification", "epochs": 30, "lr": 0.01, "label_smoothing": 0.0}
    if num_scales == 1:
        return [together]
    together["jitter"] = 0.0
    schedule: list[dict[str, Any]] = []
    for region in range(1, num_scales):
        schedule.append(_apn_init_phase(region, epochs=6, target="peak"))
    ranking = {"kind": "ranking", "epochs": 5, "lr": 0.001}
    schedule.append({"alternate": [together, ranking], "rounds": 3})
    schedule.append(_fusion_phase())
    return schedule


def _apn_init_phase(region: int, **changes: Any) -> dict[str, Any]:
    phase = {"kind": "apn_init", "scales": [region], "optimizer": "adamw", "lr": 1e-3, "keep": "best"}
    return phase | changes


def _fusion_phase() -> dict[str, Any]:
    return {"kind": "fusion", "epochs": 4, "lr": 0.01, "keep": "if_better"}


SCHEDULES = {"recipe": recipe_schedule, "paper": paper_schedule}
