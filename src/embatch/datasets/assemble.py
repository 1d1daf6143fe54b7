"""One file from many parts, sorted by row, in constant memory."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embatch.datasets.durable import hidden_file, write_whole
from embatch.datasets.parts import group_bounds, read_part, reading_part
from embatch.datasets.vector_file import VECTOR_COLUMN, Matrix, VectorWriter
from embatch.errors import AlignmentError, InvalidRequestError, StorageError
from embatch.storage.places import Place

OPEN_PARTS: Final = 16
"""Parts that are read side by side; of more over the same rows some are merged on disk first."""
_CURSOR_BYTES: Final = 1 << 20
"""Vectors read at a time of each part; reading takes several times as much."""
_CURSOR_ROWS: Final = 8192
_KEY_GROUP_ROWS: Final = 65_536

Piece = tuple[pa.Table, Matrix]
"""Rows without vectors, and their vectors `[n, dims]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span:
    """A sorted file of vectors and the row numbers it covers."""

    path: Place
    low: int
    high: int
    rows: int
    dims: int


def assemble_parquet(
    parts: Sequence[Place], target: Place, *, schema: pa.Schema | None = None
) -> int:
    """Writes all rows of the parts as one Parquet file sorted by row. Gives the number of rows.

    Whole or not at all. `schema` (see `part_schema`) is what an output without parts needs.
    Raises `AlignmentError` when a row stands in two parts.
    """
    spans, schema = _survey(parts, schema)
    count = 0
    with write_whole(target) as temporary:
        writer = VectorWriter(temporary, schema)
        for rows, vectors in _sorted_rows(spans, schema, _beside(target, temporary)):
            writer.write(rows, vectors)
            count += rows.num_rows
        writer.close()
    return count


def assemble_npy(
    parts: Sequence[Place], target: Place, keys_target: Place, *, schema: pa.Schema | None = None
) -> int:
    """Writes the vectors as a float32 array `[n, dims]`, and all else as Parquet, both by row.

    Vector i of `target` belongs to row i of `keys_target`. Else like `assemble_parquet`.
    """
    spans, schema = _survey(parts, schema)
    count = sum(span.rows for span in spans)
    dims = schema.field(VECTOR_COLUMN).type.list_size
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, dims)}
    keys_schema = schema.remove(schema.get_field_index(VECTOR_COLUMN))
    with (
        write_whole(target) as temporary,
        write_whole(keys_target) as keys_temporary,
        temporary.open("wb") as stream,
        pq.ParquetWriter(keys_temporary, keys_schema) as keys,
    ):
        np.lib.format.write_array_header_1_0(stream, header)
        waiting: list[pa.Table] = []
        for rows, vectors in _sorted_rows(spans, schema, _beside(target, temporary)):
            stream.write(np.ascontiguousarray(vectors, dtype="<f4").data)
            waiting.append(rows)
            if sum(table.num_rows for table in waiting) >= _KEY_GROUP_ROWS:
                keys.write_table(pa.concat_tables(waiting).cast(keys_schema))
                waiting.clear()
        if waiting:
            keys.write_table(pa.concat_tables(waiting).cast(keys_schema))
    return count


def _beside(target: Place, temporary: Path) -> Path:
    """The file of this machine beside which hidden ones may be written."""
    return target if isinstance(target, Path) else temporary


def _survey(parts: Sequence[Place], schema: pa.Schema | None) -> tuple[list[_Span], pa.Schema]:
    """What rows each part covers, by its statistics, and the schema they share."""
    spans = []
    for path in parts:
        with reading_part(path) as file:
            found = file.schema_arrow.remove_metadata()
            groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
            rows = file.metadata.num_rows
        schema = schema or found
        if found != schema:
            raise InvalidRequestError(f"the part {path} has other columns than the parts before it")
        if rows:
            bounds = [group_bounds(group) for group in groups]
            low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
            dims = found.field(VECTOR_COLUMN).type.list_size
            spans.append(_Span(path=path, low=low, high=high, rows=rows, dims=dims))
    if schema is None:
        raise InvalidRequestError("no parts to assemble, and no schema for an empty output")
    return spans, schema


def _sorted_rows(spans: list[_Span], schema: pa.Schema, target: Path) -> Iterator[Piece]:
    """All rows by row number; what must be merged beforehand goes to hidden files by `target`."""
    with ExitStack() as stack:
        while len(crowd := _most_crowded(spans)) > OPEN_PARTS:
            chosen = sorted(crowd, key=lambda span: span.rows)[:OPEN_PARTS]
            path = stack.enter_context(hidden_file(target))
            writer = VectorWriter(path, schema)
            for rows, vectors in _merged(chosen):
                writer.write(rows, vectors)
            writer.close()
            merged = _Span(
                path=path,
                low=min(span.low for span in chosen),
                high=max(span.high for span in chosen),
                rows=sum(span.rows for span in chosen),
                dims=chosen[0].dims,
            )
            spans = [span for span in spans if span not in chosen] + [merged]
        yield from _merged(spans)


def _most_crowded(spans: Sequence[_Span]) -> list[_Span]:
    """The spans over the row number that most spans lie over."""
    crowd: list[_Span] = []
    active: list[_Span] = []
    for span in sorted(spans, key=lambda span: span.low):
        active = [other for other in active if other.high >= span.low] + [span]
        if len(active) > len(crowd):
            crowd = active
    return crowd


def cursor_rows(dims: int) -> int:
    """Rows read at a time of each part."""
    return max(1, min(_CURSOR_BYTES // (4 * dims), _CURSOR_ROWS))


class _Cursor:
    """A part that is read from its beginning, a piece at a time."""

    def __init__(self, span: _Span) -> None:
        self._batches = read_part(span.path, batch_rows=cursor_rows(span.dims))
        self._path = span.path
        self.rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.advance()

    def advance(self) -> bool:
        """Takes the next piece; False at the end."""
        for batch, matrix in self._batches:
            self._batch, self._matrix, last = batch, matrix, self.rows[-1:]
            self.rows = batch.column("row").to_numpy()
            if not (np.diff(np.concatenate([last, self.rows])) > 0).all():
                raise StorageError(f"the rows of {self._path} do not ascend: the part is broken")
            return True
        return False

    def take(self, bound: int) -> Piece:
        """The piece's rows up to `bound`; they are no longer in it."""
        count = int(np.searchsorted(self.rows, bound, side="right"))
        taken = pa.Table.from_batches([self._batch.slice(0, count)]), self._matrix[:count]
        self._batch, self._matrix = self._batch.slice(count), self._matrix[count:]
        self.rows = self.rows[count:]
        return taken


def _merged(spans: Sequence[_Span]) -> Iterator[Piece]:
    """The rows of all spans by row number; those are read that lie over the same rows."""
    waiting = sorted(spans, key=lambda span: span.low, reverse=True)
    cursors: list[_Cursor] = []
    last = -1
    while waiting or cursors:
        if not cursors:
            cursors.append(_Cursor(waiting.pop()))
        bound = min(int(cursor.rows[-1]) for cursor in cursors)
        while waiting and waiting[-1].low <= bound:
            cursors.append(_Cursor(waiting.pop()))
            bound = min(bound, int(cursors[-1].rows[-1]))
        rows, vectors = _interleaved([cursor.take(bound) for cursor in cursors])
        numbers = np.concatenate([[last], rows.column("row").to_numpy()])
        if not (np.diff(numbers) > 0).all():
            twice = int(numbers[1:][np.diff(numbers) <= 0][0])
            raise AlignmentError(f"row {twice} stands in two parts: verify the output")
        last = int(numbers[-1])
        yield rows, vectors
        cursors = [cursor for cursor in cursors if len(cursor.rows) or cursor.advance()]


def _interleaved(pieces: list[Piece]) -> Piece:
    pieces = [piece for piece in pieces if piece[0].num_rows]
    if len(pieces) == 1:
        return pieces[0]
    rows = pa.concat_tables([rows for rows, _ in pieces])
    order = np.argsort(rows.column("row").to_numpy(), kind="stable")
    return rows.take(pa.array(order)), np.concatenate([matrix for _, matrix in pieces])[order]
