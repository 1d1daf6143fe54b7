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

    @property
    def is_keyed_by_text(self) -> bool:
        """The service gave texts back in place of keys."""
        return any(key.startswith(TEXT_KEY) for key in self.all_keys)


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
        # Names are listed once: asking for one that is not there costs ten times as much.
        outer, inner = list(document.keys()), list(response.keys())
        if "error" in outer or "error" in inner or ("status" in outer and document["status"]):
            raise ValueError  # perhaps a failure, whatever else the row holds
        listed = response["embedding"]["values"]
        values = np.frombuffer(listed.as_buffer(of_type="d"))
        if not len(values) or len(values) != len(listed) or isinstance(listed[0], simdjson.Array):
            raise ValueError  # none, or lists within the list, which a buffer does not show
        key = document["key"] if "key" in outer else None
        if key is None and "metadata" in outer:
            metadata = document["metadata"]
            key = None if metadata is None else metadata.get("key")
        usage = response["usageMetadata"] if "usageMetadata" in inner else None
        tokens = None if usage is None else usage.get("promptTokenCount")
        if tokens is None and "tokenCount" in inner:
            tokens = response["tokenCount"]
        return Row(
            key=key if key is None or key.__class__ is str else str(key),
            values=values,
            tokens=-1 if tokens is None else int(tokens),
        )


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
        message = "the service gave no vector for this row"
        return Row(key=key, error=RowError(code="no_vector", message=message, transient=True))
    if any(not _is_number(value) for value in values):
        return Row(key=key, error=_NOT_FINITE, tokens=tokens)
    return Row(key=key, values=np.array(values, dtype=np.float64), tokens=tokens)


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


class BlockBuilder:
    """Gathers rows into blocks of float32."""

    def __init__(
        self, *, dims: int | None = None, cut: bool = False, block_rows: int = BLOCK_ROWS
    ) -> None:
        """`dims` is the length to expect; None takes the first vector's. `cut` shortens longer
        vectors to `dims`, for services that ignore the dimensions asked for."""
        self._dims = dims
        self._cut = cut and dims is not None
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

    def add(self, lines: Iterable[bytes]) -> list[RowBlock]:
        """Takes rows; gives the blocks that are full with them."""
        # Entered once for many rows: entering costs as much as storing one.
        with np.errstate(over="ignore"):
            blocks = [self._add(line) for line in lines]
        return [block for block in blocks if block is not None]

    def _add(self, line: bytes) -> RowBlock | None:
        row = self._read(line)
        place, self._place = self._place, self._place + 1
        error = row.error
        if error is None and row.values is not None:
            error = self._store(row, row.values, place)
        if error is not None:
            self._errors.append((row.key or "", error))
            self._error_places.append(place)
        full = len(self._keys) + len(self._errors) >= self._most
        return self.finish() if full else None

    def _store(self, row: Row, values: Values, place: int) -> RowError | None:
        if self._dims is None:
            self._dims = len(values)
        if self._cut:
            values = values[: self._dims]
        if len(values) != self._dims:
            return RowError(
                code="wrong_dims",
                message=f"the vector has {len(values)} values, not {self._dims}",
                transient=True,
            )
        if self._matrix is None:
            fitting = BLOCK_BYTES // (self._dims * np.dtype(np.float32).itemsize)
            self._most = min(self._block_rows, max(fitting, 1))
            self._matrix = np.empty((self._most, self._dims), dtype=np.float32)
        self._matrix[len(self._keys)] = values
        self._keys.append(row.key or "")
        self._places.append(place)
        self._tokens.append(row.tokens)
        return None

    def finish(self) -> RowBlock | None:
        """The block so far; None when it is empty."""
        if not self._keys and not self._errors:
            return None
        matrix = self._matrix if self._matrix is not None else np.empty((0, self._dims or 0))
        vectors = np.asarray(matrix[: len(self._keys)], dtype=np.float32)
        bad = _not_finite_rows(vectors)
        if len(bad):
            vectors = self._without(bad, vectors)
        known = any(tokens >= 0 for tokens in self._tokens)
        block = RowBlock(
            block=ResultBlock(
                keys=tuple(self._keys),
                vectors=vectors,
                errors=tuple(self._errors),
                tokens=np.array(self._tokens, dtype=np.int32) if known else None,
            ),
            places=np.array(self._places, dtype=np.int64),
            error_places=tuple(self._error_places),
            rows=len(self._keys) + len(self._errors),
        )
        self._begin()
        return block

    def _without(self, bad: NDArray[np.intp], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Moves rows that float32 cannot hold to the errors."""
        for index in bad[::-1]:
            self._errors.append((self._keys.pop(index), _NOT_FINITE))
            self._error_places.append(self._places.pop(index))
            self._tokens.pop(index)
        return np.delete(vectors, bad, axis=0)


def _not_finite_rows(vectors: NDArray[np.float32]) -> NDArray[np.intp]:
    """Which rows hold a value that is no finite number."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = vectors.sum(axis=1)
    if np.isfinite(sums).all():
        return np.empty(0, dtype=np.intp)
    # One that is not finite never adds up to a finite sum; huge finite ones may overflow it.
    return np.flatnonzero(~np.isfinite(vectors).all(axis=1))


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
        with np.errstate(over="ignore"):
            sound = not len(_not_finite_rows(values.astype(np.float32)[None]))
        self._by_dims[dims] = self._by_dims.get(dims, 0) + sound

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
    last = builder.finish()
    if last is not None:
        yield last.block
