"""Checkpoints: one file that ``torch.load(weights_only=True)`` reads, written atomically, checked by a digest.

The digest covers names, types and bytes of everything in the file and travels inside it, under ``digest``. A file of
an older format is brought up to date as it is read. What is in a content is checked by :mod:`racnn.engine.stored`.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from racnn.engine.digest import digest, disallowed
from racnn.engine.files import write_atomically
from racnn.engine.published import SUFFIX, read_published
from racnn.errors import CheckpointError, DamagedError
from racnn.models.weights import what_it_is

FORMAT = 2


def _from_format_1(content: dict[str, Any]) -> dict[str, Any]:
    """The layers of the compact APN were not normalised."""
    config = content["config"]
    apn = config["model"].get("apn", "compact")
    model = {**config["model"], "apn": "compact_unnormalised" if apn == "compact" else apn}
    return {**content, "config": {**config, "model": model}}


# For each older format, what turns a content of it into one of the next. Add a function here, raise FORMAT, and make
# a fixture of the new format with tests/fixtures/make.py; the old ones stay.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1}
NAMES = ("last.pt", "previous.pt", "best.pt")
NEEDED = {"format", "model", "config", "class_names", "digest"}


def save_checkpoint(path: Path, content: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write a checkpoint so that a crash at any moment leaves the old one or the new one, never half of one.

    Args:
        path: Where to.
        content: Plain types and tensors only: what ``weights_only`` loading accepts.
        previous: Where in the same folder to keep the checkpoint that is replaced.
    """
    content = {"format": FORMAT, **content}
    found = disallowed(content, room=sys.maxsize)
    assert found is None, found
    content["digest"] = digest(content)
    write_atomically(path, lambda file: _write(content, file), previous=previous)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or an exported .safetensors file, onto the CPU. Nothing in the file is ever executed.

    Raises:
        CheckpointError: Missing, damaged, not a checkpoint of this program, or of a newer format. Whole checkpoints
            beside it are named.
    """
    return up_to_date(as_written(path), path)


def as_written(path: Path) -> dict[str, Any]:
    """Return the content of a file with its own format and digest, which was checked; raise as above."""
    try:
        return _verified(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint{_whole_beside(path)}") from None
    except DamagedError as error:
        raise DamagedError(f"{error}{_whole_beside(path)}") from None


def _whole_beside(path: Path) -> str:
    """Return which other checkpoints of a folder can be read, as the end of a sentence."""
    others = [str(other) for name in NAMES if (other := path.with_name(name)) != path and is_whole(other)]
    return f"; whole in the same folder: {', '.join(others)}" if others else ""


def is_whole(path: Path) -> bool:
    """Return whether a file is a checkpoint that can be read."""
    try:
        up_to_date(_verified(path), path)
    except (CheckpointError, OSError):
        return False
    return True


def up_to_date(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a content as this version writes it, without its digest, which was that of the file.

    Raises:
        CheckpointError: It is of a newer format, or not of the format it says.
    """
    content = {key: value for key, value in content.items() if key != "digest"}
    number = content["format"]
    if type(number) is not int or number < 1:
        raise CheckpointError(f"{path}: format: expected a number from 1 to {FORMAT}, got {number!r}")
    if number > FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {number} is newer than this version of racnn, which reads up to format {FORMAT}"
        )
    for old in range(number, FORMAT):
        try:
            content = {**MIGRATIONS[old](content), "format": old + 1}
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # nothing in it is checked yet
            raise CheckpointError(f"{path}: its content is not that of checkpoint format {old}") from None
    return content


def _write(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        cause = error.__context__
        if isinstance(
            cause, (OSError, SystemExit)
        ):  # torch covers it with a complaint that the file is not whole
            raise cause from None
        raise


def _verified(path: Path) -> dict[str, Any]:
    if path.is_dir():
        inside = ", ".join(str(path / name) for name in ("best.pt", "last.pt") if (path / name).is_file())
        raise CheckpointError(
            f"{path}: a folder; expected a checkpoint" + (f", such as {inside}" if inside else "")
        )
    if not path.is_file():
        raise FileNotFoundError(path)
    room = path.stat().st_size
    try:
        content = read_published(path) if path.suffix == SUFFIX else _read(path, room)
    except Exception as error:  # of a dozen types; torch's words advise to trust the file
        raise DamagedError(f"{path}: cannot be read as a checkpoint: {what_it_is(path, error)}") from None
    if not isinstance(content, dict) or not content.keys() >= NEEDED:
        raise DamagedError(
            f"{path}: not a racnn checkpoint (expected the keys {', '.join(sorted(NEEDED))}); weights alone are given to "
            "training, as model.weights"
        )
    if found := disallowed(content, room=room):
        raise DamagedError(f"{path}: holds {found}, which no racnn checkpoint does")
    if digest({key: value for key, value in content.items() if key != "digest"}) != content["digest"]:
        raise DamagedError(f"{path}: damaged, its content does not match its digest")
    return content


def _read(path: Path, room: int) -> Any:
    """Read what torch wrote, unless it would unpack to more than the file: torch itself never packs."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if sum(record.file_size for record in records) > room:
        raise ValueError("packed")
    return torch.load(path, map_location="cpu", weights_only=True)
