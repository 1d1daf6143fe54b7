"""Rows of a new batch: read once, checked, and written as the service's request file."""

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa

from embatch.server.models import ContentEngine, ServedModel
from embatch.server.settings import MAX_ROW_BYTES
from embatch.server.wire import ApiError, invalid
from embatch.server.wire_create import Rows
from embatch.server.wire_rows import BatchRow, RowRules, at_line, read_file_row, read_inline_row
from embatch.service.files import TEXT_COLUMN

ECHO_COLUMN: Final = "echo"
"""JSON members of the row that come back with its result."""
DIMS_COLUMN: Final = "dims"
"""Length of the row's vector."""
EMPTY_COLUMN: Final = "empty"
"""The row has no text, so it fails."""

_SCHEMA: Final = pa.schema(
    [
        (TEXT_COLUMN, pa.string()),
        (ECHO_COLUMN, pa.binary()),
        (DIMS_COLUMN, pa.int32()),
        (EMPTY_COLUMN, pa.bool_()),
    ]
)
_BLOCK_ROWS: Final = 2048
_BLOCK_CHARS: Final = 4 << 20
"""A record batch has so many rows or characters at most, whichever comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a request file holds."""

    rows: int
    dims: int
    """Length to compute all vectors at: what every row asks for, or the model's full length where
    they differ, as rows are cut from full vectors only."""


def inline_rows(listed: Any, rules: RowRules) -> Iterator[BatchRow]:
    """The rows of an inline body. ApiError 400 names the first bad one."""
    if not isinstance(listed, (list, Rows)):
        raise invalid("batch.input_config.requests.requests: a list is required.")
    for number, row in enumerate(listed, 1):
        try:
            yield read_inline_row(row, rules)
        except ApiError as error:
            raise at_line(number, error) from None


def file_rows(file: BinaryIO, rules: RowRules, max_line_bytes: int) -> Iterator[BatchRow]:
    """The rows of a JSONL file, blank lines left out. ApiError 400 names the first bad line."""
    number, max_line_bytes = 0, min(max_line_bytes, MAX_ROW_BYTES)
    while line := file.readline(max_line_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)  # as editors write it
        if len(line) > max_line_bytes:
            raise at_line(number, invalid(f"longer than {max_line_bytes} bytes"))
        if not line.strip():
            continue
        try:
            yield read_file_row(line, rules)
        except ApiError as error:
            raise at_line(number, error) from None


def write_requests(path: Path, rows: Iterator[BatchRow], model: ServedModel) -> Written:
    """Writes the rows as an Arrow IPC file, flushed to the disk, in constant memory.

    ApiError 400 when there is none.
    """
    count = chars = 0
    lengths: set[int] = set()
    with path.open("xb") as sink:
        with pa.ipc.new_file(sink, _SCHEMA) as writer:
            block: list[BatchRow] = []
            for row in rows:
                block.append(row)
                chars += len(row.request.text) + len(row.echo)
                lengths.add(row.request.dims)
                if len(block) == _BLOCK_ROWS or chars >= _BLOCK_CHARS:
                    writer.write(_record_batch(block, model))
                    count += len(block)
                    block, chars = [], 0
            if block:
                writer.write(_record_batch(block, model))
                count += len(block)
        sink.flush()
        os.fsync(sink.fileno())
    if count == 0:
        raise invalid("No requests specified")
    return Written(rows=count, dims=lengths.pop() if len(lengths) == 1 else model.engine.dims)


def count_tokens(path: Path, engine: ContentEngine) -> int:
    """Tokens of all texts that `write_requests` wrote to `path`."""
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        return sum(
            sum(engine.count_tokens(reader.get_batch(number).column(TEXT_COLUMN).to_pylist()))
            for number in range(reader.num_record_batches)
        )


def _record_batch(block: list[BatchRow], model: ServedModel) -> pa.RecordBatch:
    requests = [row.request for row in block]
    return pa.record_batch(
        [
            pa.array([model.prompted(one.text, one.task_type) for one in requests], pa.string()),
            pa.array([row.echo for row in block], pa.binary()),
            pa.array([one.dims for one in requests], pa.int32()),
            pa.array([not one.text for one in requests], pa.bool_()),
        ],
        schema=_SCHEMA,
    )
