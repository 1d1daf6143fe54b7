"""Readers of Parquet and Arrow IPC files."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from embatch.datasets.readers import MAX_BLOCK_BYTES, Columns, pieces, reading
from embatch.errors import InputError
from embatch.storage.places import Place, local_copy

STREAM_BUFFER: Final = 1 << 20
"""Bytes read ahead a column: without it a whole column of a row group comes into memory."""
_FILE_MAGIC: Final = b"ARROW1"
_FEATHER_V1_MAGIC: Final = b"FEA1"


@contextmanager
def open_parquet(place: Place, *, settled: bool = False) -> Iterator[pq.ParquetFile]:
    """A Parquet file that is read as a stream, whatever the size of its row groups.

    `settled` as for `local_copy`.
    """
    with (
        local_copy(place, settled=settled) as path,
        pq.ParquetFile(
            path, pre_buffer=False, buffer_size=STREAM_BUFFER, page_checksum_verification=True
        ) as file,
    ):
        yield file


def batch_rows(metadata: pq.FileMetaData, names: tuple[str, ...], block_rows: int) -> int:
    """Rows that keep a batch of these columns within `MAX_BLOCK_BYTES`, at most `block_rows`."""
    wanted = [
        index
        for index in range(metadata.num_columns)
        if metadata.schema.column(index).path.split(".")[0] in names
        or metadata.schema.column(index).path in names
    ]
    row_bytes = 1.0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        size = sum(group.column(index).total_uncompressed_size for index in wanted)
        row_bytes = max(row_bytes, size / max(1, group.num_rows))
    return max(1, min(block_rows, int(MAX_BLOCK_BYTES / row_bytes)))


def checked(
    batch: pa.RecordBatch, names: tuple[str, ...], path: Place, first_row: int
) -> dict[str, pa.Array]:
    """The named columns, each known to be sound UTF-8 and offsets."""
    arrays = {name: batch.column(name) for name in names}
    for name, array in arrays.items():
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            row = first_row + _first_invalid(array)
            raise InputError(
                f"row {row} of {path}, column {name!r}, is not valid: "
                "its bytes are no UTF-8 text or damaged; rewrite the file"
            ) from error
    return arrays


def _first_invalid(array: pa.Array) -> int:
    low, high = 0, len(array)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            array.slice(low, middle - low).validate(full=True)
        except pa.ArrowInvalid:
            high = middle
        else:
            low = middle
    return low


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads Parquet, skipping whole row groups to reach a row."""

    path: Place

    def describe(
        self,
        text: str | None,  # noqa: ARG002 - a Parquet file knows all its columns
        key: str | None,  # noqa: ARG002
        keep: tuple[str, ...],  # noqa: ARG002
    ) -> pa.Schema | None:
        """The schema in the file's footer."""
        with reading(self.path, "Parquet"), open_parquet(self.path) as file:
            return file.schema_arrow

    def read(self, columns: Columns, start: int, block_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows from `start` on; see `Reader.read`."""
        names = columns.needed
        with reading(self.path, "Parquet"), open_parquet(self.path) as file:
            groups, row = _groups_from(file.metadata, start)
            rows = batch_rows(file.metadata, names, block_rows)
            for batch in file.iter_batches(rows, row_groups=groups, columns=list(names)):
                skipped = min(max(0, start - row), batch.num_rows)
                wanted = batch.slice(skipped)
                row += skipped
                if wanted.num_rows:
                    yield columns.arrange(checked(wanted, names, self.path, row))
                row += wanted.num_rows


def _groups_from(metadata: pq.FileMetaData, start: int) -> tuple[list[int], int]:
    """The row groups that hold rows from `start` on, and the first row of the first of them."""
    row = 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        if row + rows > start:
            return list(range(number, metadata.num_row_groups)), row
        row += rows
    return [], row


@dataclass(frozen=True, slots=True)
class ArrowReader:
    """Reads Arrow IPC files (Feather is one) and streams through a memory map."""

    path: Place

    def describe(
        self,
        text: str | None,  # noqa: ARG002 - an Arrow file knows all its columns
        key: str | None,  # noqa: ARG002
        keep: tuple[str, ...],  # noqa: ARG002
    ) -> pa.Schema | None:
        """The schema at the file's start."""
        with (
            reading(self.path, "Arrow IPC"),
            local_copy(self.path) as path,
            path.open("rb") as stream,
        ):
            if stream.read(len(_FILE_MAGIC)) == _FILE_MAGIC:
                return pa.ipc.open_file(str(path)).schema
            return pa.ipc.open_stream(pa.OSFile(str(path))).schema

    def read(self, columns: Columns, start: int, block_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows from `start` on; see `Reader.read`."""
        names = columns.needed
        row = 0
        with reading(self.path, "Arrow IPC"):
            for batch in self._blocks(block_rows):
                skipped = min(max(0, start - row), batch.num_rows)
                wanted = batch.slice(skipped)
                row += skipped
                if wanted.num_rows:
                    yield columns.arrange(checked(wanted, names, self.path, row))
                row += wanted.num_rows

    def _blocks(self, block_rows: int) -> Iterator[pa.RecordBatch]:
        with local_copy(self.path) as path, path.open("rb") as stream:
            magic = stream.read(len(_FILE_MAGIC))
            if magic.startswith(_FEATHER_V1_MAGIC):
                raise InputError(f"{self.path} is Feather version 1: write it again as version 2")
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        source = pa.BufferReader(pa.py_buffer(mapped))
        for batch in _batches(source, whole_file=magic == _FILE_MAGIC):
            for piece in pieces(batch, block_rows):
                yield piece
                # Pages that were read count as this process's memory until they are let go.
                mapped.madvise(mmap.MADV_DONTNEED)


def _batches(source: pa.BufferReader, *, whole_file: bool) -> Iterator[pa.RecordBatch]:
    if not whole_file:
        yield from pa.ipc.open_stream(source)
        return
    reader = pa.ipc.open_file(source)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)
