"""Answers at the level that is sure: a species where it can be told, else a genus or a family, else nothing.

Nothing is trained: a group is as probable as its classes together. Which level is named decides a trade after Deng, Krause, Berg,
Fei-Fei, "Hedging Your Bets: Optimizing Accuracy-Specificity Trade-offs in Large Scale Visual Recognition", CVPR 2012: of all
groups the one with the highest (information + weight) times probability. The information of a group is how much it narrows the
classes down, 1 for a single class and 0 for all of them. The larger the weight, the more careful the answers; it is the smallest
with which at least a wanted share of the named groups is right.

Deng et al. count saying nothing as right. Here only what is named counts, so that a share wanted of it is a constraint whose
multiplier the weight is: naming a group is worth ``information * p + weight * (p - wanted)``, and nothing is worth 0. Besides,
a right answer is worth :data:`racnn.evaluation.hedge.ANY` by itself, which names a group for two photos more of a hundred and costs no information
(training photos, answered out of fold).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from racnn.data.groups import Levels
from racnn.errors import DataError
from racnn.evaluation.hedge import WANTED, Caution, tree_of
from racnn.evaluation.table import table

WEIGHTS = (0.0, *(0.05 * 1.08**step for step in range(110)))  # to choose from, up to 220


def calibrate_caution(
    levels: Levels, log_probs: Tensor, labels: Tensor, wanted: float = WANTED
) -> float | None:
    """Return the smallest weight with which, and with every larger one, at least a wanted share of what is named is right.

    None where there is none such.

    Args:
        levels: Groups of the classes.
        log_probs: [N, C] of photos that the network has not seen.
        labels: [N].
        wanted: The share.
    """
    tree, true = tree_of(levels), labels.numpy()
    probabilities = tree.probabilities(_probabilities(log_probs))
    chosen: float | None = None
    for weight in reversed(WEIGHTS):
        group = tree.choose(probabilities, weight, wanted)
        named = tree.level[group] < len(levels.names)
        if named.any() and tree.members[group, true][named].mean() < wanted:
            break
        chosen = weight
    return chosen


def levels_report(
    caution: Caution, log_probs: Tensor, labels: Tensor, *, in_sample: bool = False
) -> dict[str, Any]:
    """Return how good answers are at every level, in plain types.

    Args:
        caution: The levels, and how careful to be.
        log_probs: [N, C].
        labels: [N].
        in_sample: Whether these are the photos that the caution was chosen by.

    Returns:
        ``names`` of the levels; ``top1`` of each, the most probable group; ``severity`` of the mistakes: mean height of the lowest
        group that holds both classes, 1 for the level above the classes (Bertinetto et al., "Making Better Mistakes", CVPR 2020),
        and ``mistakes``, how many are within a group of each level, 'beyond' for none; None where there is no mistake;
        ``sure``: the ``weight``, what it was ``chosen_by``, whether that is ``in_sample``, the ``wanted`` share, and of what is named the shares ``right``,
        ``answered`` of all photos, and ``at`` each level, with ``right_at`` of it.
    """
    tree, names = tree_of(caution.levels), caution.names
    probabilities, true = tree.probabilities(_probabilities(log_probs)), labels.cpu().numpy()
    top1 = {}
    for number, name in enumerate(names):
        own = np.flatnonzero(tree.level == number)
        if not len(own):  # one group holds all classes
            top1[name] = 1.0
            continue
        best = own[probabilities[:, own].argmax(axis=1)]
        top1[name] = _share(tree.members[best, true])
    answers = log_probs.cpu().argmax(dim=1).numpy()
    heights = np.full(len(true), len(names))
    for number in range(len(names) - 1, -1, -1):
        group_of = np.array(caution.groups[number])
        heights = np.where(group_of[answers] == group_of[true], number, heights)
    wrong = heights[heights > 0]
    group = tree.choose(probabilities, caution.weight, caution.wanted)
    level, right = tree.level[group], tree.members[group, true]
    named = level < len(names)
    return {
        "names": list(names),
        "top1": top1,
        "severity": float(wrong.mean()) if len(wrong) else None,
        "mistakes": {
            name: int((wrong == number).sum()) for number, name in enumerate((*names[1:], "beyond"), start=1)
        },
        "sure": {
            "weight": caution.weight,
            "chosen_by": caution.chosen_by,
            "in_sample": in_sample,
            "wanted": caution.wanted,
            "answered": _share(named),
            "right": _share(right[named]) if named.any() else None,
            "at": {name: _share(level == number) for number, name in enumerate(names)},
            "right_at": {
                name: _share(right[level == number]) if (level == number).any() else None
                for number, name in enumerate(names)
            },
        },
    }


def _probabilities(log_probs: Tensor) -> np.ndarray:
    found: np.ndarray = log_probs.cpu().double().exp().numpy()
    return found


def _share(found: np.ndarray) -> float:
    return float(found.mean())


def format_levels(found: Mapping[str, Any]) -> str:
    """Return :func:`levels_report` as plain text."""
    sure = found["sure"]
    rows = [
        [
            name,
            f"{100 * found['top1'][name]:.1f}",
            f"{100 * sure['at'][name]:.1f}",
            "-" if sure["right_at"][name] is None else f"{100 * sure['right_at'][name]:.1f}",
        ]
        for name in found["names"]
    ]
    right = "" if sure["right"] is None else f", {100 * sure['right']:.1f} % of them right"
    by = "validation photos" if sure["chosen_by"] == "validation" else "training photos answered out of fold"
    these = ", these very ones: on others it is less" if sure["in_sample"] else ""
    lines = [
        table(["level", "top-1 %", "named for % of the photos", "of these right %"], rows),
        "",
        f"at the level that is sure {100 * sure['answered']:.1f} % of the photos get an answer{right} "
        f"({100 * sure['wanted']:.0f} wanted, chosen by {by}{these})",
    ]
    if found["severity"] is not None:
        within = ", ".join(
            f"{number} {'beyond' if name == 'beyond' else f'in the same {name}'}"
            for name, number in found["mistakes"].items()
        )
        lines.append(f"severity of the mistakes {found['severity']:.2f}: {within}")
    return "\n".join(lines)


def caution_file(checkpoint: Path) -> Path:
    """Return where the choice for a checkpoint is kept."""
    return checkpoint.with_suffix(".levels.json")


def load_caution(checkpoint: Path, network: str, class_names: Sequence[str]) -> Caution:
    """Return the choice that ``racnn evaluate --levels`` left beside a checkpoint.

    Raises:
        DataError: There is none, it is damaged, or belongs to other weights or classes.
    """
    file = caution_file(checkpoint)
    again = f"`racnn evaluate {checkpoint} --levels TAXONOMY` makes it"
    if not file.is_file():
        raise DataError(f"levels: {file}: no such file; {again}")
    try:
        caution = TypeAdapter(Caution).validate_json(file.read_bytes())
        shapes = {len(each) for each in caution.groups}
        if (
            len(caution.names) != len(caution.groups)
            or len(caution.names) < 2
            or shapes != {len(class_names)}
        ):
            raise ValueError
        if caution.weight is not None and not 0.0 <= caution.weight < math.inf:
            raise ValueError
    except (ValidationError, ValueError, OSError):
        raise DataError(f"{file}: damaged, or of other classes; {again} anew") from None
    if caution.network != network:
        raise DataError(f"{file}: was made for other weights; {again} anew")
    return caution


def caution_json(caution: Caution) -> dict[str, Any]:
    """Return a choice in plain types, as :func:`load_caution` reads it."""
    plain: dict[str, Any] = json.loads(TypeAdapter(Caution).dump_json(caution))
    return plain
