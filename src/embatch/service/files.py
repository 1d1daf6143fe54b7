"""The files of one batch: its requests, its results, and the lock of whoever works on it.

batches/<id>/requests.arrow   an Arrow IPC file, one row a text; never written again
batches/<id>/results.bin      vectors first (row i at i * dims * 4), then one `ROW` a row
batches/<id>/lock             held with flock: the kernel lets go when the process dies
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.errors import BatchFailedError, InputError
from embatch.types.embedding import RowError
from embatch.types.results import Matrix

REQUESTS_FILE: Final = "requests.arrow"
RESULTS_FILE: Final = "results.bin"
LOCK_FILE: Final = "lock"

TEXT_COLUMN: Final = "text"

ROW: Final = np.dtype([("state", "u1"), ("truncated", "?"), ("_", "V2"), ("tokens", "<i4")])
"""What is kept of a row beside its vector."""

FLOAT_BYTES: Final = 4
EMPTY, EMBEDDED, FAILED = 0, 1, 2
"""Values of `ROW.state`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceResult:
    """What became of `n` consecutive rows."""

    vectors: Matrix
    """`[n, dims]`; zeros where the row failed."""
    tokens: NDArray[np.int32]
    """Tokens read of each row, 0 where it failed, `[n]`."""
    truncated: NDArray[np.bool_]
    """Rows cut at the model's limit, `[n]`."""
    errors: Mapping[int, RowError]
    """Why rows failed, by their place in the slice."""

    def rows(self) -> NDArray[np.void]:
        """The `ROW` of each."""
        rows = np.zeros(len(self.tokens), dtype=ROW)
        rows["state"] = EMBEDDED
        rows["truncated"] = self.truncated
        rows["tokens"] = self.tokens
        for place in self.errors:
            rows[place] = np.zeros((), dtype=ROW)
            rows["state"][place] = FAILED
        return rows


class Requests:
    """The texts of a batch, read slice after slice; memory-mapped, so no text is held twice."""

    def __init__(self, path: Path) -> None:
        """Opens the file. Raises `InputError` when it is none, or holds no column of texts."""
        try:
            self._source = pa.memory_map(str(path))
        except OSError as error:
            reason = os.strerror(error.errno or errno.EIO)
            raise InputError(f"{path} cannot be read ({reason}): stage it again") from None
        try:
            self._reader = _open_texts(self._source)
        except pa.ArrowInvalid:
            self.close()
            raise InputError(f"{path} is not a whole Arrow IPC file: stage it again") from None
        except BaseException:
            self.close()
            raise
        self._index = -1
        self._first = 0
        self._texts: pa.Array | None = None

    def count(self) -> int:
        """Rows in the file."""
        return int(self._reader.count_rows())

    def texts(self, start: int, stop: int) -> list[str]:
        """Texts of rows `start` to `stop`, without `stop`; null reads as the empty text."""
        if start < self._first:
            self._index, self._first, self._texts = -1, 0, None
        texts: list[str] = []
        while start < stop:
            if self._texts is None or start >= self._first + len(self._texts):
                self._next()
                continue
            stretch = self._texts.slice(start - self._first, stop - start)
            texts.extend(stretch.fill_null("").to_pylist())
            start += len(stretch)
        return texts

    def _next(self) -> None:
        if self._index + 1 >= self._reader.num_record_batches:
            raise InputError("a batch's request file ends before its last row: submit it again")
        if self._texts is not None:
            self._first += len(self._texts)
        self._index += 1
        self._texts = self._reader.get_batch(self._index).column(0)

    def close(self) -> None:
        """Lets go of the file."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _open_texts(source: pa.NativeFile) -> pa.ipc.RecordBatchFileReader:
    schema = pa.ipc.open_file(source).schema
    column = schema.get_field_index(TEXT_COLUMN)
    if column < 0:
        raise InputError(
            f"the request file has the columns {', '.join(schema.names)}, "
            f"none is called {TEXT_COLUMN!r}"
        )
    kind = schema.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise InputError(f"column {TEXT_COLUMN!r} of the request file holds {kind}, not texts")
    return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[column]))


class ResultFile:
    """Vectors and row states of one batch, written and read at fixed places."""

    def __init__(self, path: Path, *, items: int, dims: int, writable: bool = False) -> None:
        self._vector_bytes = dims * FLOAT_BYTES
        self._dims = dims
        self._rows_at = items * self._vector_bytes
        self._fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)

    def write(self, start: int, part: SliceResult) -> None:
        """Puts the slice whose first row is `start` on the disk, flushed; safe to repeat."""
        vectors = np.ascontiguousarray(part.vectors, dtype="<f4")
        _write_all(self._fd, vectors.data.cast("B"), start * self._vector_bytes)
        rows = memoryview(part.rows().tobytes())
        _write_all(self._fd, rows, self._rows_at + start * ROW.itemsize)
        os.fdatasync(self._fd)

    def read(self, start: int, stop: int) -> tuple[Matrix, NDArray[np.void]]:
        """Vectors `[stop - start, dims]` and the `ROW`s of that stretch."""
        vectors = np.empty((stop - start, self._dims), dtype=np.float32)
        rows = np.empty(stop - start, dtype=ROW)
        _read_all(self._fd, vectors.data.cast("B"), start * self._vector_bytes)
        _read_all(self._fd, rows.view("u1").data, self._rows_at + start * ROW.itemsize)
        return vectors, rows

    def close(self) -> None:
        """Closes the file. Safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _read_all(fd: int, into: memoryview, offset: int) -> None:
    while into:
        count = os.preadv(fd, [into], offset)
        if count == 0:
            raise BatchFailedError(
                "a batch's result file ends before its last row, the disk may have lost data: "
                "delete the batch and submit it again"
            )
        into, offset = into[count:], offset + count


def lock_batch(folder: Path) -> int | None:
    """Takes the batch's lock; gives its descriptor, None when another holds it.

    Close the descriptor to let go. Raises FileNotFoundError when the batch was deleted.
    """
    fd = os.open(folder / LOCK_FILE, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def place_batch(folder: Path, requests: Path) -> None:
    """Makes the batch's folder with its requests, durably: linked where possible, else copied."""
    folder.mkdir()
    target = folder / REQUESTS_FILE
    try:
        target.hardlink_to(requests)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        with requests.open("rb") as source, target.open("xb") as sink:
            shutil.copyfileobj(source, sink)
            sink.flush()
            os.fsync(sink.fileno())
    (folder / RESULTS_FILE).touch()
    (folder / LOCK_FILE).touch()
    sync_folder(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
