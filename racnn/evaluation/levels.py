"""Answers at the level that is sure: a species where it can be told, else a genus or a family, else nothing.

Nothing is trained: a group is as probable as its classes together. Which level is named decides a trade of Deng, Krause, Berg,
Fei-Fei, "Hedging Your Bets: Optimizing Accuracy-Specificity Trade-offs in Large Scale Visual Recognition", CVPR 2012: of all
groups the one with the highest (information + weight) times probability, where the information of a group is how much it narrows
the classes down, 1 for a single class and 0 for all of them. The larger the weight, the more careful the answers; it is the
smallest with which at least a wanted share of the named groups is right. (Deng et al. count saying nothing as right; here only
what is named counts.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from racnn.data.taxonomy import Levels
from racnn.errors import DataError
from racnn.evaluation.metrics import fraction
from racnn.evaluation.report import table

WANTED = 0.97  # share of the named groups that is right
WEIGHTS = (0.0, *(0.05 * 1.08**step for step in range(110)))  # to choose from, up to 220
NEVER = 1e9  # a weight with which nothing is named
UNSURE = "unsure"


@dataclass(frozen=True)
class Caution:
    """How careful the answers of a network are.

    Attributes:
        network: Digest of the weights that it was chosen for.
        names: Of the levels, see :class:`racnn.data.taxonomy.Levels`.
        groups: Likewise.
        weight: See above.
        wanted: The share of right answers that it was chosen for.
        chosen_by: 'out of fold', by the training photos, each answered by heads that had not seen it; or 'validation'.
    """

    network: str
    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    weight: float
    wanted: float
    chosen_by: str

    @property
    def levels(self) -> Levels:
        """The groups."""
        return Levels(self.names, self.groups)


@dataclass(frozen=True)
class SureAnswer:
    """What is sure of a photo: a group of some level, or, with the level 'unsure', nothing."""

    level: str
    name: str
    probability: float


class Tree:
    """The groups of all levels as tensors, those of the classes first, what says nothing last.

    Attributes:
        level: [G], number of the level; that of the last group is the number of levels.
        members: bool [G, C], the classes of each group.
        names: G names.
    """

    def __init__(self, levels: Levels) -> None:
        self.levels = levels
        names, numbers, members = list[str](), list[int](), list[list[bool]]()
        for number, groups in enumerate(levels.groups):
            for name in dict.fromkeys(groups):
                names.append(name)
                numbers.append(number)
                members.append([group == name for group in groups])
        classes = len(levels.groups[0])
        self.names = [*names, UNSURE]
        self.level = torch.tensor([*numbers, len(levels.names)])
        self.members = torch.tensor([*members, [True] * classes])
        self.information = 1.0 - self.members.sum(dim=1).double().log() / math.log(max(classes, 2))

    def probabilities(self, log_probs: Tensor) -> Tensor:
        """Return how probable each group is, [N, G] float64, from log-probabilities of the classes [N, C]."""
        return log_probs.double().exp() @ self.members.double().T

    def choose(self, probabilities: Tensor, weight: float) -> Tensor:
        """Return the group that is named, [N]; of equal ones the finest."""
        value = (self.information + weight) * probabilities
        value[:, -1] = (
            self.information[-1] + weight
        ) * 1.0  # all classes together are certain, whatever rounding says
        best = value.amax(dim=1, keepdim=True)
        return (value >= best * (1.0 - 1e-12)).double().argmax(dim=1)


def calibrate_caution(levels: Levels, log_probs: Tensor, labels: Tensor, wanted: float = WANTED) -> float:
    """Return the smallest weight with which, and with every larger one, at least a wanted share of what is named is right.

    Args:
        levels: Of the classes.
        log_probs: [N, C] of photos that the network has not seen.
        labels: [N].
        wanted: The share.
    """
    tree = Tree(levels)
    probabilities = tree.probabilities(log_probs)
    chosen = NEVER
    for weight in reversed(WEIGHTS):
        group = tree.choose(probabilities, weight)
        named = tree.level[group] < len(levels.names)
        if named.any() and fraction(tree.members[group, labels][named]) < wanted:
            break
        chosen = weight
    return chosen


def sure_answers(caution: Caution, log_probs: Tensor) -> list[SureAnswer]:
    """Return what is sure of photos, from log-probabilities [N, C] of their classes."""
    tree = Tree(caution.levels)
    probabilities = tree.probabilities(log_probs.cpu())
    names = (*caution.names, UNSURE)
    return [
        SureAnswer(names[int(tree.level[group])], tree.names[group], min(1.0, float(probabilities[i, group])))
        for i, group in enumerate(tree.choose(probabilities, caution.weight).tolist())
    ]


def levels_report(caution: Caution, log_probs: Tensor, labels: Tensor) -> dict[str, Any]:
    """Return how good answers are at every level, in plain types.

    Args:
        caution: The levels, and how careful to be.
        log_probs: [N, C].
        labels: [N].

    Returns:
        ``names`` of the levels; ``top1`` of each, the most probable group; ``severity`` of the mistakes: mean height of the lowest
        group that holds both classes, 1 for the level above the classes (Bertinetto et al., "Making Better Mistakes", CVPR 2020),
        and ``mistakes``, how many are within a group of each level, 'beyond' for none; None where there is no mistake;
        ``sure``: the ``weight``, what it was ``chosen_by``, the ``wanted`` share, and of what is named the shares ``right``,
        ``answered`` of all photos, and ``at`` each level, with ``right_at`` of it.
    """
    tree, names = Tree(caution.levels), caution.names
    probabilities = tree.probabilities(log_probs.cpu())
    labels = labels.cpu()
    top1 = {}
    for number, name in enumerate(names):
        own = (tree.level == number).nonzero()[:, 0]
        best = own[probabilities[:, own].argmax(dim=1)]
        top1[name] = fraction(tree.members[best, labels])
    answers = log_probs.cpu().argmax(dim=1)
    heights = torch.full((len(labels),), len(names))
    for number in range(len(names) - 1, -1, -1):
        ids = {group: i for i, group in enumerate(dict.fromkeys(caution.groups[number]))}
        group_of = torch.tensor([ids[group] for group in caution.groups[number]])
        heights = torch.where(group_of[answers] == group_of[labels], number, heights)
    wrong = heights[heights > 0]
    group = tree.choose(probabilities, caution.weight)
    level, right = tree.level[group], tree.members[group, labels]
    named = level < len(names)
    return {
        "names": list(names),
        "top1": top1,
        "severity": float(wrong.double().mean()) if len(wrong) else None,
        "mistakes": {
            name: int((wrong == number).sum()) for number, name in enumerate((*names[1:], "beyond"), start=1)
        },
        "sure": {
            "weight": caution.weight,
            "chosen_by": caution.chosen_by,
            "wanted": caution.wanted,
            "answered": fraction(named),
            "right": fraction(right[named]) if named.any() else None,
            "at": {name: fraction(level == number) for number, name in enumerate(names)},
            "right_at": {
                name: fraction(right[level == number]) if (level == number).any() else None
                for number, name in enumerate(names)
            },
        },
    }


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
    right = "none" if sure["right"] is None else f"{100 * sure['right']:.1f} % of them right"
    lines = [
        table(["level", "top-1 %", "named for % of the photos", "of these right %"], rows),
        "",
        f"at the level that is sure {100 * sure['answered']:.1f} % of the photos get an answer, {right} ({100 * sure['wanted']:.0f} "
        f"wanted, by {'photos' if sure['chosen_by'] == 'validation' else 'training photos'} {_by(sure['chosen_by'])})",
    ]
    if found["severity"] is not None:
        within = ", ".join(
            f"{number} {'beyond' if name == 'beyond' else f'within a {name}'}"
            for name, number in found["mistakes"].items()
        )
        lines.append(f"severity of the mistakes {found['severity']:.2f}: {within}")
    return "\n".join(lines)


def _by(chosen_by: str) -> str:
    return "for validation" if chosen_by == "validation" else "answered out of fold"


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
        if not math.isfinite(caution.weight) or caution.weight < 0.0:
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
