"""Files that appear whole or not at all, and stay after a power cut."""

import errno
import fcntl
import glob
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embatch.errors import StorageError
from embatch.storage.places import Place, is_work_folder, make_folder, new_object

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HIDDEN_SUFFIX = ".tmp"


def fsync_path(path: Path) -> None:
    """Forces a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def storage_error(path: Place, error: OSError) -> StorageError:
    """What to tell the user when writing `path` failed."""
    if error.errno in _FULL:
        return StorageError(
            f"the disk is full while writing {path}: free some space and start again"
        )
    return StorageError(f"{path} cannot be written: {error.strerror or error}")


@contextmanager
def hidden_file(target: Path) -> Iterator[Path]:
    """A hidden file beside `target` to write to, removed at the end unless it was renamed.

    What killed processes left of the same target is removed first: a lock, which dies with its
    process, tells it from the file of one that works.
    """
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.*{_HIDDEN_SUFFIX}"):
        _remove_unlocked(leftover)
    path, descriptor = _locked(target)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(target: Path) -> tuple[Path, int]:
    while True:
        path = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{_HIDDEN_SUFFIX}")
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # another process took it for a leftover before it was locked


def _remove_unlocked(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


@contextmanager
def write_whole(path: Place, *, settled: bool = False) -> Iterator[Path]:
    """Gives a hidden name beside `path` to write to; at the end it becomes `path`, fsynced.

    Its folder must be there, but for those within the folder of a run's work. In an object store
    it is a file of this machine, put there whole at the end. An exception inside leaves `path` as
    it was. A refusing disk is a `StorageError`. `settled` as for `local_copy`.
    """
    try:
        if not isinstance(path, Path):
            with new_object(path, settled=settled) as written:
                yield written
            return
        if any(is_work_folder(folder) for folder in path.parents):
            make_folder(path.parent)
        with hidden_file(path) as temporary:
            yield temporary
            fsync_path(temporary)
            temporary.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def write_bytes_whole(path: Place, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    if not isinstance(path, Path):
        path.write_bytes(data)
        return
    with write_whole(path) as temporary:
        temporary.write_bytes(data)
