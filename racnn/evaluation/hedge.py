"""The trade of :mod:`racnn.evaluation.levels` itself, in numpy, so that an exported network can make it too."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from racnn.data.groups import Levels

WANTED = 0.97  # share of the named groups that is right
ANY = 0.3  # worth of any right answer, where narrowing all classes down to one is worth 1
UNSURE = "unsure"


@dataclass(frozen=True)
class Caution:
    """How careful the answers of a network are.

    Attributes:
        network: Digest of the weights that it was chosen for.
        names: Names of the levels, see :class:`racnn.data.groups.Levels`.
        groups: The group of each class by level, likewise.
        weight: See :mod:`racnn.evaluation.levels`; None: nothing is named, for no weight reaches the share.
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
    """The groups of all levels as arrays, those of the classes first, what says nothing last.

    A group that holds all classes says nothing either, and is none of them.

    Attributes:
        level: [G], number of the level; that of the last group is the number of levels.
        members: bool [G, C], the classes of each group.
        information: [G] float64, 1 for a single class and 0 for all of them.
        names: G names.
    """

    def __init__(self, levels: Levels) -> None:
        classes = len(levels.groups[0])
        names, numbers, members = list[str](), list[np.ndarray](), list[np.ndarray]()
        for number, groups in enumerate(levels.groups):
            own = list(dict.fromkeys(groups))
            if len(own) == 1 and number:
                continue
            names += own
            numbers.append(np.full(len(own), number))
            members.append(np.array([[name == group for group in groups] for name in own]))
        self.names = [*names, UNSURE]
        self.level = np.concatenate([*numbers, [len(levels.names)]])
        self.members = np.concatenate([*members, np.ones((1, classes), bool)])
        self.information = 1.0 - np.log(self.members.sum(axis=1)) / math.log(max(classes, 2))

    def probabilities(self, of_classes: np.ndarray) -> np.ndarray:
        """Return how probable each group is, [N, G] float64, from probabilities of the classes [N, C]."""
        found: np.ndarray = of_classes.astype(np.float64) @ self.members.T.astype(np.float64)
        return found

    def choose(self, probabilities: np.ndarray, weight: float | None, wanted: float = WANTED) -> np.ndarray:
        """Return the group that is named, [N]; of equal ones the finest; with no weight that which says nothing."""
        if weight is None:
            return np.full(len(probabilities), len(self.names) - 1)
        value = (self.information + ANY + weight) * probabilities
        value[:, -1] = wanted * weight  # of saying nothing
        best = value.max(axis=1, keepdims=True)
        chosen: np.ndarray = (value >= best * (1.0 - 1e-12)).argmax(axis=1)
        return chosen


@functools.lru_cache(maxsize=4)
def tree_of(levels: Levels) -> Tree:
    """Return the tree of some levels, made once."""
    return Tree(levels)


def sure_answers(caution: Caution, of_classes: np.ndarray) -> list[SureAnswer]:
    """Return what is sure of photos, from probabilities [N, C] of their classes."""
    tree = tree_of(caution.levels)
    probabilities = tree.probabilities(of_classes)
    names = (*caution.names, UNSURE)
    return [
        SureAnswer(names[int(tree.level[group])], tree.names[group], min(1.0, float(probabilities[i, group])))
        for i, group in enumerate(tree.choose(probabilities, caution.weight, caution.wanted).tolist())
    ]
