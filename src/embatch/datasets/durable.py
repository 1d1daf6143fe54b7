"""Files that appear whole or not at all, and stay after a power cut."""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embatch.errors import StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


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


def storage_error(path: Path, error: OSError) -> StorageError:
    """What to tell the user when writing `path` failed."""
    if error.errno in _FULL:
        return StorageError(
            f"the disk is full while writing {path}: free some space and start again"
        )
    return StorageError(f"{path} cannot be written: {error.strerror or error}")


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Gives a hidden name beside `path` to write to; at the end it becomes `path`, fsynced.

    An exception inside removes the hidden file and leaves `path` as it was. A refusing disk is a
    `StorageError`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        fsync_path(temporary)
        temporary.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes_whole(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, whole or not at all."""
    with write_whole(path) as temporary:
        temporary.write_bytes(data)
