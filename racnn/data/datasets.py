"""Where photos come from: CUB-200-2011, a folder of class folders, drawn birds.

Each data set is one function from the configuration to a catalog: the names of the classes, and for every photo
where it is, what it shows, and what is annotated. No photo is opened before it is asked for.

Convention:
    Boxes (xyxy) and points (x, y) are in pixels of the upright photo, x right, y down, its outer corners at (0, 0)
    and (w, h). Labels count from 0 in the order of the class ids.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageOps

from racnn.config import DataConfig, parse_ranges
from racnn.errors import DataError, did_you_mean

Box = tuple[float, float, float, float]
Part = tuple[float, float, float]

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
TEST_FRACTION = 0.2  # of a folder that has no test photos of its own
CUB_HEAD = frozenset({"beak", "crown", "forehead", "left eye", "right eye", "nape", "throat"})
FIRST_DRAWN_TEST = 1_000_000


@dataclass(frozen=True)
class Record:
    """One photo: a name that is unique in the data set, its label, and its annotations as far as they are known."""

    name: str
    label: int
    path: Path | None = None
    box_xyxy: Box | None = None
    parts: tuple[Part, ...] = ()  # (x, y, visible)


def read_record(record: Record) -> np.ndarray:
    """Return the photo of a record that has a path, uint8 [h, w, 3]."""
    assert record.path is not None
    return read_photo(record.path)


def recorded_annotations(record: Record) -> tuple[Box | None, tuple[Part, ...]]:
    """Return the box and parts that stand in the record."""
    return record.box_xyxy, record.parts


@dataclass(frozen=True)
class Catalog:
    """A data set: its classes, its annotated parts, its splits, and how a record is turned into pixels.

    ``focus_parts`` are the positions of the parts whose mean is the telling part. ``val`` is None where the data set
    brings no validation photos. ``annotate`` exists because drawn birds learn their boxes only when they are drawn.
    """

    dataset: str
    class_names: list[str]
    train: list[Record]
    val: list[Record] | None
    test: list[Record]
    part_names: list[str]
    focus_parts: tuple[int, ...]
    load: Callable[[Record], np.ndarray] = read_record
    annotate: Callable[[Record], tuple[Box | None, tuple[Part, ...]]] = recorded_annotations


def hold_out(
    records: Sequence[Record], *, fraction: float, seed: int, purpose: str
) -> tuple[list[Record], list[Record]]:
    """Take a fraction of every class, chosen by a hash of seed and name.

    So the choice depends neither on the order of the records nor on the other classes, nor on a random generator that
    may change. A class of two photos or more gives at least one and keeps at least one; a single photo stays.

    Returns:
        What is kept and what is held out, each in the given order.
    """
    classes = defaultdict(list)
    for record in records:
        classes[record.label].append(record.name)
    held: set[str] = set()
    for names in classes.values():
        names.sort(key=lambda name: hashlib.sha256(f"{purpose}:{seed}:{name}".encode()).digest())
        held.update(names[: min(max(round(len(names) * fraction), 1), len(names) - 1)])
    return [r for r in records if r.name not in held], [r for r in records if r.name in held]


# --- photos -----------------------------------------------------------------------------------------------------------


def read_photo(path: Path) -> np.ndarray:
    """Return a photo as it is meant to be seen: upright, RGB, transparency dropped, uint8 [h, w, 3].

    Raises:
        DataError: The file is missing, is not a photo, is damaged or cut short, or claims too many pixels.
    """
    try:
        with Image.open(path) as photo:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and photo.width * photo.height > limit:
                raise DataError(
                    f"expected at most {limit} pixels, the header says {photo.width}x{photo.height}"
                )
            return np.array(_to_rgb(ImageOps.exif_transpose(photo)))
    except FileNotFoundError:
        raise DataError(f"{path}: no such photo") from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise DataError(f"{path}: cannot be read as a photo: {error or type(error).__name__}") from None


def _to_rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
        levels = np.asarray(photo).astype(np.float64) / 257
        photo = Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    elif photo.mode in ("P", "PA"):  # a palette may hold transparency
        photo = photo.convert("RGBA")
    return photo.convert("RGB")


# --- CUB-200-2011 -----------------------------------------------------------------------------------------------------


def cub200(config: DataConfig) -> Catalog:
    """Read CUB-200-2011, or any data set in its layout.

    ``config.classes`` names class ids as they stand in classes.txt; without it, all classes that have photos. Ids may
    have gaps. bounding_boxes.txt and the two files in parts/ are optional, as a whole and for each photo.

    Raises:
        DataError: A file or photo is missing, a line is malformed, or ids contradict each other.
    """
    root = _existing_root(config, "a folder with images.txt and images/")
    if not (root / "images.txt").is_file() and (root / "CUB_200_2011" / "images.txt").is_file():
        root = root / "CUB_200_2011"
    images = _Table(root / "images.txt", "<image id> <path>", (int, str))
    labels = _Table(root / "image_class_labels.txt", "<image id> <class id>", (int, int))
    classes = _Table(root / "classes.txt", "<class id> <name>", (int, str))
    split = _Table(root / "train_test_split.txt", "<image id> <1 for training or 0 for test>", (int, _flag))
    boxes = _read_boxes(root / "bounding_boxes.txt")
    part_names, parts = _read_parts(root / "parts" / "parts.txt", root / "parts" / "part_locs.txt")

    for image_id, (class_id,) in labels.values.items():
        if class_id not in classes.values:
            labels.fail(image_id, f"class id {class_id} is not in {classes.path}")
    class_of = {image_id: labels.of(image_id, images)[0] for image_id in images.values}
    class_ids = _chosen_classes(config, set(class_of.values()), images.path)
    label_of = {class_id: label for label, class_id in enumerate(class_ids)}

    splits: dict[bool, list[Record]] = {True: [], False: []}
    seen: set[str] = set()
    for image_id, (relative,) in images.values.items():
        if class_of[image_id] not in label_of:
            continue
        path = root / "images" / relative
        if not path.is_file():
            images.fail(image_id, f"the photo {path} does not exist")
        if relative in seen:
            images.fail(image_id, f"'{relative}' stands twice")
        seen.add(relative)
        located = parts.get(image_id, {})
        record = Record(
            name=f"images/{relative}",
            label=label_of[class_of[image_id]],
            path=path,
            box_xyxy=boxes.get(image_id),
            parts=tuple(located.get(part_id, (0.0, 0.0, 0.0)) for part_id in part_names),
        )
        splits[split.of(image_id, images)[0]].append(record)
    return Catalog(
        dataset="cub200",
        class_names=[_clean_class_name(classes.values[class_id][0]) for class_id in class_ids],
        train=splits[True],
        val=None,
        test=splits[False],
        part_names=list(part_names.values()),
        focus_parts=tuple(i for i, name in enumerate(part_names.values()) if name in CUB_HEAD),
    )


class _Table:
    """The lines of an annotation file, by the ids they start with."""

    def __init__(
        self, path: Path, columns: str, kinds: Sequence[Callable[[str], Any]], *, num_keys: int = 1
    ) -> None:
        self.path, self.columns = path, columns
        self.values: dict[Any, tuple[Any, ...]] = {}
        self._numbers: dict[Any, int] = {}
        for number, line in enumerate(_read_lines(path, columns), start=1):
            if not line.strip():
                continue
            try:
                fields = line.strip().split(maxsplit=len(kinds) - 1)
                row = tuple(kind(field) for kind, field in zip(kinds, fields, strict=True))
            except ValueError:
                raise DataError(
                    f"{path}, line {number}: expected '{columns}', found '{line.strip()}'"
                ) from None
            key = row[0] if num_keys == 1 else row[:num_keys]
            if key in self.values:
                raise DataError(
                    f"{path}, line {number}: id {key} already stands in line {self._numbers[key]}"
                )
            self.values[key], self._numbers[key] = row[num_keys:], number

    def of(self, key: int, asker: _Table) -> tuple[Any, ...]:
        """Return the values of an id that another file names."""
        if key not in self.values:
            asker.fail(key, f"id {key} has no line '{self.columns}' in {self.path}")
        return self.values[key]

    def fail(self, key: Any, what: str) -> NoReturn:
        """Raise what is wrong with the line of an id."""
        raise DataError(f"{self.path}, line {self._numbers[key]}: {what}")


def _read_lines(path: Path, columns: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected lines '{columns}'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None


def _read_boxes(path: Path) -> dict[int, Box]:
    """Return the box of every image that has one."""
    if not path.is_file():
        return {}
    kinds = (int, _finite, _finite, _positive, _positive)
    table = _Table(path, "<image id> <x> <y> <width> <height>", kinds)
    return {image_id: (x, y, x + w, y + h) for image_id, (x, y, w, h) in table.values.items()}


def _read_parts(names_path: Path, places_path: Path) -> tuple[dict[int, str], dict[int, dict[int, Part]]]:
    """Return the parts' names by part id, and where they are by image id and part id."""
    if not (names_path.is_file() and places_path.is_file()):
        return {}, {}
    names = {
        part_id: name
        for part_id, (name,) in _Table(names_path, "<part id> <name>", (int, str)).values.items()
    }
    kinds = (int, int, _finite, _finite, _flag)
    table = _Table(places_path, "<image id> <part id> <x> <y> <1 if visible, else 0>", kinds, num_keys=2)
    places: dict[int, dict[int, Part]] = defaultdict(dict)
    for (image_id, part_id), (x, y, visible) in table.values.items():
        if part_id not in names:
            table.fail((image_id, part_id), f"part id {part_id} is not in {names_path}")
        places[image_id][part_id] = (x, y, float(visible))
    return names, places


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise ValueError
    return value


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError
    return text == "1"


def _clean_class_name(name: str) -> str:
    """Turn ``001.Black_footed_Albatross`` into ``Black footed Albatross``."""
    return re.sub(r"^\d+\.", "", name).replace("_", " ")


# --- a folder of class folders ----------------------------------------------------------------------------------------


def folder(config: DataConfig) -> Catalog:
    """Read ``root/<class>/*.jpg``, or ``root/train/<class>``, ``root/val/<class>`` and ``root/test/<class>``.

    Photos may lie deeper inside a class folder; hidden files and folders are passed over. ``valid`` and
    ``validation`` also name the validation photos. Without a test folder 20 % of every class's training photos are
    held out for testing, by ``config.split_seed``. ``config.classes`` counts the sorted class folders from 1.

    Raises:
        DataError: There are no class folders, one has no photos, or validation or test know a class that training
            does not.
    """
    root = _existing_root(config, "a folder with one folder of photos for each class")
    places = _split_folders(root)
    names = sorted(_class_folders(places["train"]))
    chosen = [names[i - 1] for i in _chosen_classes(config, range(1, len(names) + 1), places["train"])]
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
    folders = {path.name.lower(): path for path in _visible(root) if path.is_dir()}
    train = folders.get("train")
    if train is None or not any(path.is_dir() for path in _visible(train)):  # a class may be called "train"
        strange = sorted(folders.keys() & {"training", "testing", "test", "val", "valid", "validation"})
        for name in strange:
            if any(path.is_dir() for path in _visible(folders[name])):
                raise DataError(
                    f"{folders[name]}: looks like a split, not a class; expected {root}/train (and val, test) of class "
                    "folders, or class folders alone"
                )
        return {"train": root}
    places = {"train": train}
    for split, aliases in (("val", ("val", "valid", "validation")), ("test", ("test",))):
        found = [folders[alias] for alias in aliases if alias in folders]
        if len(found) > 1:
            raise DataError(f"{found[0]} and {found[1]}: expected one folder of validation photos")
        if found:
            places[split] = found[0]
    return places


def _class_folders(place: Path) -> dict[str, Path]:
    folders = {path.name: path for path in _visible(place) if path.is_dir()}
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
        photos = sorted(_photos(folders[name]))
        if not photos:
            known = ", ".join(sorted(PHOTO_SUFFIXES))
            raise DataError(f"{folders[name]}: expected photos ({known}) of class '{name}', found none")
        records.extend(Record(path.relative_to(root).as_posix(), label, path) for path in photos)
    return records


def find_photos(places: Iterable[Path]) -> list[Path]:
    """Return the photos named, and those inside the folders named, sorted folder by folder.

    Raises:
        DataError: A path does not exist, or a folder holds no photos.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(_photos(place))
            if not inside:
                raise DataError(
                    f"{place}: no photos in this folder (expected {', '.join(sorted(PHOTO_SUFFIXES))})"
                )
            found.extend(inside)
        elif place.is_file():
            found.append(place)
        else:
            raise DataError(f"{place}: no such photo or folder")
    return found


def _photos(place: Path) -> Iterable[Path]:
    for path in _visible(place):
        if path.is_dir():
            yield from _photos(path)
        elif path.suffix.lower() in PHOTO_SUFFIXES:
            yield path


def _visible(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]


# --- drawn birds ------------------------------------------------------------------------------------------------------


def synthetic_catalog(config: DataConfig) -> Catalog:
    """Describe drawn birds; each is drawn when it is first asked for, and kept in memory.

    Training photos are the drawings 0, 1, ..., test photos the drawings from a million on. ``config.classes`` counts
    the species from 1 and leaves out the drawings of the others.

    Raises:
        DataError: More training photos than there are drawings before the first test photo.
    """
    from racnn.data.synthetic import PART_NAME, SPECIES

    num_train, num_test = config.synthetic.num_train, config.synthetic.num_test
    if num_train > FIRST_DRAWN_TEST:
        raise DataError(f"data.synthetic.num_train: expected at most {FIRST_DRAWN_TEST}, got {num_train}")
    species = [
        i - 1 for i in _chosen_classes(config, range(1, len(SPECIES) + 1), "the species that can be drawn")
    ]
    drawings = _Drawings(seed=config.synthetic.seed, size=config.source_size)

    def records(start: int, count: int) -> list[Record]:
        return [
            Record(f"drawn/{index:07d}", species.index(index % len(SPECIES)))
            for index in range(start, start + count)
            if index % len(SPECIES) in species
        ]

    return Catalog(
        dataset="synthetic",
        class_names=[SPECIES[i] for i in species],
        train=records(0, num_train),
        val=None,
        test=records(FIRST_DRAWN_TEST, num_test),
        part_names=[PART_NAME],
        focus_parts=(0,),
        load=drawings.load,
        annotate=drawings.annotate,
    )


class _Drawings:
    """Drawings by the number in their record's name; a class, because workers must be able to pickle it."""

    def __init__(self, *, seed: int, size: int) -> None:
        self.seed, self.size = seed, size
        self._drawn: dict[str, Any] = {}

    def load(self, record: Record) -> np.ndarray:
        """Return the pixels, uint8 [h, w, 3]."""
        return self._draw(record).image

    def annotate(self, record: Record) -> tuple[Box, tuple[Part, ...]]:
        """Return the bird's box and the centre of its telling part."""
        drawing = self._draw(record)
        x_low, y_low, x_high, y_high = drawing.part_xyxy
        return drawing.bird_xyxy, (((x_low + x_high) / 2, (y_low + y_high) / 2, 1.0),)

    def _draw(self, record: Record) -> Any:
        from racnn.data.synthetic import draw

        if record.name not in self._drawn:
            index = int(record.name.rpartition("/")[2])
            self._drawn[record.name] = draw(seed=self.seed, index=index, size=self.size)
        return self._drawn[record.name]


# --- shared -----------------------------------------------------------------------------------------------------------


def _existing_root(config: DataConfig, expected: str) -> Path:
    if config.root is None:
        raise DataError(f"data.root: not set; expected {expected}")
    root = config.root.expanduser()
    if not root.is_dir():
        raise DataError(f"data.root: {root} is not a folder; expected {expected}")
    return root


def _chosen_classes(config: DataConfig, known: Collection[int], where: object) -> list[int]:
    """Return the ids that ``config.classes`` names, or all, in order."""
    if config.classes is None:
        return sorted(known)
    wanted = parse_ranges(config.classes)
    unknown = [class_id for class_id in wanted if class_id not in known]
    if unknown:
        raise DataError(
            f"data.classes: '{config.classes}' names class {unknown[0]}, of which there are no photos in {where}; "
            f"expected {len(known)} ids from {min(known)} to {max(known)}"
        )
    return wanted
