"""A folder of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from racnn.data.listing import EXPECTED, LINKED, WRITTEN, FolderWalk, photos_below, visible, why_no_photo
from racnn.data.names import class_name, looks_like_split, natural_key, split_of
from racnn.data.sources.catalog import Catalog, Record, chosen_classes, existing_root, hold_out
from racnn.errors import DataError, did_you_mean
from racnn.sections import DataConfig
from racnn.written import RECORD

TEST_FRACTION = 0.2  # of a folder that has no test photos of its own
OUTSIDE = "in no class folder"
NESTED = "folders"  # of data.levels: class folders lie in folders of their groups


def folder(config: DataConfig) -> Catalog:
    """Read ``root/<class>/*.jpg``, or ``root/train/<class>``, ``root/val/<class>`` and ``root/test/<class>``.

    Photos may lie deeper inside a class folder; hidden files and folders are passed over. Common names of splits, such
    as ``training_set``, ``valid`` or ``testing``, are understood; what looks like one and is not, is refused. Without a
    test folder 20 % of every class's training photos are held out for testing, by ``config.split_seed``. Classes stand in
    natural order (2 before 10); ``config.classes`` counts them from 1.

    Raises:
        DataError: There are no class folders, or only one; one has no photos; validation or test know a class that training
            does not; there are folders of photos beside train, val and test, or splits inside the classes.
    """
    classes, walk = _read(config)
    names = sorted(classes["train"], key=natural_key)
    first = classes["train"][names[0]]
    if len(names) == 1:
        inside = [path for path in visible(first) if path.is_dir()]
        hint = f"; did you mean {first}, which holds {len(inside)} folders?" if len(inside) > 1 else ""
        raise DataError(
            f"{first.parent}: expected at least two class folders, found only '{first.name}'{hint}"
        )
    chosen = [names[i - 1] for i in chosen_classes(config, range(1, len(names) + 1), first.parent)]
    splits = {split: _records(folders, walk, names, chosen) for split, folders in classes.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out(
            splits["train"], fraction=TEST_FRACTION, seed=config.split_seed, purpose="test"
        )
    return Catalog(
        "folder", chosen, splits["train"], splits.get("val"), splits["test"], passed_over=walk.passed
    )


def folder_to_measure(config: DataConfig) -> Catalog:
    """Read the same folders for photos to measure on: nothing is held out, and any number of classes will do.

    Class folders without splits are all test photos. The classes are those of all splits.

    Raises:
        DataError: As :func:`folder`, but for what training alone needs.
    """
    classes, walk = _read(config, measure=True)
    names = sorted({name for folders in classes.values() for name in folders}, key=natural_key)
    splits = {
        split: _records(folders, walk, names, names, or_none=True) for split, folders in classes.items()
    }
    train, test = splits.get("train", []), splits.get("test", [])
    return Catalog("folder", names, train, splits.get("val"), test, passed_over=walk.passed)


def class_places(root: Path) -> list[Path]:
    """Return the folders whose folders are classes: the root, or its splits."""
    return list(_split_folders(FolderWalk(root)).values())


def _read(config: DataConfig, *, measure: bool = False) -> tuple[dict[str, dict[str, Path]], FolderWalk]:
    """Return the folder of every class of every split, and the walk through the data set.

    A folder without splits is all train, or all test to ``measure`` on.
    """
    walk = FolderWalk(existing_root(config, "a folder with one folder of photos for each class"))
    places = _split_folders(walk, measure=measure)
    if measure and places == {"train": walk.top}:
        places = {"test": walk.top}
    nested = config.levels == NESTED
    return {split: _class_folders(place, walk, nested=nested) for split, place in places.items()}, walk


def _folders(place: Path, walk: FolderWalk) -> list[Path]:
    """Return the folders in a folder; photos beside them and links to what is read anyway are counted as passed over."""
    folders = []
    for path in sorted(visible(place, walk.passed)):
        if not path.is_dir():
            kind = why_no_photo(path)
            walk.passed[kind or f"{path.suffix.lower() or 'photo'} {OUTSIDE}"] += 1
        elif walk.leads_inside(path):
            walk.passed[LINKED] += 1
        elif (path / RECORD).exists() and next(photos_below(path), None) is None:
            walk.passed[WRITTEN] += 1
        else:
            folders.append(path)
    return folders


def _split_folders(walk: FolderWalk, *, measure: bool = False) -> dict[str, Path]:
    """Return where train, val and test are; a root of class folders is all train. To ``measure`` on any split will do."""
    folders = _folders(walk.top, walk)
    with_classes = [path for path in folders if any(inner.is_dir() for inner in visible(path))]
    by_split: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for path in folders:
        split = split_of(path.name)
        if split is not None and (split != "train" or path in with_classes):  # a class may be called "train"
            by_split[split].append(path)
    known = {path for found in by_split.values() for path in found}
    if not (by_split["train"] or (measure and known & set(with_classes))):
        _refuse_what_looks_like_splits(walk.top, folders, with_classes)
        walk.passed.clear()  # all this is counted as what lies beside the classes
        return {"train": walk.top}
    for split, what in (("train", "training"), ("val", "validation"), ("test", "test")):
        if len(by_split[split]) > 1:
            first, second = by_split[split][:2]
            raise DataError(f"{first} and {second}: expected one folder of {what} photos")
    places = {split: found[0] for split, found in by_split.items() if found}
    beside = next(iter(places.values()))
    for path in folders:
        if path not in known and next(photos_below(path), None) is not None:
            raise DataError(
                f"{path}: a folder of photos beside {beside}; expected train (and val, test) of class folders alone, or class "
                "folders alone: rename it to val or test, or move it away"
            )
    return places


def _refuse_what_looks_like_splits(root: Path, folders: Sequence[Path], with_classes: Sequence[Path]) -> None:
    """Refuse splits that would be learned as classes.

    Raises:
        DataError: A folder of class folders is called like a split; folders without classes are called like a training and
            another split; or class folders hold splits.
    """
    suspects = [
        path for path in with_classes if looks_like_split(path.name) and split_of(path.name) != "train"
    ]
    named = {split: path for path in folders if (split := split_of(path.name))}
    if "train" in named and len(named) > 1 and len(named) == len(folders):
        suspects.append(named["train"])
    if suspects:
        raise DataError(
            f"{suspects[0]}: looks like a split, not a class; expected {root}/train (and val, test) of class folders, or class "
            "folders alone"
        )
    for path in with_classes:
        inner = {split_of(each.name) for each in visible(path) if each.is_dir()} - {None}
        if "train" in inner and len(inner) > 1:
            raise DataError(
                f"{path}: holds splits; expected the classes inside the splits, such as {root}/train/{path.name}"
            )


def nested_levels(config: DataConfig) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the names of the levels of nested class folders, and for each class the folders that it is in, the nearest first.

    Raises:
        DataError: As :func:`folder`; or some classes are in more folders than others, or none is in any.
    """
    classes, walk = _read(config)
    place = _split_folders(walk)["train"]
    groups = {name: path.relative_to(place).parts[-2::-1] for name, path in classes["train"].items()}
    depths = {len(each): name for name, each in groups.items()}
    if len(depths) > 1:
        (few, one), *_, (many, other) = sorted(depths.items())
        raise DataError(
            f"data.levels: {NESTED}: class '{one}' is in {few} folder(s) below {place}, '{other}' in {many}; expected as many"
        )
    (depth,) = depths
    if not depth:
        raise DataError(
            f"data.levels: {NESTED}: expected the class folders in folders of their groups, such as {place}/Laridae/Herring_Gull"
        )
    levels = ["group"] if depth == 1 else [f"group {number}" for number in range(1, depth + 1)]
    return ("class", *levels), groups


def _leaves(path: Path, walk: FolderWalk) -> list[Path]:
    """Return the folders below one, or itself, that hold no folders.

    Raises:
        DataError: One holds photos too.
    """
    inner = [each for each in sorted(visible(path)) if each.is_dir() and not walk.leads_inside(each)]
    if inner and any(not each.is_dir() and why_no_photo(each) is None for each in visible(path)):
        raise DataError(
            f"data.levels: {NESTED}: {path} holds both photos and folders; expected one of the two"
        )
    return [leaf for each in inner for leaf in _leaves(each, walk)] if inner else [path]


def _class_folders(place: Path, walk: FolderWalk, *, nested: bool = False) -> dict[str, Path]:
    """Return the class folders of a split by the names of their classes; ``nested``: those that hold no further folders."""
    folders: dict[str, Path] = {}
    found = _folders(place, walk)
    for path in [leaf for each in found for leaf in _leaves(each, walk)] if nested else found:
        name = class_name(path.name)
        if not name:
            raise DataError(
                f"{place}: the class folder {path.name!a} has a name that cannot be seen; rename it"
            )
        if name in folders:
            raise DataError(
                f"{place}: two class folders are both '{name}', {folders[name].name!a} and {path.name!a}; put them together"
            )
        folders[name] = path
    if not folders:
        loose = sum(path.is_file() and why_no_photo(path) is None for path in visible(place))
        found_there = f"{loose} photos in no folder" if loose else "no folder"
        raise DataError(f"{place}: expected one folder of photos for each class, found {found_there}")
    return folders


def _records(
    folders: dict[str, Path], walk: FolderWalk, names: list[str], chosen: list[str], *, or_none: bool = False
) -> list[Record]:
    """Return the photos of one split in a fixed order; a class must have some, ``or_none``."""
    for name, path in folders.items():
        if name not in names:
            raise DataError(
                f"{path}: no class of this name among the training photos{did_you_mean(name, names)}"
            )
    records: list[Record] = []
    for label, name in enumerate(chosen):
        if name not in folders:
            continue
        photos = sorted(photos_below(folders[name], walk))
        if not photos and not or_none:
            raise DataError(f"{folders[name]}: expected photos ({EXPECTED}) of class '{name}', found none")
        records.extend(Record(path.relative_to(walk.top).as_posix(), label, path) for path in photos)
    return records
