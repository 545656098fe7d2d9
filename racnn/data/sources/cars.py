"""Stanford Cars (Krause et al. 2013): 196 models, in either of the two layouts that it was given out in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from racnn.data.sources.catalog import Box, Catalog, Record, check_photos_exist, chosen_classes, existing_root
from racnn.data.sources.matfiles import read_mat, read_struct
from racnn.errors import DataError
from racnn.sections import DataConfig

BOX = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
TEST_LABELS = "cars_test_annos_withlabels.mat"
EXPECTED = "car_ims/ with cars_annos.mat, or cars_train/, cars_test/ and devkit/ with " + TEST_LABELS


def cars(config: DataConfig) -> Catalog:
    """Read Stanford Cars: ``car_ims/`` + ``cars_annos.mat``, or ``cars_train/``, ``cars_test/``, ``devkit/``.

    The second layout's test photos need ``cars_test_annos_withlabels.mat``, beside devkit/ or in it: devkit.tgz alone
    holds no test labels. ``config.classes`` names the class ids of the .mat files, from 1.

    Raises:
        DataError: A file or photo is missing or damaged, the test labels are missing, or a mirror has other numbers.
    """
    root = existing_root(config, EXPECTED)
    devkit = root / "devkit"
    if (root / "cars_annos.mat").is_file() and ((root / "car_ims").is_dir() or not devkit.is_dir()):
        names, rows = _together(root)
    elif devkit.is_dir():
        names, rows = _apart(root)
    else:
        raise DataError(f"{root}: expected {EXPECTED}")
    ids = {class_id for _, _, class_id, _ in rows}
    if unnamed := ids - set(range(1, len(names) + 1)):
        raise DataError(
            f"{root}: class id {min(unnamed)} has no name; expected 1 to {len(names)} (a mirror that counts from 0?)"
        )
    class_ids = chosen_classes(config, ids, root)
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for split, relative, class_id, box in rows:
        if class_id in label_of:
            splits[split].append(Record(relative, label_of[class_id], root / relative, box))
    hint = "the numbers must be those of the .mat files; some mirrors renumber"
    check_photos_exist([*splits["train"], *splits["test"]], hint)
    class_names = [names[class_id - 1] for class_id in class_ids]
    return Catalog("cars", class_names, train=splits["train"], val=None, test=splits["test"])


Row = tuple[str, str, int, Box]  # split, path, class id, box


def _together(root: Path) -> tuple[list[str], list[Row]]:
    """Read the layout with one folder of photos."""
    path = root / "cars_annos.mat"
    names = _class_names(path)
    rows = [
        _row("test" if _whole(row["test"], path) else "train", str(row["relative_im_path"]), row, path)
        for row in read_struct(path, "annotations", "relative_im_path", "class", "test", *BOX)
    ]
    return names, rows


def _apart(root: Path) -> tuple[list[str], list[Row]]:
    """Read the layout with a folder for each split."""
    devkit = root / "devkit"
    labelled = next((p for p in (root / TEST_LABELS, devkit / TEST_LABELS) if p.is_file()), None)
    if labelled is None:
        raise DataError(
            f"{root}: {TEST_LABELS} is missing, and without it the test photos have no labels; "
            f"put it into {root} or {devkit}"
        )
    rows: list[Row] = []
    for split, path in (("train", devkit / "cars_train_annos.mat"), ("test", labelled)):
        for row in read_struct(path, "annotations", "fname", "class", *BOX):
            rows.append(_row(split, f"cars_{split}/{row['fname']}", row, path))
    return _class_names(devkit / "cars_meta.mat"), rows


def _class_names(path: Path) -> list[str]:
    return [str(name).strip() for name in read_mat(path, "class_names")["class_names"]]


def _row(split: str, relative: str, values: dict[str, Any], path: Path) -> Row:
    """Return a row of the .mat file at ``path``, checked."""
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise DataError(f"{path}: expected a photo inside the folder, found '{relative}'")
    found = [values[corner] for corner in BOX]
    try:
        x0, y0, x1, y1 = map(float, found)
    except (TypeError, ValueError):
        raise DataError(f"{path}: expected numbers in {', '.join(BOX)}, found {found}") from None
    if not (x1 > x0 and y1 > y0):
        raise DataError(f"{path}: expected bbox_x1 < bbox_x2 and bbox_y1 < bbox_y2, found {[x0, y0, x1, y1]}")
    return split, relative, _whole(values["class"], path), (x0, y0, x1, y1)


def _whole(value: Any, path: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DataError(f"{path}: expected a whole number, found {value!r}") from None
