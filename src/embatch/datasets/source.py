"""Any inputs as one stream of blocks of key, text and kept columns, in constant memory."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embatch.datasets.column_types import KEPT_TEXT, block_name, is_text, plain_schema, plain_type
from embatch.datasets.columnar import ArrowReader, ParquetReader
from embatch.datasets.delimited import DelimitedReader
from embatch.datasets.inputs import (
    Format,
    InputFile,
    InputIdentity,
    classify,
    find_inputs,
    identify,
    same,
)
from embatch.datasets.jsonl import JsonlReader
from embatch.datasets.lines import TextReader
from embatch.datasets.readers import Columns, Reader, bounded
from embatch.datasets.spool import KEY_METADATA, spool_stdin
from embatch.errors import InputError, InvalidRequestError
from embatch.storage.places import Place, parse_place

BLOCK_ROWS: Final = 8192
RESERVED: Final = frozenset({"key", "row", "text_sha256", "embedding", "owner_row", KEPT_TEXT})
"""Names that stages and parts use themselves."""
_LISTED_COLUMNS: Final = 50
_STDIN: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place between two rows of a source; reading goes on from it exactly."""

    input: int = 0
    """Index of the input."""
    input_row: int = 0
    """Rows of that input before this place."""
    row: int = 0
    """Rows of all inputs before this place."""

    def to_json(self) -> dict[str, int]:
        """Plain values for the journal."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Position":
        """The position that `to_json` wrote."""
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceBlock:
    """A stretch of rows of one input."""

    first: Position
    """The place before its first row."""
    batch: pa.RecordBatch
    """`key` (string, never null), `text` (string, may be null) and the kept columns.

    A kept column `text` is named `column_types.KEPT_TEXT` here and in stages.
    """

    @property
    def first_row(self) -> int:
        """Row number of the first row, from 0 over all inputs."""
        return self.first.row

    @property
    def end(self) -> Position:
        """The place after its last row."""
        return self.position_at(self.batch.num_rows)

    def position_at(self, offset: int) -> Position:
        """The place before the block's row `offset`."""
        return Position(
            input=self.first.input,
            input_row=self.first.input_row + offset,
            row=self.first.row + offset,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """All inputs of a run as one stream of rows. Made by `open_source`."""

    identity: tuple[InputIdentity, ...]
    """What each input was when the source was opened, in order."""
    text_column: str
    key_column: str | None
    """None: the row number is the key."""
    keep_columns: tuple[str, ...]
    schema: pa.Schema
    """The kept columns and their types."""
    files: tuple[InputFile, ...]
    readers: tuple[Reader, ...]

    def verify_unchanged(self) -> None:
        """Raises `InputError` naming the first input that is not as it was."""
        for number in range(len(self.files)):
            self._verify_input(number)

    def _verify_input(self, number: int) -> None:
        if not same(self.files[number], self.identity[number]):
            raise InputError(
                f"{self.files[number].path} changed since this run was planned: "
                "put the old file back, or start a new output (with --reuse to keep its vectors)"
            )

    def read(
        self, start: Position | None = None, *, block_rows: int = BLOCK_ROWS
    ) -> Iterator[SourceBlock]:
        """The rows from `start` on, in order, in blocks of at most `block_rows` and about 32 MB.

        A block never spans two inputs. Where blocks are cut is no promise. Raises `InputError`
        naming file and row for broken data, for an input that changed, and for no rows at all.
        """
        place = start or Position()
        columns = Columns(
            text=self.text_column,
            key=self.key_column,
            keep=self.keep_columns,
        )
        for number in range(place.input, len(self.readers)):
            if number > place.input:
                place = Position(input=number, input_row=0, row=place.row)
            self._verify_input(number)
            for batch in self.readers[number].read(columns, place.input_row, block_rows):
                for piece in bounded(batch):
                    block = SourceBlock(first=place, batch=self._normal(piece, place))
                    place = block.end
                    yield block
            self._verify_input(number)
        if place.row == 0:
            raise _no_rows(self.files)

    def key_at(self, row: int) -> str:
        """The key of one row; reads the source up to it."""
        for block in self.read():
            if row < block.end.row:
                return str(block.batch.column("key")[row - block.first_row].as_py())
        raise InputError(f"the source has no row {row}")

    def _normal(self, batch: pa.RecordBatch, first: Position) -> pa.RecordBatch:
        arrays = {"key": self._keys(batch, first), "text": _strings(batch.column("text"))}
        for name in self.keep_columns:
            # Unsafe only in that large integers among floats are rounded to floats.
            kept = batch.column(block_name(name))
            arrays[block_name(name)] = kept.cast(self.schema.field(name).type, safe=False)
        return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))

    def _keys(self, batch: pa.RecordBatch, first: Position) -> pa.Array:
        if self.key_column is None:
            numbers = np.arange(first.row, first.row + batch.num_rows, dtype=np.int64)
            return pa.array(numbers).cast(pa.string())
        keys = _strings(batch.column("key"))
        if keys.null_count:
            missing = first.input_row + pc.index(keys.is_null(), value=True).as_py()
            raise InputError(
                f"row {missing} (from 0) of {self.files[first.input].path} "
                f"has no key in column {self.key_column!r}: give every row a key"
            )
        return keys


def open_source(
    inputs: Sequence[str],
    *,
    text: str | None = None,
    key: str | None = None,
    keep: Sequence[str] = (),
    spool: Place | None = None,
) -> Source:
    """Opens paths, URLs, globs or `-` (JSONL on standard input) as one source.

    `text` None takes the column `text`, else the only string column. `key` None takes the row
    number. `spool` is the folder for data without a file; files in it are known by their content.
    Raises `InvalidRequestError` for what the caller can mend (missing file or column) and
    `InputError` for broken data.
    """
    files = tuple(_files(inputs, spool))
    readers = tuple(_reader(file) for file in files)
    identity = tuple(identify(file) for file in files)
    named = tuple(dict.fromkeys(keep))
    schemas = [reader.describe(text, key, named) for reader in readers]
    known = [
        (file, schema) for file, schema in zip(files, schemas, strict=True) if schema is not None
    ]
    if not known:
        raise _no_rows(files)
    text_column = text or _default_text(*known[0])
    if key is None and files[0].spooled:
        key = _spooled_key(known[0][1])
    _refuse_reserved(named)
    for file, schema in known:
        _check_columns(file, schema, text_column, key, named)
    return Source(
        identity=identity,
        text_column=text_column,
        key_column=key,
        keep_columns=named,
        schema=_kept_schema(known, named),
        files=files,
        readers=readers,
    )


def _files(inputs: Sequence[str], spool: Place | None) -> Iterator[InputFile]:
    if not inputs:
        raise InvalidRequestError("no input: give at least one file, glob, or - for JSONL on stdin")
    if list(inputs).count(_STDIN) > 1:
        raise InvalidRequestError("standard input (-) can be read once only: name it once")
    for pattern in inputs:
        if pattern == _STDIN:
            if spool is None:
                raise InvalidRequestError("standard input needs an output to be spooled to")
            yield classify(spool_stdin(spool), spooled=True)
            continue
        for path in find_inputs(pattern):
            own = spool is not None and path.parent == parse_place(spool)
            yield classify(path, spooled=own)


def _reader(file: InputFile) -> Reader:
    match file.format:
        case Format.PARQUET:
            return ParquetReader(file.path)
        case Format.ARROW:
            return ArrowReader(file.path)
        case Format.CSV:
            return DelimitedReader(file.path, ",", file.compression)
        case Format.TSV:
            return DelimitedReader(file.path, "\t", file.compression)
        case Format.JSONL:
            return JsonlReader(file.path, file.compression)
        case Format.TXT:
            return TextReader(file.path, file.compression)


def _strings(array: pa.Array) -> pa.Array:
    return array if pa.types.is_string(array.type) else array.cast(pa.string())


def _no_rows(files: tuple[InputFile, ...]) -> InputError:
    names = ", ".join(str(file.path) for file in files[:3])
    return InputError(f"no rows in {names}{' and others' if len(files) > 3 else ''}")


def _listed(schema: pa.Schema) -> str:
    names = schema.names[:_LISTED_COLUMNS]
    return ", ".join(names) + (", …" if len(schema.names) > _LISTED_COLUMNS else "")


def _default_text(file: InputFile, schema: pa.Schema) -> str:
    if "text" in schema.names:
        return "text"
    strings = [field.name for field in schema if is_text(field.type) and field.type != pa.null()]
    if len(strings) == 1:
        return str(strings[0])
    raise InvalidRequestError(
        f"{file.path} has {'several' if strings else 'no'} string columns and none named 'text': "
        f"name the column to embed with --text; columns: {_listed(schema)}"
    )


def _spooled_key(schema: pa.Schema) -> str | None:
    value = (schema.metadata or {}).get(KEY_METADATA)
    return value.decode() if value else None


def _refuse_reserved(keep: tuple[str, ...]) -> None:
    for name in keep:
        if name in RESERVED:
            raise InvalidRequestError(
                f"column {name!r} cannot be kept: the output uses this name itself; "
                "rename the column in the input, or leave it out of --keep"
            )


def _check_columns(
    file: InputFile, schema: pa.Schema, text: str, key: str | None, keep: tuple[str, ...]
) -> None:
    for name in (text, *([key] if key else []), *keep):
        count = schema.names.count(name)
        if count == 0:
            raise InvalidRequestError(
                f"{file.path} has no column {name!r}; columns: {_listed(schema)}"
            )
        if count > 1:
            raise InputError(f"{file.path} has {count} columns named {name!r}: rename one")
    if not is_text(schema.field(text).type):
        raise InputError(
            f"{file.path}: column {text!r} holds {schema.field(text).type}, not strings: "
            "name a string column with --text"
        )
    if key is None:
        return
    kind = plain_type(schema.field(key).type)
    if not is_text(kind) and not pa.types.is_integer(kind):
        raise InputError(
            f"{file.path}: key column {key!r} holds {kind}: "
            "keys are strings or integers; convert the column"
        )


def _kept_schema(known: list[tuple[InputFile, pa.Schema]], keep: tuple[str, ...]) -> pa.Schema:
    if not keep:
        return pa.schema([])
    first_file, first = known[0][0], plain_schema(known[0][1], keep)
    merged = first
    for file, schema in known[1:]:
        try:
            merged = pa.unify_schemas(
                [merged, plain_schema(schema, keep)], promote_options="permissive"
            )
        except (pa.ArrowException, TypeError) as error:
            raise InvalidRequestError(
                f"a kept column has types that do not go together in {first_file.path} "
                f"and {file.path} ({error}): convert one, or leave it out of --keep"
            ) from error
    return merged
