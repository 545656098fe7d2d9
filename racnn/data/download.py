"""Fetch an archive and unpack it, so that neither a bad line nor a bad archive does harm."""

from __future__ import annotations

import filecmp
import http.client
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from racnn import __version__
from racnn.errors import DataError
from racnn.written import file_sha256

CHUNK = 1 << 20  # bytes
UNFINISHED = ".unpacking-"  # begins the names of folders that archives are unpacked into
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A file of a data set as its authors publish it: its name, address, bytes and hash."""

    name: str
    url: str
    size: int
    sha256: str


def fetch(archive: Archive, folder: Path, *, url: str | None = None) -> Path:
    """Download an archive into a folder, from a mirror's ``url`` if given, going on from an earlier try, and check it.

    What has come stands in ``NAME.part`` and takes the archive's name when size and hash are right.

    Raises:
        DataError: The server refuses, sends something else, or stops early (then another call goes on).
    """
    target = folder / archive.name
    if target.is_file():
        check_archive(archive, target)
        return target
    part = folder / f"{archive.name}.part"
    if part.is_symlink():
        raise DataError(f"{part}: is a link, where the download would go; move it away")
    if part.exists() and part.stat().st_size > archive.size:
        part.unlink()
    if not part.exists() or part.stat().st_size < archive.size:
        _download(archive, url or archive.url, part)
    try:
        check_archive(archive, part)
    except DataError:
        part.unlink()  # it would be wrong the next time too
        raise
    os.replace(part, target)
    return target


def check_archive(archive: Archive, path: Path) -> None:
    """Refuse a file that is not the archive.

    Raises:
        DataError: Its size or hash is another, or it is a web page.
    """
    if _is_page(path):
        raise DataError(
            f"{path}: is a web page, not {archive.name}; fetch the file itself by hand, see --from"
        )
    size = path.stat().st_size
    if size != archive.size:
        raise DataError(
            f"{path}: expected {archive.size} bytes, found {size}: it is cut short or another file"
        )
    found = file_sha256(path)
    if found != archive.sha256:
        raise DataError(
            f"{path}: expected sha256 {archive.sha256}, found {found}: it is damaged or another file"
        )


def _download(archive: Archive, url: str, part: Path) -> None:
    """Append to ``part`` what is missing of the archive."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": f"racnn/{__version__}"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    by_hand = f"fetch {archive.name} by hand and pass it with --from"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if have and answer.status != 206:  # the server knows no ranges and sends all of it
                have = 0
            length = answer.headers.get("Content-Length", "")
            if length.isdigit() and int(length) + have != archive.size:  # before anything is overwritten
                raise DataError(
                    f"{url}: sends {int(length) + have} bytes where {archive.name} has {archive.size}: a web page or "
                    f"another file; {by_hand}"
                )
            _receive(archive, answer, part, have)
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what we have is not the start of what the server has
            part.unlink(missing_ok=True)
            raise DataError(
                f"{url}: the server has another file; what had come is deleted, try again"
            ) from None
        raise DataError(f"{url}: the server answers {error.code} {error.reason}; {by_hand}") from None
    except urllib.error.URLError as error:
        raise DataError(f"{url}: cannot be reached ({error.reason}); try again, or {by_hand}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # the line is dead, or the address none
        raise DataError(f"{url}: {error or type(error).__name__}; try again to go on, or {by_hand}") from None


def _receive(archive: Archive, answer: IO[bytes], part: Path, have: int) -> None:
    """Write what comes after the first ``have`` bytes."""
    bar = tqdm(desc=archive.name, total=archive.size, initial=have, unit="B", unit_scale=True, disable=None)
    with part.open("r+b" if have else "wb") as file, bar:
        file.seek(have)
        while have <= archive.size and (chunk := answer.read(CHUNK)):
            file.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if have < archive.size and not _is_page(part):
        raise DataError(
            f"{archive.name}: the connection ended after {have} of {archive.size} bytes; run again to go on from there"
        )


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(256).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def unpack(
    path: Path,
    folder: Path,
    *,
    replace: Collection[str] = (),
    claim: Callable[[list[str]], None] = lambda names: None,
) -> list[Path]:
    """Unpack a tar archive so that all of it appears in a folder, or nothing.

    ``claim`` is told the names that are about to appear. If this call is killed a later one may ``replace`` what of them
    it finds.

    Raises:
        DataError: It is damaged, holds a link, device or a name that leaves the folder, or what it holds is there already.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED) as temporary:
        inside = Path(temporary)
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    _refuse_unsafe(member, path)
                    _unpack_one(archive, member, inside)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:  # ValueError: a zero in a name
            raise DataError(f"{path}: cannot be unpacked: {error}") from None
        arrived = sorted(inside.iterdir())
        for entry in arrived:
            if os.path.lexists(folder / entry.name) and entry.name not in replace:
                raise DataError(
                    f"{folder / entry.name}: is there already; move it away, or choose another --root"
                )
        claim([entry.name for entry in arrived])
        for entry in arrived:
            remove(folder / entry.name)
            os.rename(entry, folder / entry.name)
    return [folder / entry.name for entry in arrived]


def _unpack_one(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a plain file or a folder; of the archive's owners, modes and times nothing is taken."""
    target = folder / member.name
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None, "only links and devices have none"
    with content, target.open("wb") as file:
        shutil.copyfileobj(content, file)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a call of :func:`unpack` that was killed left half unpacked."""
    for left in folder.glob(f"{UNFINISHED}*"):
        remove(left)


def _refuse_unsafe(member: tarfile.TarInfo, path: Path) -> None:
    name = Path(member.name)
    if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
        kind = "file" if member.isfile() else "link" if member.islnk() or member.issym() else "entry"
        raise DataError(f"{path}: holds the {kind} '{member.name}'; expected plain files inside the folder")


def place(path: Path, folder: Path) -> Path:
    """Copy a file into a folder at once, unless it is there.

    Raises:
        DataError: Another file of its name is.
    """
    target = folder / path.name
    same = path.resolve() == target.resolve()
    if same or (target.is_file() and filecmp.cmp(path, target, shallow=False)):
        return target
    if os.path.lexists(target):
        raise DataError(
            f"{target}: is there already, and is not {path}; move it away, or choose another --root"
        )
    temporary = folder / f"{UNFINISHED}{uuid.uuid4().hex}"
    shutil.copyfile(path, temporary)
    os.replace(temporary, target)
    return target
