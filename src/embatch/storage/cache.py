"""Copies of objects on this machine, up to a size: what is used now and what may be again."""

import contextlib
import fcntl
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from embatch.errors import StorageError


class Cache:
    """Files in one folder, by name. Processes may share it.

    A file that is held is never removed; of the others the longest unused go when the folder has
    grown past `most_bytes`.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._added = most_bytes  # so that the first addition looks at the folder
        self._adding = threading.Lock()

    def path_of(self, name: str, suffix: str = "") -> Path:
        """Where the copy called `name` lies, or would."""
        return self._folder / (hashlib.sha256(name.encode()).hexdigest()[:32] + suffix)

    @contextmanager
    def held(self, path: Path) -> Iterator[bool]:
        """Keeps the copy at `path` from being removed; False when there is none."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                with contextlib.suppress(OSError):
                    os.utime(path)
                yield True
            else:
                yield False
        finally:
            os.close(descriptor)

    @contextmanager
    def new_file(self) -> Iterator[Path]:
        """A file of its own to write to; gone at the end unless `adopt` took it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f".{uuid.uuid4().hex}.tmp"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield path
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def adopt(self, written: Path, path: Path) -> None:
        """Gives a file of `new_file` its place among the copies, and makes room for it."""
        size = written.stat().st_size
        written.replace(path)
        with self._adding:
            self._added += size
            if self._added * 16 >= self._most_bytes:
                self._added = 0
                self._make_room()

    def fill(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Writes a copy to `path`; StorageError when this machine's disk does not take it.

        What `chunks` raises passes as it is.
        """
        with ExitStack() as stack:
            with self._asked():
                written = stack.enter_context(self.new_file())
                file = stack.enter_context(written.open("wb"))
            for chunk in chunks:
                with self._asked():
                    file.write(chunk)
            with self._asked():
                file.close()
                self.adopt(written, path)

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """What the disk refuses is a StorageError."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._folder} cannot take a copy: {error.strerror or error}; free some space, "
                "or set EMBATCH_CACHE to a folder with more"
            ) from error

    def remove(self, path: Path) -> None:
        """Removes a copy, if there is one."""
        path.unlink(missing_ok=True)

    def _make_room(self) -> None:
        """Removes what is unused the longest, and what killed processes left half written."""
        found = []
        for entry in os.scandir(self._folder):
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                # A file is half written only while it is locked, so the oldest come first.
                found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        size = sum(size for _, size, _ in found)
        for _, bytes_there, path in sorted(found):
            half = path.name.endswith(".tmp")
            if (half or size > self._most_bytes) and _removed_unless_held(path):
                size -= bytes_there


def sweep(folder: Path, unused_s: float) -> None:
    """Removes folders below `folder` in which no file was written to for so long.

    They are of runs that ended on another machine; one that goes on brings its files again.
    """
    for root, _, names in os.walk(folder, topdown=False):
        here = Path(root)
        with contextlib.suppress(OSError):  # others are in it, or removed it in this instant
            # A folder that was made or changed lately may be about to get its files.
            newest = max(path.stat().st_mtime for path in (here, *(here / name for name in names)))
            if newest < time.time() - unused_s:
                for name in names:
                    (here / name).unlink(missing_ok=True)
                here.rmdir()


def _removed_unless_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)
