"""Where a batch's vectors come together: in memory, or in a file that several processes map."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from embatch.datasets.durable import storage_error
from embatch.storage.places import make_folder
from embatch.types.results import Matrix

IN_MEMORY_BYTES: Final = 32 << 20
"""More than this is gathered in a mapped file."""
LET_GO_BYTES: Final = 16 << 20
"""What is written into a mapped file, or read from it, before its pages are let go."""


class _MappedFile(mmap.mmap):
    """Its pages are in the file, whether this process holds them or not."""


@contextmanager
def gathered(work: Path, name: str, items: int, dims: int) -> Iterator[Matrix]:
    """Room for vectors `[items, dims]`, gone at the end: in memory, or the file `vectors_path`.

    Raises StorageError when the disk has no room.
    """
    if items * dims * 4 <= IN_MEMORY_BYTES:
        # The allocator would keep the memory for each thread; a mapping goes when it is done.
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        mapped = mmap.mmap(-1, items * dims * 4, flags=anonymous)
        yield np.frombuffer(mapped, dtype=np.float32).reshape(items, dims)
        return
    path = vectors_path(work, name)
    try:
        _allocate(path, items * dims * 4)
        yield map_vectors(path, items, dims)
    finally:
        path.unlink(missing_ok=True)


def vectors_path(work: Path, name: str) -> Path:
    """The file of the many vectors that are gathered under `name`."""
    return work / f".vectors-{name}.f32"


def _allocate(path: Path, size_bytes: int) -> None:
    # A hole that the disk cannot fill would end the process at a write into the mapping.
    try:
        make_folder(path.parent)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        raise storage_error(path, error) from error


def map_vectors(path: Path, items: int, dims: int) -> Matrix:
    """The vectors `[items, dims]` in a file that `gathered` made, here or in another process."""
    with path.open("r+b") as file:
        mapped = _MappedFile(file.fileno(), items * dims * 4)
    return np.frombuffer(mapped, dtype=np.float32).reshape(items, dims)


def let_go(matrix: Matrix) -> None:
    """Lets go of a mapped file's pages, which count as this process's memory; nothing is lost.

    A matrix in memory stays as it is.
    """
    owner: object = matrix
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, _MappedFile):
        owner.madvise(mmap.MADV_DONTNEED)
