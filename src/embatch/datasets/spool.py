"""Data that has no file, kept as one, so that a run can be resumed from it."""

import itertools
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Final

import pyarrow as pa

from embatch.datasets.column_types import plain_type
from embatch.datasets.durable import file_sha256, fsync_path, storage_error
from embatch.errors import InputError, InvalidRequestError
from embatch.storage.places import Place, scratch_of

KEY_METADATA: Final = b"embatch.key"
"""Schema metadata that names the key column of spooled data."""
_TEXTS: Final = pa.schema([("text", pa.string())])
_PAIRS: Final = pa.schema(
    [("key", pa.string()), ("text", pa.string())], metadata={KEY_METADATA: b"key"}
)
_NOTHING: Final = object()
_ROWS: Final = 8192
_COPY_BYTES: Final = 1 << 20
_NAME_CHARS: Final = 16


def spool_stdin(folder: Place) -> Place:
    """Standard input as a JSONL file in `folder`, named after its content."""

    def copy(path: Path) -> None:
        with path.open("wb") as target:
            while chunk := sys.stdin.buffer.read(_COPY_BYTES):
                target.write(chunk)

    return _spool(folder, "stdin", ".jsonl", copy)


def spool_data(data: object, folder: Place) -> Place:
    """Python data as an Arrow IPC file in `folder`, named after its content.

    `data` is an iterable of texts (column `text`), of `(key, text)` pairs (columns `key`, `text`;
    `open_source` takes the keys by itself), or anything that speaks the Arrow stream protocol: an
    Arrow table or reader, a pandas or polars DataFrame. Texts may be None; keys are strings or
    integers. Opened with the same folder as `spool`, the file is known by its SHA-256.
    """
    schema, batches = _as_batches(data)
    schema = pa.schema(
        [pa.field(field.name, plain_type(field.type)) for field in schema], schema.metadata
    )

    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in _guarded(batches):
                table = pa.Table.from_batches([batch]).cast(schema)
                writer.write_table(table, max_chunksize=_ROWS)

    return _spool(folder, "data", ".arrow", write)


def _spool(folder: Place, stem: str, suffix: str, write: Callable[[Path], None]) -> Place:
    scratch = scratch_of(folder)
    temporary = scratch / f".{stem}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        write(temporary)
        fsync_path(temporary)
        place = folder / f"{stem}-{file_sha256(temporary)[:_NAME_CHARS]}{suffix}"
        if isinstance(place, Path):
            temporary.replace(place)
            fsync_path(scratch)
        else:
            place.put(temporary)
    except OSError as error:
        raise storage_error(folder, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return place


def _guarded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches; an I/O error of whoever gives them is not taken for one of our disk."""
    try:
        yield from batches
    except OSError as error:
        raise InputError(f"the data could not be read to its end: {error}") from error


def _as_batches(data: object) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if hasattr(data, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(data)
        return reader.schema, iter(reader)
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise InvalidRequestError(
            f"data cannot be a {type(data).__name__}: give paths, an iterable of texts or of "
            "(key, text), an Arrow table or a DataFrame"
        )
    rows = iter(data)
    first = next(rows, _NOTHING)
    if first is _NOTHING:
        raise InputError("no rows: the data is empty")
    rows = itertools.chain([first], rows)
    if isinstance(first, (str, NoneType)):
        return _TEXTS, _batches(rows, _TEXTS, _text_row)
    return _PAIRS, _batches(rows, _PAIRS, _pair_row)


def _batches(
    rows: Iterator[object], schema: pa.Schema, as_row: Callable[[object, int], tuple[object, ...]]
) -> Iterator[pa.RecordBatch]:
    first = 0
    while block := list(itertools.islice(rows, _ROWS)):
        values = [as_row(row, number) for number, row in enumerate(block, first)]
        arrays = [
            _strings(column, name, first)
            for name, column in zip(schema.names, zip(*values, strict=True), strict=True)
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        first += len(block)


def _strings(values: Sequence[object], name: str, first: int) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        pass
    for number, value in enumerate(values, first):
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"row {number} of the data: its {name} holds half a surrogate pair, "
                "which has no UTF-8 form: mend the string"
            ) from error
    raise InputError(f"the data's {name} column has no UTF-8 form")


def _text_row(row: object, number: int) -> tuple[object, ...]:
    if row is None or isinstance(row, str):
        return (row,)
    raise InputError(
        f"row {number} of the data is a {type(row).__name__}: give a string or None in every row"
    )


def _pair_row(row: object, number: int) -> tuple[object, ...]:
    match row:
        case (str() as key, str() | None as text):
            return key, text
        case (int() as key, str() | None as text) if not isinstance(key, bool):
            return str(key), text
    raise InputError(
        f"row {number} of the data is no (key, text) pair: "
        "give a string or integer key and a string (or None) in every row"
    )
