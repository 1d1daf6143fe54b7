"""Files of vectors: the columns of a part, and how they are written fast in constant memory."""

from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embatch.datasets.column_types import kept_name
from embatch.datasets.stage import DIGEST_BYTES
from embatch.errors import InvalidRequestError

Matrix = NDArray[np.float32]

GROUP_BYTES: Final = 8 << 20
"""Vectors of one row group together: what a reader and a writer must hold."""
GROUP_ROWS: Final = range(256, 65_537)
VECTOR_COLUMN: Final = "embedding"
_PART_COLUMNS: Final = ("key", "row", "text_sha256")
_STAGE_COLUMNS: Final = frozenset({*_PART_COLUMNS, "text", "owner_row"})


def part_columns(rows: pa.Table | pa.RecordBatch) -> pa.Table:
    """What of a stage goes into a part: `key`, `row`, `text_sha256` and the kept columns."""
    kept = [name for name in rows.schema.names if name not in _STAGE_COLUMNS]
    columns = [rows.column(name) for name in (*_PART_COLUMNS, *kept)]
    return pa.table(columns, names=[*_PART_COLUMNS, *map(kept_name, kept)])


def part_schema(dims: int, columns: pa.Schema | None = None) -> pa.Schema:
    """Columns of a part: `key`, `row`, `text_sha256`, `embedding` then the kept ones."""
    keep = [] if columns is None else [f for f in columns if f.name not in _PART_COLUMNS]
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("text_sha256", pa.binary(DIGEST_BYTES), nullable=False),
            pa.field(VECTOR_COLUMN, pa.list_(pa.float32(), dims)),
            *keep,
        ]
    )


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


def group_rows(dims: int) -> int:
    """Rows of a row group."""
    return min(max(GROUP_BYTES // (4 * dims), GROUP_ROWS.start), GROUP_ROWS.stop - 1)


class VectorWriter:
    """A Parquet file of vectors, written in row groups of about `GROUP_BYTES`."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._group_rows = group_rows(schema.field(VECTOR_COLUMN).type.list_size)
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._writer = pq.ParquetWriter(
            path,
            schema,
            # Vectors do not compress; dictionaries and statistics of them halve the speed.
            use_dictionary=False,
            write_statistics=["row"],
            write_page_checksum=True,
            compression={field.name: "snappy" for field in schema if field.name != VECTOR_COLUMN}
            | {f"{VECTOR_COLUMN}.list.element": "none"},
        )

    def write(self, rows: pa.Table, vectors: Matrix) -> None:
        """Adds rows (all columns but the vectors) and their vectors `[n, dims]`.

        Vectors that cannot be written to are taken to stay as they are until the file is closed.
        """
        full = self._pending_rows + rows.num_rows >= self._group_rows
        # What waits must not change when the caller fills its buffer anew.
        stays = full or not vectors.flags.writeable
        column = vector_array(vectors if stays else np.array(vectors, dtype=np.float32))
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
