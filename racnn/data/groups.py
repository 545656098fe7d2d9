"""The groups of classes, such as genera and families of species."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Levels:
    """The groups that the classes of a network are in.

    Attributes:
        names: Names of the levels, the finest first, which is that of the classes themselves.
        groups: The group of each class, [C], by level; that of the first level is its own name.
    """

    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.groups) > 1
        assert len({len(each) for each in self.groups}) == 1
