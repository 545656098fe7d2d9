"""A folder for one process at a time."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from racnn.errors import ConfigError

if sys.platform != "win32":
    import fcntl

NAME = ".lock"


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
        self.made_folder = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
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
        """Let others in. A folder that was made for this and is empty goes."""
        self.path.unlink(missing_ok=True)
        if self.made_folder:
            with suppress(OSError):  # it is not empty
                self.path.parent.rmdir()
        if self.file is not None:
            self.file.close()
