"""Output parts: the Parquet file of a batch's vectors, written under a lease, then published."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from embatch.datasets.columnar import open_parquet
from embatch.datasets.durable import file_sha256, fsync_path, storage_error
from embatch.datasets.published import is_settled, object_name, temporary_name
from embatch.datasets.vector_file import (
    GROUP_ROWS,
    VECTOR_COLUMN,
    Matrix,
    VectorWriter,
    part_columns,
    part_schema,
    vector_matrix,
)
from embatch.errors import AlignmentError, InvalidRequestError, StorageError
from embatch.storage.places import Place, local_copy, new_object

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

UNIT_TOLERANCE: Final = 1e-3
"""How far from 1 the length of a normalised vector may be; rounding to float32 stays under 1e-6."""
_READ_BYTES: Final = 4 << 20
"""Vectors that a reader of a part is given at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedPart:
    """A part that is complete on disk under its hidden name."""

    temp_name: str
    """The hidden name; in an object store the name for good, which nothing counts yet."""
    sha256: str
    """Of the file's bytes, hex."""
    size_bytes: int
    rows: int
    row_min: int
    row_max: int


class PartWriter:
    """Writes one part to a hidden file that bears the lease's token.

    A context manager: leaving it by an exception, or without `finish`, deletes the file.
    """

    def __init__(self, folder: Place, *, number: int, token: str, dims: int) -> None:
        self._stack = ExitStack()
        if isinstance(folder, Path):
            self.path = folder / temporary_name(number, token)
            self._temp_name = self.path.name
        else:
            self._temp_name = object_name(number, token)
            target = folder / self._temp_name
            self.path = self._stack.enter_context(new_object(target, settled=True))
        self._dims = dims
        self._rows = 0
        self._row_min = self._row_max = -1
        self._writer: VectorWriter | None = None
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()

    def write(self, rows: pa.Table | pa.RecordBatch, vectors: Matrix) -> None:
        """Adds rows and their vectors `[n, dims]` in ascending row order, over all calls.

        `rows` is a piece of a stage: its key, row, text_sha256 and kept columns are written.
        """
        if vectors.shape != (rows.num_rows, self._dims):
            raise InvalidRequestError(
                f"{rows.num_rows} rows of {self._dims} dims cannot have vectors {vectors.shape}"
            )
        if self._ended:
            raise InvalidRequestError(f"{self.path.name} is finished or given up")
        if not rows.num_rows:
            return
        numbers = np.concatenate([[self._row_max], rows.column("row").to_numpy()])
        if not (numbers[1:] > numbers[:-1]).all():
            raise InvalidRequestError(f"the rows of {self.path.name} do not ascend")
        with self._writing():
            columns = part_columns(rows)
            if self._writer is None:
                schema = part_schema(self._dims, columns.schema)
                self._writer = VectorWriter(self.path, schema)
            self._writer.write(columns, vectors)
        if self._rows == 0:
            self._row_min = int(numbers[1])
        self._row_max = int(numbers[-1])
        self._rows += rows.num_rows

    def finish(self) -> FinishedPart:
        """Completes the file and forces it to disk; it is still hidden."""
        if self._writer is None:
            raise InvalidRequestError(f"{self.path.name} has no rows, or is finished or given up")
        with self._writing():
            self._writer.close()
            fsync_path(self.path)
            sha256, size = file_sha256(self.path), self.path.stat().st_size
            self._stack.close()
        self._writer, self._ended = None, True
        return FinishedPart(
            temp_name=self._temp_name,
            sha256=sha256,
            size_bytes=size,
            rows=self._rows,
            row_min=self._row_min,
            row_max=self._row_max,
        )

    def abort(self) -> None:
        """Deletes the unfinished file. Safe to call twice, and after `finish`."""
        if self._ended:
            return
        self._ended = True
        if self._writer is not None:
            with suppress(OSError):  # the disk that refused before may refuse the footer too
                self._writer.close(flush=False)
        self._writer = None
        self.path.unlink(missing_ok=True)
        self._stack.close()  # no file is left that could be put

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.abort()
            raise storage_error(self.path, error) from error


def read_part(
    path: Place, columns: Sequence[str] | None = None, *, batch_rows: int | None = None
) -> Iterator[tuple[pa.RecordBatch, Matrix]]:
    """A part's rows in order, as batches without the vectors and matrices `[n, dims]`.

    `columns` names the ones wanted beside the vectors, None all. A broken file raises
    `StorageError`.
    """
    with reading_part(path) as file:
        schema = file.schema_arrow
        names = [name for name in schema.names if name != VECTOR_COLUMN]
        wanted = names if columns is None else list(columns)
        rows = batch_rows or reader_rows(schema.field(VECTOR_COLUMN).type.list_size)
        for batch in file.iter_batches(rows, columns=[*wanted, VECTOR_COLUMN]):
            yield batch.select(wanted), vector_matrix(batch.column(VECTOR_COLUMN))


def reader_rows(dims: int) -> int:
    """Rows that a reader takes at a time: about 4 MB of vectors."""
    return min(max(_READ_BYTES // (4 * dims), GROUP_ROWS.start), 8192)


def part_rows(path: Place) -> Rows:
    """The row numbers of a part, ascending."""
    with reading_part(path) as file:
        rows: Rows = file.read(columns=["row"]).column("row").to_numpy()
        return rows


def part_vectors_at(
    path: Place, rows: ArrayLike, digests: Sequence[bytes] | None = None
) -> tuple[Mask, Matrix]:
    """The vectors of these rows, in any order: which were found `[n]`, and the found ones `[m, d]`.

    `matrix[i]` belongs to `rows[mask][i]`. Row groups without a hit are not read. `digests` are the
    SHA-256 that the texts of these rows must have; `AlignmentError` when the part has another.
    `path` may be the keys beside an `.npy` file too: the vectors are read from that.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    with reading_part(path) as file, ExitStack() as stack:
        columns = file.schema_arrow
        apart = VECTOR_COLUMN not in columns.names
        beside = stack.enter_context(_matrix_beside(path, file)) if apart else None
        dims = columns.field(VECTOR_COLUMN).type.list_size if beside is None else beside.shape[1]
        mask = np.zeros(wanted.size, dtype=np.bool_)
        found = np.empty((wanted.size, dims), dtype=np.float32)
        end = 0
        for group in range(file.num_row_groups):
            start, end = end, end + file.metadata.row_group(group).num_rows
            low, high = group_bounds(file.metadata.row_group(group))
            if not ((wanted >= low) & (wanted <= high)).any():
                continue
            there = file.read_row_group(group, columns=["row"]).column("row").to_numpy()
            places = np.minimum(np.searchsorted(there, wanted), there.size - 1)
            hits = there[places] == wanted
            if hits.any():
                if digests is not None:
                    texts = file.read_row_group(group, columns=["text_sha256"])["text_sha256"]
                    _require_texts(path, texts, places, hits, digests)
                vectors = beside[start:end] if beside is not None else _group_vectors(file, group)
                found[hits] = vectors[places[hits]]
                mask |= hits
    return mask, found[mask]


def _group_vectors(file: pq.ParquetFile, group: int) -> Matrix:
    table = file.read_row_group(group, columns=[VECTOR_COLUMN])
    return vector_matrix(table[VECTOR_COLUMN].combine_chunks())


@contextmanager
def _matrix_beside(keys_path: Place, keys: pq.ParquetFile) -> Iterator[Matrix]:
    """The matrix `x.npy` that belongs to `x.keys.parquet`, mapped."""
    path = keys_path.with_suffix("").with_suffix(".npy")
    with ExitStack() as stack:
        try:
            matrix = stack.enter_context(mapped_matrix(path))
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} cannot be read as a matrix: put it back") from error
        if matrix.ndim != 2 or matrix.dtype != np.float32 or len(matrix) != keys.metadata.num_rows:
            raise StorageError(
                f"{path} is a {matrix.dtype} array of shape {matrix.shape}, and {keys_path.name} "
                f"has {keys.metadata.num_rows} keys: put the files back that belong together"
            )
        yield matrix


@contextmanager
def mapped_matrix(path: Place) -> Iterator[Matrix]:
    """The array in an `.npy` file, mapped; OSError and ValueError when it cannot be read."""
    with local_copy(path) as file:
        yield np.load(file, mmap_mode="r")


def _require_texts(
    path: Place, there: pa.ChunkedArray, places: Rows, hits: Mask, digests: Sequence[bytes]
) -> None:
    found = there.take(pa.array(places[hits])).to_pylist()
    wanted = [digests[index] for index in np.flatnonzero(hits).tolist()]
    if found != wanted:
        raise AlignmentError(
            f"{path} holds other texts in its rows than when this run was planned: "
            "put the old file back, or start a new output"
        )


def group_bounds(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Lowest and highest row number of a row group, by its statistics."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == "row" and column.is_stats_set and column.statistics.has_min_max:
            return int(column.statistics.min), int(column.statistics.max)
    return 0, np.iinfo(np.int64).max


@contextmanager
def reading_part(path: Place) -> Iterator[pq.ParquetFile]:
    """Opens a part; whatever breaks while it is read is a `StorageError`."""
    try:
        with open_parquet(path, settled=is_settled(path)) as file:
            yield file
    except FileNotFoundError as error:
        raise StorageError(f"the part {path} is gone") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StorageError(f"the part {path} is broken: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What a look at every row of a part found."""

    name: str
    rows: int
    row_min: int
    row_max: int
    sha256: str
    """Of the file's bytes, hex; empty when the file is gone."""
    size_bytes: int
    problems: tuple[str, ...]
    """One sentence each, naming part, row and key; empty for a sound part."""


def check_part(
    path: Place,
    *,
    dims: int,
    normalized: bool,
    visit: Callable[[pa.RecordBatch], None] | None = None,
) -> PartReport:
    """Reads a whole part: readable, dims, rows ascending, vectors finite and of length 1.

    `visit` is given each batch's `key` and `row`. Never raises for a bad part.
    """
    found = _Findings(path.name, normalized)
    rows, low, high = 0, -1, -1
    try:
        for batch, matrix in read_part(path, ["key", "row"]):
            if matrix.shape[1] != dims:
                found.add(f"vectors have {matrix.shape[1]} dims, not {dims}")
                break
            numbers = np.concatenate([[high], batch.column("row").to_numpy()])
            found.look(batch, numbers, matrix)
            if visit is not None:
                visit(batch)
            low, high = (int(numbers[1]) if rows == 0 else low), int(numbers[-1])
            rows += batch.num_rows
        sha256, size = _fingerprint(path)
    except (StorageError, InvalidRequestError, OSError) as error:
        found.add(str(error))
        sha256, size = "", 0
        with suppress(OSError):
            sha256, size = _fingerprint(path)
    return PartReport(
        name=path.name,
        rows=rows,
        row_min=low,
        row_max=high,
        sha256=sha256,
        size_bytes=size,
        problems=found.sentences(),
    )


def _fingerprint(path: Place) -> tuple[str, int]:
    """SHA-256 of a part's bytes, hex, and how many they are."""
    with local_copy(path, settled=is_settled(path)) as file:
        return file_sha256(file), file.stat().st_size


class _Findings:
    """Problems of one part; of each kind the first row is named and the others are counted."""

    def __init__(self, name: str, normalized: bool) -> None:
        self._name, self._normalized = name, normalized
        self._first: dict[str, str] = {}
        self._count: dict[str, int] = {}

    def add(self, problem: str, where: str = "", count: int = 1) -> None:
        self._first.setdefault(problem, where)
        self._count[problem] = self._count.get(problem, 0) + count

    def look(self, batch: pa.RecordBatch, numbers: Rows, matrix: Matrix) -> None:
        """`numbers` are the batch's rows after the row before them."""
        squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
        finite = np.isfinite(squares)
        self._mark(batch, ~finite, "the vector is not finite")
        if self._normalized:
            long = finite & (np.abs(np.sqrt(squares) - 1.0) > UNIT_TOLERANCE)
            self._mark(batch, long, "the vector is not of length 1")
        self._mark(batch, numbers[1:] <= numbers[:-1], "the row number does not ascend")

    def _mark(self, batch: pa.RecordBatch, bad: Mask, problem: str) -> None:
        if bad.any():
            index = int(np.argmax(bad))
            key, row = batch.column("key")[index].as_py(), batch.column("row")[index].as_py()
            self.add(problem, f"row {row}, key {key!r}: ", int(bad.sum()))

    def sentences(self) -> tuple[str, ...]:
        return tuple(
            f"{self._name}: {where}{problem}"
            + (f" (and {self._count[problem] - 1} more)" if self._count[problem] > 1 else "")
            for problem, where in self._first.items()
        )
