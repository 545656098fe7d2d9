"""Answers at the level that is sure: a species where it can be told, else a genus or a family, else nothing.

Nothing is trained: a group is as probable as its classes together. Which level is named decides a trade after Deng, Krause, Berg,
Fei-Fei, "Hedging Your Bets: Optimizing Accuracy-Specificity Trade-offs in Large Scale Visual Recognition", CVPR 2012: of all
groups the one with the highest (information + weight) times probability. The information of a group is how much it narrows the
classes down, 1 for a single class and 0 for all of them. The larger the weight, the more careful the answers; it is the smallest
with which at least a wanted share of the named groups is right.

Deng et al. count saying nothing as right. Here only what is named counts, so that a share wanted of it is a constraint whose
multiplier the weight is: naming a group is worth ``information * p + weight * (p - wanted)``, and nothing is worth 0. Besides,
a right answer is worth :data:`ANY` by itself, which names a group for two photos more of a hundred and costs no information
(training photos, answered out of fold).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from racnn.data.taxonomy import Levels
from racnn.errors import DataError
from racnn.evaluation.metrics import fraction
from racnn.evaluation.table import table

WANTED = 0.97  # share of the named groups that is right
WEIGHTS = (0.0, *(0.05 * 1.08**step for step in range(110)))  # to choose from, up to 220
ANY = 0.3  # worth of any right answer, where narrowing all classes down to one is worth 1
UNSURE = "unsure"


@dataclass(frozen=True)
class Caution:
    """How careful the answers of a network are.

    Attributes:
        network: Digest of the weights that it was chosen for.
        names: Names of the levels, see :class:`racnn.data.taxonomy.Levels`.
        groups: The group of each class by level, likewise.
        weight: See above; None: nothing is named, for no weight reaches the share.
        wanted: The share of right answers that it was chosen for.
        chosen_by: 'out of fold', by the training photos, each answered by heads that had not seen it; or 'validation'.
    """

    network: str
    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    weight: float | None
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

    A group that holds all classes says nothing either, and is none of them.

    Attributes:
        level: [G], number of the level; that of the last group is the number of levels.
        members: bool [G, C], the classes of each group.
        information: [G] float64, see above.
        names: G names.
    """

    def __init__(self, levels: Levels) -> None:
        classes = len(levels.groups[0])
        names, numbers, members = list[str](), list[Tensor](), list[Tensor]()
        for number, groups in enumerate(levels.groups):
            own = {name: i for i, name in enumerate(dict.fromkeys(groups))}
            if len(own) == 1 and number:
                continue
            names += own
            numbers.append(torch.full((len(own),), number))
            members.append(F.one_hot(torch.tensor([own[name] for name in groups]), len(own)).T.bool())
        self.names = [*names, UNSURE]
        self.level = torch.cat([*numbers, torch.tensor([len(levels.names)])])
        self.members = torch.cat([*members, torch.ones(1, classes, dtype=torch.bool)])
        self.information = 1.0 - self.members.sum(dim=1).double().log() / math.log(max(classes, 2))

    def probabilities(self, log_probs: Tensor) -> Tensor:
        """Return how probable each group is, [N, G] float64, from log-probabilities of the classes [N, C]."""
        return log_probs.double().exp() @ self.members.double().T

    def choose(self, probabilities: Tensor, weight: float | None, wanted: float = WANTED) -> Tensor:
        """Return the group that is named, [N]; of equal ones the finest; with no weight that which says nothing."""
        if weight is None:
            return torch.full((len(probabilities),), len(self.names) - 1)
        value = (self.information + ANY + weight) * probabilities
        value[:, -1] = wanted * weight  # of saying nothing
        best = value.amax(dim=1, keepdim=True)
        return (value >= best * (1.0 - 1e-12)).double().argmax(dim=1)


@functools.lru_cache(maxsize=4)
def tree_of(levels: Levels) -> Tree:
    """Return the tree of some levels, made once."""
    return Tree(levels)


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
    tree = tree_of(levels)
    probabilities = tree.probabilities(log_probs)
    chosen: float | None = None
    for weight in reversed(WEIGHTS):
        group = tree.choose(probabilities, weight, wanted)
        named = tree.level[group] < len(levels.names)
        if named.any() and fraction(tree.members[group, labels][named]) < wanted:
            break
        chosen = weight
    return chosen


def sure_answers(caution: Caution, log_probs: Tensor) -> list[SureAnswer]:
    """Return what is sure of photos, from log-probabilities [N, C] of their classes."""
    tree = tree_of(caution.levels)
    probabilities = tree.probabilities(log_probs.cpu())
    names = (*caution.names, UNSURE)
    return [
        SureAnswer(names[int(tree.level[group])], tree.names[group], min(1.0, float(probabilities[i, group])))
        for i, group in enumerate(tree.choose(probabilities, caution.weight, caution.wanted).tolist())
    ]


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
    probabilities = tree.probabilities(log_probs.cpu())
    labels = labels.cpu()
    top1 = {}
    for number, name in enumerate(names):
        own = (tree.level == number).nonzero()[:, 0]
        if not len(own):  # one group holds all classes
            top1[name] = 1.0
            continue
        best = own[probabilities[:, own].argmax(dim=1)]
        top1[name] = fraction(tree.members[best, labels])
    answers = log_probs.cpu().argmax(dim=1)
    heights = torch.full((len(labels),), len(names))
    for number in range(len(names) - 1, -1, -1):
        ids = {group: i for i, group in enumerate(dict.fromkeys(caution.groups[number]))}
        group_of = torch.tensor([ids[group] for group in caution.groups[number]])
        heights = torch.where(group_of[answers] == group_of[labels], number, heights)
    wrong = heights[heights > 0]
    group = tree.choose(probabilities, caution.weight, caution.wanted)
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
            "in_sample": in_sample,
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
