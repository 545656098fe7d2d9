"""A folder of class folders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from racnn.config import DataConfig
from racnn.data.catalog import Catalog, Record, chosen_classes, existing_root, hold_out
from racnn.data.photos import PHOTO_SUFFIXES, photos_below, visible
from racnn.errors import DataError, did_you_mean

HELD_OUT = {
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}  # splits beside train, and what their folders are called
TEST_FRACTION = 0.2  # of a folder that has no test photos of its own


def folder(config: DataConfig) -> Catalog:
    """Read ``root/<class>/*.jpg``, or ``root/train/<class>``, ``root/val/<class>`` and ``root/test/<class>``.

    Photos may lie deeper inside a class folder; hidden files and folders are passed over. ``valid`` and
    ``validation`` also name the validation photos. Without a test folder 20 % of every class's training photos are
    held out for testing, by ``config.split_seed``. ``config.classes`` counts the sorted class folders from 1.

    Raises:
        DataError: There are no class folders, or only one; one has no photos; validation or test know a class that training
            does not; there are folders of photos beside train, val and test.
    """
    root = existing_root(config, "a folder with one folder of photos for each class")
    places = _split_folders(root)
    names = sorted(_class_folders(places["train"]))
    if len(names) == 1:
        _refuse_single_class(places["train"] / names[0])
    chosen = [names[i - 1] for i in chosen_classes(config, range(1, len(names) + 1), places["train"])]
    splits = {split: _folder_records(root, place, names, chosen) for split, place in places.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = hold_out(
            splits["train"], fraction=TEST_FRACTION, seed=config.split_seed, purpose="test"
        )
    return Catalog(
        dataset="folder",
        class_names=chosen,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        part_names=[],
        focus_parts=(),
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """Return where train, val and test are; a root of class folders is all train."""
    folders = {path.name.lower(): path for path in visible(root) if path.is_dir()}
    train = folders.get("train")
    if train is None or not any(path.is_dir() for path in visible(train)):  # a class may be called "train"
        strange = sorted(folders.keys() & {"training", "testing", "test", "val", "valid", "validation"})
        for name in strange:
            if any(path.is_dir() for path in visible(folders[name])):
                raise DataError(
                    f"{folders[name]}: looks like a split, not a class; expected {root}/train (and val, test) of class "
                    "folders, or class folders alone"
                )
        return {"train": root}
    places = {"train": train}
    for split, aliases in HELD_OUT.items():
        found = [folders[alias] for alias in aliases if alias in folders]
        if len(found) > 1:
            raise DataError(f"{found[0]} and {found[1]}: expected one folder of validation photos")
        if found:
            places[split] = found[0]
    for name in sorted(folders.keys() - {"train", *itertools.chain(*HELD_OUT.values())}):
        if any(path.suffix.lower() in PHOTO_SUFFIXES for path in visible(folders[name])):
            raise DataError(
                f"{folders[name]}: a folder of photos beside {train}; expected train (and val, test) alone, or class folders alone"
            )
    return places


def _refuse_single_class(place: Path) -> NoReturn:
    inside = [path for path in visible(place) if path.is_dir()]
    hint = f"; did you mean {place}, which holds {len(inside)} folders?" if len(inside) > 1 else ""
    raise DataError(f"{place.parent}: expected at least two class folders, found only '{place.name}'{hint}")


def _class_folders(place: Path) -> dict[str, Path]:
    folders = {path.name: path for path in visible(place) if path.is_dir()}
    if not folders:
        raise DataError(f"{place}: expected one folder of photos for each class, found no folder")
    return folders


def _folder_records(root: Path, place: Path, names: Sequence[str], chosen: Sequence[str]) -> list[Record]:
    """Return the photos of one split in a fixed order."""
    folders = _class_folders(place)
    for name in folders:
        if name not in names:
            raise DataError(
                f"{folders[name]}: no class of this name among the training photos{did_you_mean(name, names)}"
            )
    records: list[Record] = []
    for label, name in enumerate(chosen):
        if name not in folders:
            continue
        photos = sorted(photos_below(folders[name]))
        if not photos:
            known = ", ".join(sorted(PHOTO_SUFFIXES))
            raise DataError(f"{folders[name]}: expected photos ({known}) of class '{name}', found none")
        records.extend(Record(path.relative_to(root).as_posix(), label, path) for path in photos)
    return records
