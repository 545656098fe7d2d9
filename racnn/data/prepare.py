"""Bring an official data set into a folder: its archives, and whether all of it has come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from racnn.data import DATASETS
from racnn.data.download import Archive, check_archive, fetch, place, sweep, unpack
from racnn.data.sources.catalog import Catalog
from racnn.errors import DataError, did_you_mean
from racnn.sections import DataConfig
from racnn.written import make_folders, refuse_blocked, remove_empty

MARKER = ".racnn-prepared.json"


@dataclass(frozen=True)
class Official:
    """An official data set: its name in the configuration, its files, and how many classes and photos it has."""

    dataset: str
    archives: tuple[Archive, ...]
    classes: int
    train: int
    test: int


def _archives(page: str, *files: tuple[str, int, str]) -> tuple[Archive, ...]:
    """Return archives by (path below a page, bytes, sha256)."""
    return tuple(Archive(Path(path).name, f"{page}/{path}", size, sha256) for path, size, sha256 in files)


CUB = _archives(
    "https://data.caltech.edu/records/65de6-vp158/files",
    ("CUB_200_2011.tgz", 1150585339, "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081"),
)
DOGS = _archives(
    "https://vision.stanford.edu/aditya86/ImageNetDogs",
    ("images.tar", 793579520, "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58"),
    ("lists.tar", 481280, "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c"),
    ("annotation.tar", 21852160, "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd"),
)
CARS = _archives(
    "https://ai.stanford.edu/~jkrause",
    ("car196/cars_train.tgz", 979269282, "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288"),
    ("car196/cars_test.tgz", 977350468, "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243"),
    ("cars/car_devkit.tgz", 330960, "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd"),
    (
        "car196/cars_test_annos_withlabels.mat",
        185758,
        "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
    ),
)
OFFICIAL: dict[str, Official] = {
    "cub": Official("cub200", CUB, classes=200, train=5994, test=5794),
    "dogs": Official("dogs", DOGS, classes=120, train=12000, test=8580),
    "cars": Official("cars", CARS, classes=196, train=8144, test=8041),
}


def prepare(
    name: str, root: Path, *, given: Sequence[Path] = (), mirror: str | None = None, keep: bool = False
) -> Catalog:
    """Fetch, check and unpack an official data set, and return its catalog; go on where an earlier call was stopped.

    Args:
        name: A key of ``OFFICIAL``.
        root: The folder to fill; made if need be.
        given: Archives that were fetched by hand, known by their names; they are not deleted.
        mirror: Folder URL to fetch from instead of the authors' page; sizes and hashes stay theirs.
        keep: Keep downloaded archives after they are unpacked.

    Raises:
        DataError: An archive cannot be fetched, is not what it should be, or the data set is incomplete.
    """
    if name not in OFFICIAL:
        raise DataError(
            f"no official data set is called '{name}'{did_you_mean(name, OFFICIAL)}; expected {', '.join(OFFICIAL)}"
        )
    official, root = OFFICIAL[name], root.expanduser()
    by_name = _by_name(given, official)
    refuse_blocked(root, "--root")
    made = make_folders(root)
    try:
        return _bring(official, root, by_name, mirror, keep)
    finally:
        remove_empty(made)  # where nothing has come


def _bring(
    official: Official, root: Path, by_name: dict[str, Path], mirror: str | None, keep: bool
) -> Catalog:
    """Do what :func:`prepare` does, in a folder that is there."""
    sweep(root)
    done = _read_marker(root)
    if not any(archive.name in done for archive in official.archives):
        with suppress(DataError):  # it may have been unpacked by hand
            catalog = _read(official, root)
            if not differences(catalog, official):
                return catalog
    missing = [archive for archive in official.archives if done.get(archive.name) != archive.sha256]
    for number, archive in enumerate(missing):
        was_there = (root / archive.name).is_file()
        if archive.name in by_name:
            path = by_name[archive.name]
            check_archive(archive, path)
        else:
            url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else None
            try:
                path = fetch(archive, root, url=url)
            except DataError as error:
                lines = [
                    f"  {a.name} ({a.size / 1e6:.1f} MB, from {a.url})"
                    for a in missing[number:]
                    if a.name not in by_name
                ]
                needed = "still needed, by hand with --from FILE, or all from a folder with --mirror URL:"
                raise DataError("\n".join([str(error), needed, *lines])) from None
        packed = archive.name.endswith((".tar", ".tgz"))
        if packed:
            claim = partial(_note, root, done, archive.name)
            unpack(path, root, replace=done.get(archive.name, []), claim=claim)
        else:
            place(path, root)
        _note(root, done, archive.name, archive.sha256)
        if packed and archive.name not in by_name and not was_there and not keep:
            path.unlink()
    catalog = _read(official, root)
    if problems := differences(catalog, official):
        raise DataError(
            f"{root}: incomplete: {'; '.join(problems)}; to unpack it anew delete {root / MARKER} and what was unpacked"
        )
    return catalog


def _read(official: Official, root: Path) -> Catalog:
    return DATASETS[official.dataset](DataConfig(dataset=official.dataset, root=root))


def _note(root: Path, done: dict[str, Any], archive: str, state: str | list[str]) -> None:
    """Note the hash of an archive that is unpacked, or the names of what it is about to unpack."""
    done[archive] = state
    _write_marker(root, done)


def differences(catalog: Catalog, official: Official) -> list[str]:
    """Return where a data set's counts differ from the official ones."""
    pairs = (
        ("classes", len(catalog.class_names), official.classes),
        ("training photos", len(catalog.train), official.train),
        ("test photos", len(catalog.test), official.test),
    )
    return [f"{found} of {expected} {what}" for what, found, expected in pairs if found != expected]


def _by_name(given: Sequence[Path], official: Official) -> dict[str, Path]:
    names = [archive.name for archive in official.archives]
    for path in given:
        if path.name not in names:
            raise DataError(
                f"--from {path}: expected one of {', '.join(names)}{did_you_mean(path.name, names)}"
            )
        if not path.is_file():
            raise DataError(f"--from {path}: no such file")
    return {path.name: path for path in given}


def _read_marker(root: Path) -> dict[str, Any]:
    """Return the hash of every archive that was unpacked into a folder; of one that may not have been, its entries."""
    path = root / MARKER
    if not path.is_file():
        return {}
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        done = None
    if not isinstance(done, dict):
        raise DataError(f"{path}: damaged; delete it, and what was unpacked, to begin anew")
    return done


def _write_marker(root: Path, done: dict[str, Any]) -> None:
    temporary = root / f"{MARKER}.tmp"
    temporary.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")
    temporary.replace(root / MARKER)
