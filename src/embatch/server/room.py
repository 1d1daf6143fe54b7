"""Room on the disk: looked for before a batch is made, and kept back so that one can be deleted."""

import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from embatch.errors import ProviderUnavailableError
from embatch.server.wire import ApiError
from embatch.service.files import FLOAT_BYTES, ROW

BALLAST_BYTES: Final = 8 << 20
"""Kept back: what a database and its log take to write down that batches are gone."""
BALLAST_FILE: Final = "ballast"
_PLENTY: Final = 4
"""The ballast is taken when so many times its size is free."""
_CHARS: Final = 13
"""Bytes of a number with its comma in an output, about."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_Answer = TypeVar("_Answer")


class Room:
    """What is free in the data folder. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        """Keeps room back where there is plenty."""
        self._folder = folder
        self._ballast = folder / BALLAST_FILE
        self._lock = threading.Lock()
        self.keep()

    def keep(self) -> None:
        """Takes the ballast again once there is plenty of room."""
        with self._lock:
            if self._ballast.exists() or self._free() < _PLENTY * BALLAST_BYTES:
                return
            try:
                with self._ballast.open("xb") as file:
                    os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
            except OSError as error:
                self._ballast.unlink(missing_ok=True)
                if error.errno not in _FULL:
                    raise

    def with_ballast(self, remove: Callable[[], _Answer]) -> _Answer:
        """Does what frees room; on a full disk once more, with the room that was kept back."""
        try:
            return remove()
        except (OSError, ProviderUnavailableError) as error:
            if not _is_full(error):
                raise
            with self._lock:
                self._ballast.unlink(missing_ok=True)
            return remove()

    def check(self, rows: int, dims: int) -> None:
        """ApiError 503 when so many results of `dims` values would not find room."""
        needed = rows * (dims * (FLOAT_BYTES + _CHARS) + ROW.itemsize)
        free = self._free()
        if needed > free:
            raise ApiError(
                503,
                f"The results of {rows} rows of {dims} dims take about {needed >> 20} MiB, but "
                f"the server has {free >> 20} MiB free: delete batches and files, or ask for less.",
            )

    def _free(self) -> int:
        return shutil.disk_usage(self._folder).free


def _is_full(error: Exception) -> bool:
    cause = error.__cause__
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
    return isinstance(error, OSError) and error.errno in _FULL
