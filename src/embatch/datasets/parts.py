"""Output parts: the Parquet file of a batch's vectors, written under a lease, then published."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
from embatch.datasets.stage import DIGEST_BYTES
from embatch.errors import InvalidRequestError, NotFoundError, StorageError

Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

GROUP_BYTES: Final = 16 << 20
"""Vectors of one row group together: what a reader must hold."""
_GROUP_ROWS: Final = range(256, 65_537)
_READ_BYTES: Final = 4 << 20
"""Vectors that a reader of a part is given at a time."""
VECTOR_COLUMN: Final = "embedding"


def part_schema(dims: int, keep: pa.Schema) -> pa.Schema:
    """Columns of a part: `key`, `row`, `text_sha256`, `embedding` and the kept ones."""
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("text_sha256", pa.binary(DIGEST_BYTES), nullable=False),
            pa.field(VECTOR_COLUMN, pa.list_(pa.float32(), dims)),
            *keep,
        ]
    )


def part_name(number: int) -> str:
    """The name of a published part."""
    return f"part-{number:05d}.parquet"


def temporary_name(number: int, token: str) -> str:
    """The hidden name under which the holder of the lease `token` writes a part."""
    return f".part-{number:05d}.{token}.tmp"


def vector_array(matrix: Matrix) -> pa.FixedSizeListArray:
    """A matrix `[n, d]` as a column, without a copy when it is C-contiguous float32."""
    flat = np.ascontiguousarray(matrix, dtype=np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def vector_matrix(array: pa.FixedSizeListArray) -> Matrix:
    """The column as `[n, d]`, without a copy. A null vector is an `InvalidRequestError`."""
    if array.null_count:
        raise InvalidRequestError("the embedding column holds null vectors")
    flat: Matrix = array.flatten().to_numpy(zero_copy_only=True)
    return flat.reshape(len(array), array.type.list_size)


class VectorWriter:
    """A Parquet file of vectors, written in row groups of about `GROUP_BYTES`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        dims = schema.field(VECTOR_COLUMN).type.list_size
        rows = GROUP_BYTES // (4 * dims)
        self._group_rows = min(max(rows, _GROUP_ROWS.start), _GROUP_ROWS.stop - 1)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._writer = pq.ParquetWriter(
            path,
            schema,
            # Vectors do not compress; dictionaries and statistics of them halve the speed.
            use_dictionary=False,
            write_statistics=["row"],
            compression={field.name: "snappy" for field in schema if field.name != VECTOR_COLUMN}
            | {f"{VECTOR_COLUMN}.list.element": "none"},
        )

    def write(self, rows: pa.Table, vectors: Matrix) -> None:
        """Adds rows (all columns but the vectors) and their vectors `[n, dims]`."""
        full = self._pending_rows + rows.num_rows >= self._group_rows
        # What waits must not change when the caller fills its buffer anew.
        column = vector_array(vectors if full else np.array(vectors, dtype=np.float32))
        arrays = [
            column if name == VECTOR_COLUMN else rows.column(name) for name in self._schema.names
        ]
        self._pending.append(pa.table(arrays, schema=self._schema))
        self._pending_rows += rows.num_rows
        if full:
            self._flush()

    def _flush(self) -> None:
        if self._pending_rows:
            table = pa.concat_tables(self._pending)
            self._writer.write_table(table, row_group_size=self._group_rows)
        self._pending, self._pending_rows = [], 0

    def close(self, *, flush: bool = True) -> None:
        """Ends the file; with `flush` False what was not written yet is dropped."""
        if flush:
            self._flush()
        self._writer.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedPart:
    """A part that is complete on disk under its hidden name."""

    temp_name: str
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

    def __init__(
        self, folder: Path, *, number: int, token: str, dims: int, keep_schema: pa.Schema
    ) -> None:
        self.path: Final = folder / temporary_name(number, token)
        self._dims = dims
        self._rows = 0
        self._row_min = self._row_max = -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer: VectorWriter | None = VectorWriter(
                self.path, part_schema(dims, keep_schema)
            )
        except OSError as error:
            raise storage_error(self.path, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self.abort()

    def write(self, rows: pa.Table, vectors: Matrix) -> None:
        """Adds rows and their vectors `[n, dims]` in ascending row order, over all calls.

        `rows` holds `key`, `row`, `text_sha256` and the kept columns; other columns are left out.
        """
        if vectors.shape != (rows.num_rows, self._dims):
            raise InvalidRequestError(
                f"{rows.num_rows} rows of {self._dims} dims cannot have vectors {vectors.shape}"
            )
        if not rows.num_rows:
            return
        numbers = np.concatenate([[self._row_max], rows.column("row").to_numpy()])
        if not (numbers[1:] > numbers[:-1]).all():
            raise InvalidRequestError(f"the rows of {self.path.name} do not ascend")
        try:
            self._open_writer().write(rows, vectors)
        except OSError as error:
            self.abort()
            raise storage_error(self.path, error) from error
        if self._rows == 0:
            self._row_min = int(numbers[1])
        self._row_max = int(numbers[-1])
        self._rows += rows.num_rows

    def finish(self) -> FinishedPart:
        """Completes the file and forces it to disk; it is still hidden."""
        writer = self._open_writer()
        if not self._rows:
            self.abort()
            raise InvalidRequestError(f"{self.path.name} holds no rows: a part needs one")
        try:
            writer.close()
            fsync_path(self.path)
            sha256, size = file_sha256(self.path), self.path.stat().st_size
        except OSError as error:
            self.abort()
            raise storage_error(self.path, error) from error
        self._writer = None
        return FinishedPart(
            temp_name=self.path.name,
            sha256=sha256,
            size_bytes=size,
            rows=self._rows,
            row_min=self._row_min,
            row_max=self._row_max,
        )

    def abort(self) -> None:
        """Deletes the unfinished file. Safe to call twice."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        with suppress(OSError):  # the disk that refused before may refuse the footer too
            writer.close(flush=False)
        self.path.unlink(missing_ok=True)

    def _open_writer(self) -> VectorWriter:
        if self._writer is None:
            raise InvalidRequestError(f"{self.path.name} is finished or given up")
        return self._writer


def publish_part(folder: Path, temp_name: str, number: int) -> str:
    """Gives a finished part its name, `part-00012.parquet`; anyone may do so again.

    Raises `NotFoundError` when neither the hidden file nor the part is there.
    """
    name = part_name(number)
    target = folder / name
    try:
        (folder / temp_name).replace(target)
    except FileNotFoundError as error:
        if not target.exists():
            raise NotFoundError(
                f"part {number} is lost: neither {temp_name} nor {name} is in {folder}"
            ) from error
    except OSError as error:
        raise storage_error(target, error) from error
    fsync_path(folder)
    return name


def read_part(
    path: Path, columns: Sequence[str] | None = None, *, batch_rows: int | None = None
) -> Iterator[tuple[pa.RecordBatch, Matrix]]:
    """A part's rows in order, as batches without the vectors and matrices `[n, dims]`.

    `columns` names the ones wanted beside the vectors, None all. A broken file raises
    `StorageError`.
    """
    with _reading(path) as file:
        schema = file.schema_arrow
        names = [name for name in schema.names if name != VECTOR_COLUMN]
        wanted = names if columns is None else list(columns)
        rows = batch_rows or reader_rows(schema.field(VECTOR_COLUMN).type.list_size)
        for batch in file.iter_batches(rows, columns=[*wanted, VECTOR_COLUMN]):
            yield batch.select(wanted), vector_matrix(batch.column(VECTOR_COLUMN))


def reader_rows(dims: int) -> int:
    """Rows that a reader takes at a time: about 4 MB of vectors."""
    return min(max(_READ_BYTES // (4 * dims), _GROUP_ROWS.start), 8192)


def part_rows(path: Path) -> Rows:
    """The row numbers of a part, ascending."""
    with _reading(path) as file:
        rows: Rows = file.read(columns=["row"]).column("row").to_numpy()
        return rows


def part_vectors_at(path: Path, rows: ArrayLike) -> tuple[Mask, Matrix]:
    """The vectors of these rows, in any order: which were found `[n]`, and the found ones `[m, d]`.

    `matrix[i]` belongs to `rows[mask][i]`. Row groups without a hit are not read.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    with _reading(path) as file:
        dims = file.schema_arrow.field(VECTOR_COLUMN).type.list_size
        mask = np.zeros(wanted.size, dtype=np.bool_)
        found = np.empty((wanted.size, dims), dtype=np.float32)
        for group in range(file.num_row_groups):
            low, high = group_bounds(file.metadata.row_group(group))
            if not ((wanted >= low) & (wanted <= high)).any():
                continue
            there = file.read_row_group(group, columns=["row"]).column("row").to_numpy()
            places = np.minimum(np.searchsorted(there, wanted), there.size - 1)
            hits = there[places] == wanted
            if hits.any():
                table = file.read_row_group(group, columns=[VECTOR_COLUMN])
                vectors = vector_matrix(table.column(0).combine_chunks())
                found[hits] = vectors[places[hits]]
                mask |= hits
    return mask, found[mask]


def group_bounds(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Lowest and highest row number of a row group, by its statistics."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema == "row" and column.is_stats_set and column.statistics.has_min_max:
            return int(column.statistics.min), int(column.statistics.max)
    return 0, np.iinfo(np.int64).max


@contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with open_parquet(path) as file:
            yield file
    except FileNotFoundError as error:
        raise StorageError(f"the part {path} is gone") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StorageError(f"the part {path} is broken: {error}") from error
