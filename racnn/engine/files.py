"""Files that are replaced as a whole: a crash at any moment leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], *, previous: Path | None = None) -> None:
    """Write a file beside its place, put it on the disk, and only then in its place.

    Args:
        path: Where to.
        write: Called with the open file.
        previous: Where in the same folder to keep the file that is replaced, if there is one. Until the last moment
            that one also stands at ``path``, so that there is no moment without it.
    """
    temporary = temporary_of(path)
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:  # never through a link
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # room on a full disk
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text as a whole."""
    write_atomically(path, lambda file: file.write(text.encode()))


def temporary_of(path: Path) -> Path:
    """Return where a file is written before it is put in its place."""
    return path.with_name(f".{path.name}.tmp")


def sweep(paths: Iterable[Path]) -> None:
    """Delete what a crash left of files that were being written."""
    for path in paths:
        temporary_of(path).unlink(missing_ok=True)


def _keep(path: Path, previous: Path) -> None:
    """Give a file a second name; nothing is copied where the file system can do that."""
    temporary = temporary_of(previous)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, previous)
    temporary.unlink(missing_ok=True)  # to replace a file by another name of itself does nothing
