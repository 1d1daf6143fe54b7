"""Result bytes to keys and float32 blocks, streamed and fast.

The one reader of result rows of all dialects: the Gemini API's files and inline rows, Vertex AI's
prediction files of Gemini and of older models. Numbers go from JSON text to a buffer of doubles
without a Python object each (pysimdjson); a row that this way refuses (NaN, null, 1e400, an error)
is read again the plain way, alone, and named.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from embatch.client.cutter import LineCutter
from embatch.client.retry import GRPC_CODES, TRANSIENT_CODES, told
from embatch.types.embedding import RowError
from embatch.types.results import ResultBlock

try:
    import simdjson
except ImportError:  # no wheel for this Python yet: orjson is the way
    simdjson = None  # type: ignore[assignment]

BLOCK_ROWS: Final = 512
"""Most rows of a block."""
BLOCK_BYTES: Final = 2 << 20
"""Most bytes of a block's vectors, a row at least: larger ones cost memory, smaller ones time."""
TEXT_KEY: Final = "text:"
"""Before the SHA-256 of a row's text, where the service gives no key back but the text."""

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_SAFE_SQUARES: Final = 1e76
"""Values whose squares add up to less are finite, and none is over float32: a quick look."""

Values = NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Row:
    """One result row."""

    key: str | None = None
    """The key as it came; None when there is none."""
    values: Values | None = None
    error: RowError | None = None
    tokens: int = -1
    """Tokens billed, -1 where the service does not say."""

    @property
    def is_keyed_by_text(self) -> bool:
        """The service gave the text back in place of a key."""
        return self.key is not None and self.key.startswith(TEXT_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """A block of rows with their places in the stream."""

    block: ResultBlock
    places: NDArray[np.int64]
    """Place of each vector in the stream, from 0."""
    error_places: tuple[int, ...] = ()
    """Place of each error in the stream."""
    rows: int = 0
    """Rows in all, with and without a vector."""

    @property
    def all_keys(self) -> Iterator[str]:
        """Keys of all rows, "" for a row without one."""
        return chain(self.block.keys, (key for key, _ in self.block.errors))

    def unpacked(self) -> Iterator[Row]:
        """The rows one by one: those with a vector, then the others."""
        block = self.block
        tokens = [-1] * len(block.keys) if block.tokens is None else block.tokens.tolist()
        for key, vector, count in zip(block.keys, block.vectors, tokens, strict=True):
            yield Row(key=key, values=vector.astype(np.float64), tokens=count)
        for key, error in block.errors:
            yield Row(key=key, error=error)


RowReader = Callable[[bytes], Row]


def open_reader() -> RowReader:
    """A reader of rows. One reader serves one thread."""
    return _plain_row if simdjson is None else _Simd().row


class _Simd:
    """Reads rows with pysimdjson, which reuses its memory from row to row."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def row(self, line: bytes) -> Row:
        """The row that `line` spells."""
        try:
            return self._fast(line)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            return _plain_row(line)

    def _fast(self, line: bytes) -> Row:
        # Its objects die with this frame: the parser takes no other row before that.
        document: Any = self._parser.parse(line)
        response = document["response"]
        listed = response["embedding"]["values"]
        values = np.frombuffer(listed.as_buffer(of_type="d"))
        if not len(values) or len(values) != len(listed) or isinstance(listed[0], simdjson.Array):
            raise ValueError  # none, or lists within the list, which a buffer does not show
        key = usage = tokens = None
        if len(document) == len(response) == 2:
            key, usage = document.get("key"), response.get("usageMetadata")
        if key is None or usage is None:
            key, tokens = self._looked_up(document, response)
        else:  # there is room for nothing else in the row
            tokens = usage.get("promptTokenCount")
        return Row(
            key=key if key is None or key.__class__ is str else str(key),
            values=values,
            tokens=-1 if tokens is None else int(tokens),
        )

    @staticmethod
    def _looked_up(document: Any, response: Any) -> tuple[Any, Any]:
        """Key and tokens of a row of any shape; ValueError for what may be a failure."""
        # Names are listed once: asking for one that is not there costs ten times as much.
        outer, inner = list(document.keys()), list(response.keys())
        if "error" in outer or "error" in inner or ("status" in outer and document["status"]):
            raise ValueError  # whatever else the row holds
        key = document["key"] if "key" in outer else None
        if key is None and "metadata" in outer:
            metadata = document["metadata"]
            key = None if metadata is None else metadata.get("key")
        usage = response["usageMetadata"] if "usageMetadata" in inner else None
        tokens = None if usage is None else usage.get("promptTokenCount")
        if tokens is None and "tokenCount" in inner:
            tokens = response["tokenCount"]
        return key, tokens


def _plain_row(line: bytes) -> Row:
    """The row that `line` spells, whatever is wrong with it."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            document = json.loads(line)
        except ValueError:
            document = None
    if not isinstance(document, dict):
        return Row(error=RowError(code="unreadable", message="this result row is not JSON"))
    key = _key(document)
    error = _failure(document)
    if error is not None:
        return Row(key=key, error=error)
    values, tokens = _vector(document)
    if not isinstance(values, list) or not values:
        return Row(key=key, error=_NO_VECTOR)
    if any(not _is_number(value) for value in values):
        return Row(key=key, error=_NOT_FINITE, tokens=tokens)
    return Row(key=key, values=np.array(values, dtype=np.float64), tokens=tokens)


_NO_VECTOR: Final = RowError(
    code="no_vector", message="the service gave no vector for this row", transient=True
)
_NOT_FINITE: Final = RowError(
    code="not_finite", message="the vector holds a value that is no finite number", transient=True
)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and value is not True and math.isfinite(value)


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _key(document: dict[str, Any]) -> str | None:
    instance = _dict(document.get("instance"))
    for holder in (document, _dict(document.get("metadata")), instance):
        key = holder.get("key")
        if key is not None:
            return str(key)
    content = instance.get("content")
    return text_key(content) if isinstance(content, str) else None


def text_key(text: str) -> str:
    """What stands for a key where rows are told apart by their text alone."""
    return TEXT_KEY + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _vector(document: dict[str, Any]) -> tuple[object, int]:
    response = _dict(document.get("response"))
    embedding = _dict(response.get("embedding"))
    tokens = _dict(response.get("usageMetadata")).get("promptTokenCount")
    if tokens is None:
        tokens = response.get("tokenCount")
    predictions = document.get("predictions")
    if isinstance(predictions, list) and predictions:
        embedding = _dict(_dict(predictions[0]).get("embeddings"))
        tokens = _dict(embedding.get("statistics")).get("token_count")
    return embedding.get("values"), _count(tokens)


def _count(tokens: object) -> int:
    try:
        return int(tokens)  # type: ignore[call-overload,no-any-return]
    except (TypeError, ValueError):
        return -1


def _failure(document: dict[str, Any]) -> RowError | None:
    """The row's error. One that is there counts, a vector beside it or not."""
    error = next((told for told in _told_errors(document) if told or isinstance(told, dict)), None)
    if error is None:
        return None
    if not isinstance(error, dict):
        # Vertex AI writes "WORD: message".
        return _named_error(str(error).partition(":")[0].strip().lower(), error)
    return row_error(error.get("code"), error.get("message"))


def _told_errors(document: dict[str, Any]) -> Iterator[object]:
    """Where services tell of an error; an empty status of Vertex AI is none."""
    yield document.get("error")
    yield _dict(document.get("response")).get("error")
    status = document.get("status")
    yield (status or None) if isinstance(status, (str, dict)) else None


def row_error(code: object, message: object) -> RowError:
    """The error of one row, from a google.rpc code and what the service said."""
    return _named_error(GRPC_CODES.get(_count(code), "unknown"), message)


def _named_error(word: str, message: object) -> RowError:
    word = word if word in GRPC_CODES.values() else "unknown"
    said = told(message)
    return RowError(
        code=word,
        message=f"the service refused this row: {word}" + (f" ({said})" if said else ""),
        transient=word in TRANSIENT_CODES,
    )


def fits_float32(values: Values) -> bool:
    """Every value is a finite number that float32 can hold."""
    return bool(values.dot(values) < _SAFE_SQUARES or np.abs(values).max() <= _FLOAT32_MAX)


class Gauge:
    """Tells the vectors that can be used from those that cannot."""

    def __init__(self, *, dims: int | None, cut: bool) -> None:
        """`dims` is the length to expect; None takes the first vector's. `cut` shortens longer
        vectors to `dims`, for services that ignore the dimensions asked for."""
        self.dims = dims
        self._cut = cut and dims is not None

    def fitted(self, row: Row) -> Values | RowError:
        """The row's vector, or why it has none."""
        values = row.values
        if row.error is not None or values is None:
            return row.error or _NO_VECTOR
        if self.dims is None:
            self.dims = len(values)
        if self._cut:
            values = values[: self.dims]
        if len(values) != self.dims:
            message = f"the vector has {len(values)} values, not {self.dims}"
            return RowError(code="wrong_dims", message=message, transient=True)
        return values if fits_float32(values) else _NOT_FINITE


class BlockBuilder:
    """Gathers rows into blocks of float32."""

    def __init__(
        self, *, dims: int | None = None, cut: bool = False, block_rows: int = BLOCK_ROWS
    ) -> None:
        """`dims` and `cut` as a Gauge takes them."""
        self._gauge = Gauge(dims=dims, cut=cut)
        self._most = self._block_rows = block_rows
        self._read = open_reader()
        self._place = 0
        self._begin()

    def _begin(self) -> None:
        self._keys: list[str] = []
        self._places: list[int] = []
        self._tokens: list[int] = []
        self._errors: list[tuple[str, RowError]] = []
        self._error_places: list[int] = []
        self._matrix: NDArray[np.float32] | None = None

    def add(self, lines: Iterable[bytes]) -> Iterator[RowBlock]:
        """Takes rows; gives the blocks that are full with them."""
        for line in lines:
            self._store(self._read(line))
            if len(self._keys) + len(self._errors) >= self._most:
                yield from self.finish()

    def _store(self, row: Row) -> None:
        place, self._place = self._place, self._place + 1
        values = self._gauge.fitted(row)
        if isinstance(values, RowError):
            self._errors.append((row.key or "", values))
            self._error_places.append(place)
            return
        if self._matrix is None:
            fitting = BLOCK_BYTES // (len(values) * np.dtype(np.float32).itemsize)
            self._most = min(self._block_rows, max(fitting, 1))
            self._matrix = np.empty((self._most, len(values)), dtype=np.float32)
        self._matrix[len(self._keys)] = values
        self._keys.append(row.key or "")
        self._places.append(place)
        self._tokens.append(row.tokens)

    def finish(self) -> Iterator[RowBlock]:
        """The block so far, when there is anything in it."""
        if not self._keys and not self._errors:
            return
        matrix = self._matrix
        if matrix is None:
            matrix = np.empty((0, self._gauge.dims or 0), dtype=np.float32)
        known = any(tokens >= 0 for tokens in self._tokens)
        block = RowBlock(
            block=ResultBlock(
                keys=tuple(self._keys),
                vectors=matrix[: len(self._keys)],
                errors=tuple(self._errors),
                tokens=np.array(self._tokens, dtype=np.int32) if known else None,
            ),
            places=np.array(self._places, dtype=np.int64),
            error_places=tuple(self._error_places),
            rows=len(self._keys) + len(self._errors),
        )
        self._begin()
        yield block


class Tally:
    """Counts rows as get_batch_embeddings will say of them, without keeping one."""

    def __init__(self) -> None:
        self.rows = 0
        """Rows seen."""
        self._read = open_reader()
        self._first: int | None = None
        self._by_dims: dict[int, int] = {}

    def add(self, line: bytes) -> None:
        """Takes one row."""
        self.rows += 1
        values = self._read(line).values
        if values is None:
            return
        dims = len(values)
        self._first = self._first or dims
        self._by_dims[dims] = self._by_dims.get(dims, 0) + fits_float32(values)

    def good(self, dims: int | None) -> int:
        """Rows with a vector of `dims` values; None stands for the first vector's length."""
        return self._by_dims.get(dims or self._first or 0, 0)


def read_blocks(
    chunks: Iterable[bytes], *, dims: int | None = None, block_rows: int = BLOCK_ROWS
) -> Iterator[ResultBlock]:
    """The rows of a result file given in pieces, as blocks of float32, in constant memory."""
    cutter, builder = LineCutter(), BlockBuilder(dims=dims, block_rows=block_rows)
    for chunk in chunks:
        yield from (full.block for full in builder.add(cutter.feed(chunk)))
    yield from (full.block for full in builder.add(cutter.finish()))
    yield from (last.block for last in builder.finish())
