"""The reader of files with a JSON object a line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import orjson
import pyarrow as pa

from embatch.datasets.column_types import is_text
from embatch.datasets.lines import line_blocks, not_utf8, numbered_lines
from embatch.datasets.readers import Columns
from embatch.errors import InputError
from embatch.storage.places import Place

_PROBE_ROWS: Final = 8192

Objects = list[tuple[int, dict[str, Any]]]
"""Line numbers and the objects on them."""


@dataclass(slots=True)
class JsonlReader:
    """Reads a file with a JSON object a line; lines of white space alone are no rows.

    A field that a line lacks is null. A kept column has one type for the whole file: numbers and
    lists of plain values as they are, integers among floats as floats; objects, and values whose
    types do not go together, as their JSON text.
    """

    path: Place
    compression: str | None = None
    _types: dict[str, pa.DataType] = field(default_factory=dict)

    def describe(
        self, text: str | None, key: str | None, keep: tuple[str, ...]
    ) -> pa.Schema | None:
        """The columns met until all the names were; kept columns cost a pass over the file.

        A column whose type was not asked for is of type null.
        """
        types: dict[str, pa.DataType] = {}
        wanted = {text or "text", *keep} | ({key} if key else set())
        for block in self._objects(_PROBE_ROWS):
            for name in dict.fromkeys(name for _, values in block for name in values):
                if text is None or name in keep:
                    values = [entry.get(name) for _, entry in block]
                    types[name] = _common_type(types.get(name, pa.null()), _type_of(values))
                else:
                    types[name] = pa.null()
            if not keep and wanted <= types.keys():
                break
        self._types = types
        if not types:
            return None
        # A key of another type is found, with its line, when it is read.
        shown = types | ({key: pa.null()} if key and not _may_be_key(types.get(key)) else {})
        return pa.schema([(name, shown[name]) for name in types])

    def read(self, columns: Columns, start: int, block_rows: int) -> Iterator[pa.RecordBatch]:
        """The objects from the `start`-th (from 0) on; see `Reader.read`."""
        for block in self._objects(block_rows, start):
            arrays = {
                name: _typed([values.get(name) for _, values in block], self._types[name])
                for name in columns.keep
            }
            key = self._keys(block, columns.key) if columns.key else None
            yield columns.assemble(key, self._texts(block, columns.text), arrays)

    def _objects(self, block_rows: int, start: int = 0) -> Iterator[Objects]:
        lines = (
            numbered
            for numbered in numbered_lines(self.path, self.compression)
            if numbered[1] and not numbered[1].isspace()
        )
        for block in line_blocks(islice(lines, start, None), block_rows):
            yield [(number, self._object(number, line)) for number, line in block]

    def _object(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            value = self._lenient(number, line)
        if not isinstance(value, dict):
            raise InputError(
                f"line {number} of {self.path} is JSON, but not an object: "
                'give lines such as {"text": "…"}'
            )
        return value

    def _lenient(self, number: int, line: bytes) -> object:
        """The line as Python's json reads it, which lets NaN pass as its writer does."""
        try:
            return json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, number) from error
        except json.JSONDecodeError as error:
            # The decoder's own message is kept apart from the document, which holds users' texts.
            reason = f"{error.msg} at character {error.colno}"
        except RecursionError:
            reason = "it is nested too deeply"
        raise InputError(f"line {number} of {self.path} is not valid JSON: {reason}")

    def _texts(self, block: Objects, column: str) -> pa.Array:
        texts = [values.get(column) for _, values in block]
        try:
            return pa.array(texts, pa.string())
        except (pa.ArrowException, UnicodeEncodeError, TypeError):
            raise self._unusable(block, column, allow_int=False) from None

    def _keys(self, block: Objects, column: str) -> pa.Array:
        keys = [values.get(column) for _, values in block]
        try:
            return pa.array([str(key) if type(key) is int else key for key in keys], pa.string())
        except (pa.ArrowException, UnicodeEncodeError, TypeError):
            raise self._unusable(block, column, allow_int=True) from None

    def _unusable(self, block: Objects, column: str, *, allow_int: bool) -> InputError:
        """The error for the first value of a column that is no usable string."""
        for number, values in block:
            value = values.get(column)
            if value is None or (allow_int and type(value) is int):
                continue
            where = f"line {number} of {self.path}, column {column!r}"
            if not isinstance(value, str):
                kinds = "a string or an integer" if allow_int else "a string"
                return InputError(f"{where}: the value is a {type(value).__name__}, not {kinds}")
            try:
                value.encode()
            except UnicodeEncodeError:
                return InputError(f"{where}: the string holds half a surrogate pair: mend the line")
        return InputError(f"{self.path}, column {column!r}, cannot be read as strings")


def _may_be_key(kind: pa.DataType | None) -> bool:
    return kind is not None and (is_text(kind) or pa.types.is_integer(kind))


def _type_of(values: list[Any]) -> pa.DataType:
    """The type in which all values are kept; string where they need their JSON text."""
    try:
        found = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
        return pa.string()
    inner = found
    while pa.types.is_list(inner):
        inner = inner.value_type
    return pa.string() if pa.types.is_struct(inner) else found


def _common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    try:
        schemas = [pa.schema([("c", one)]), pa.schema([("c", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field("c").type
    except (pa.ArrowException, TypeError):
        return pa.string()


def _typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        return pa.array([_json_text(value) for value in values], kind)
    if pa.types.is_floating(kind):
        return pa.array([None if value is None else float(value) for value in values], kind)
    return pa.array(values, kind)


def _json_text(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Half a surrogate pair has no UTF-8 form, so no column can hold it.
    return value.encode(errors="replace").decode()
