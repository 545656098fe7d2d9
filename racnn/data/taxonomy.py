"""Groups of classes: which genus and family a species is of, or which make and body a car.

A taxonomy is a CSV file with a head. Its first column has the classes, the others the groups that they are in, finer ones first;
the head names the levels:

    species,genus,family
    Herring Gull,Larus,Laridae
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from racnn.data.groups import Levels
from racnn.data.names import matching_classes
from racnn.data.sources.folder import NESTED, nested_levels
from racnn.data.tables import ClassTable
from racnn.errors import DataError, did_you_mean
from racnn.sections import DataConfig

PACKAGED = ("cub200", "drawings")


def read_levels(source: str, class_names: Sequence[str], config: DataConfig) -> Levels:
    """Return the groups of classes from a taxonomy.

    Args:
        source: A CSV file, the name of a taxonomy that comes with the program, one of :data:`PACKAGED`, or 'folders' for the
            folders that class folders lie in.
        class_names: C names; a taxonomy may have more, and names that look alike are the same, as in
            :func:`racnn.data.names.matching_classes`.
        config: Where the folders are.

    Raises:
        DataError: It cannot be read, has no groups, does not know a class, or has a group in two others of one level.
    """
    if source == NESTED:
        if config.dataset != "folder":
            raise DataError(
                f"data.levels: {NESTED}: is of folders of photos, not of data.dataset {config.dataset}"
            )
        names, groups_of = nested_levels(config)
        found = matching_classes(class_names, list(groups_of))
        if any(place is None for place in found):
            raise DataError(f"data.levels: {NESTED}: the folders are of other classes")
        every = [list(groups_of.values())[place] for place in found if place is not None]
        groups = [tuple(class_names), *(tuple(each) for each in zip(*every, strict=True))]
        _refuse_crossing(source, names, groups)
        return Levels(names, tuple(groups))
    if source in PACKAGED:
        text = (resources.files("racnn.data") / "taxonomies" / f"{source}.csv").read_text(encoding="utf-8")
    else:
        try:
            text = Path(source).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError, RuntimeError) as error:
            hint = did_you_mean(source, PACKAGED)
            raise DataError(
                f"data.levels: {source}: cannot be read: {getattr(error, 'strerror', None) or error}; expected a CSV file, "
                f"{NESTED}, or {', '.join(PACKAGED)}{hint}"
            ) from None
    table = ClassTable(
        text,
        where=f"data.levels: {source}",
        head="a head such as species,genus,family: a column of classes, and of their groups",
    )
    chosen = [row for _, row in table.of(class_names)]
    head = table.head
    groups = [tuple(class_names), *(tuple(row[level] for row in chosen) for level in range(1, len(head)))]
    _refuse_crossing(source, head, groups)
    return Levels(head, tuple(groups))


def _refuse_crossing(source: str, names: Sequence[str], groups: Sequence[Sequence[str]]) -> None:
    """Refuse a group that lies in two groups of the next level.

    Raises:
        DataError: There is one.
    """
    for level in range(1, len(names) - 1):
        parents: dict[str, str] = {}
        for own, parent in zip(groups[level], groups[level + 1], strict=True):
            other = parents.setdefault(own, parent)
            if other != parent:
                raise DataError(
                    f"data.levels: {source}: {names[level]} {own} is in {names[level + 1]} {other} and in {parent}; expected one"
                )
