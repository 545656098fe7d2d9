"""Files that are written for the user: none is ever put in the place of what this program did not write itself.

Beside what it writes the program keeps a record, ``.racnn-written``: one JSON object a line with the name and the
sha256 of a file. What stands in the record with its present content may be replaced. Anything else, a link too, and
what was changed since, is somebody's work.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from racnn.errors import ConfigError

RECORD = ".racnn-written"
STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/null")  # are written to, not replaced
MOST_NAMED = 5  # files in one message


def refuse_foreign(
    paths: Iterable[Path],
    *,
    flag: str,
    photo_folders: Iterable[Path] = (),
    ours: Callable[[Path], bool] = lambda path: False,
) -> None:
    """Refuse to write where something stands that this program did not write. Call it before any work is done.

    Args:
        paths: Files that are to be written.
        flag: Name of the flag that chose them, for the message.
        photo_folders: Folders with the user's photos; in these nothing at all is replaced.
        ours: Whether a file that is not in the record can be told by its content to be one of this program's.

    Raises:
        ConfigError: With the first files that stand in the way, and why.
    """
    guarded = {folder.resolve() for folder in photo_folders}
    read = functools.cache(read_record)
    obstacles = []
    for path in paths:
        if str(path) in STREAMS:
            continue
        refuse_blocked(path.parent, flag)
        why = _obstacle(path, read(path.parent), ours)
        if why is None and os.path.lexists(path) and path.parent.resolve() in guarded:
            why = "lies among the photos, where nothing is replaced"
        if why is not None:
            obstacles.append(f"{path} {why}")
    if obstacles:
        more = f"; and {len(obstacles) - MOST_NAMED} more" if len(obstacles) > MOST_NAMED else ""
        raise ConfigError(
            f"{flag}: {'; '.join(obstacles[:MOST_NAMED])}{more}: nothing was written; move it away, or choose another {flag}"
        )


def refuse_blocked(folder: Path, flag: str) -> None:
    """Refuse a folder that cannot be made because a file stands in its way.

    Raises:
        ConfigError: With the flag or key that names the folder.
    """
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                raise ConfigError(f"{flag}: {place} is a file; expected a folder")
            return


def write_bytes(
    path: Path, content: bytes, *, flag: str, ours: Callable[[Path], bool] = lambda path: False
) -> None:
    """Write a file for the user as a whole, see :func:`write_file`."""
    write_file(path, lambda file: file.write(content), flag=flag, ours=ours)


def write_text(path: Path, text: str, *, flag: str) -> None:
    """Write a text for the user, see :func:`write_file`; names of files that are no UTF-8 keep their bytes."""
    write_bytes(path, text.encode("utf-8", errors="surrogateescape"), flag=flag)


def write_json(path: Path, content: Any, *, flag: str) -> None:
    """Write plain types for the user as JSON, see :func:`write_file`."""
    write_text(path, json.dumps(content, indent=2) + "\n", flag=flag)


def write_file(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    flag: str,
    ours: Callable[[Path], bool] = lambda path: False,
    checked: bool = False,
) -> None:
    """Write a file for the user as a whole, and note it in the record beside it; its folder is made.

    Args:
        path: The file.
        write: Called with the open file.
        flag: Name of the flag that chose the file, for the message.
        ours: Whether a file that is not in the record can be told to be one of this program's.
        checked: :func:`refuse_foreign` has just been asked, of many files at once.

    Raises:
        ConfigError: Something stands there that this program did not write.
    """
    if not checked:
        refuse_foreign([path], flag=flag, ours=ours)
    elif path.is_symlink():
        raise ConfigError(f"{flag}: {path} is a link by now")
    if str(path) in STREAMS:
        with path.open("wb") as stream:
            write(stream)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".racnn-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        _note(path, file_sha256(temporary))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def is_written(path: Path, record: dict[str, set[str]]) -> bool:
    """Return whether a file is as this program wrote it, by the record of its folder."""
    return path.name in record and file_sha256(path) in record[path.name]


def read_record(folder: Path) -> dict[str, set[str]]:
    """Return the sha256 of every file that this program wrote into a folder, by name; several where it wrote it again.

    A line that a crash has torn is passed over.

    Raises:
        ConfigError: Something else stands in the record's place.
    """
    path = folder / RECORD
    record: dict[str, set[str]] = defaultdict(set)
    if not os.path.lexists(path):
        return record
    try:
        found = path.lstat()
        lines = path.read_text(encoding="utf-8").splitlines() if stat.S_ISREG(found.st_mode) else ["a link"]
    except (OSError, ValueError):
        lines = ["something that is no text"]
    for line in lines:
        try:
            row = json.loads(line)
            record[row["name"]].add(row["sha256"])
        except (ValueError, LookupError, TypeError):
            continue
    if lines and not record:
        raise ConfigError(f"{path}: is not the record of what racnn wrote into this folder; move it away")
    return record


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it, and return the ones that were not there, the outermost first."""
    made = [place for place in (folder, *folder.parents) if not place.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Delete the folders that :func:`make_folders` made, as far as they are still empty."""
    with suppress(OSError):  # somebody else uses it by now
        for folder in reversed(list(folders)):
            folder.rmdir()


def _note(path: Path, sha256: str) -> None:
    line = json.dumps({"name": path.name, "sha256": sha256}) + "\n"
    with (path.parent / RECORD).open("ab+") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":  # torn by a crash
            file.write(b"\n")
        file.write(line.encode())


def _obstacle(path: Path, record: dict[str, set[str]], ours: Callable[[Path], bool]) -> str | None:
    """Return why a path may not be written to, or None."""
    if path.name == RECORD:
        return "is where the record of what racnn wrote stands"
    if not os.path.lexists(path):
        return None
    if path.is_symlink():
        return "is a link"
    if not path.is_file():
        return "is a folder" if path.is_dir() else "is no regular file"
    if path.name in record:
        return None if is_written(path, record) else "was changed since racnn wrote it"
    return None if ours(path) else "is there already, and nothing says that racnn wrote it"
