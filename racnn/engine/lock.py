"""A folder for one process at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from racnn.errors import ConfigError
from racnn.written import make_folders, remove_empty

if sys.platform != "win32":
    import fcntl

NAME = ".racnn.lock"


class FolderLock:
    """Keeps other processes out of a run's folder until it is released, or this process ends, however it ends.

    It is a record lock, which the loader's workers do not inherit: they may outlive a process that was killed. Where the file
    system knows no locks, and on Windows, it keeps nobody out.

    Args:
        folder: Is made if it is not there.

    Raises:
        ConfigError: Another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._made = make_folders(folder)
        self.path = folder / NAME
        self.file: IO[str] | None = None
        if sys.platform != "win32":
            self.file = self._locked()
            while not os.fstat(self.file.fileno()).st_nlink:  # another process deleted it in between
                self.file.close()
                self.file = self._locked()

    def _locked(self) -> IO[str]:
        file = self.path.open("a")
        if sys.platform != "win32":
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.close()
                raise ConfigError(
                    f"{self.path.parent}: another process is training there; wait until it ends, or choose another --out"
                ) from None
            except OSError:
                pass
        return file

    def release(self) -> None:
        """Let others in. Folders that were made for this and are empty go."""
        self.path.unlink(missing_ok=True)
        remove_empty(self._made)
        if self.file is not None:
            self.file.close()
