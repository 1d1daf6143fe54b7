"""One reader a format: a file's needed columns as record batches, from any row on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa

from embatch.datasets.column_types import block_name
from embatch.errors import InputError
from embatch.storage.places import ObjectStream, Place

MAX_BLOCK_BYTES: Final = 32 << 20
"""Texts of a block together; what is longer comes in smaller blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a file that a run needs."""

    text: str
    key: str | None
    keep: tuple[str, ...]

    @property
    def needed(self) -> tuple[str, ...]:
        """All of them, each once."""
        named = (self.text,) if self.key is None else (self.key, self.text)
        return tuple(dict.fromkeys(named + self.keep))

    def arrange(self, arrays: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """A batch of `key` (if there is one), `text` and the kept columns from a file's columns."""
        key = None if self.key is None else arrays[self.key]
        return self.assemble(key, arrays[self.text], arrays)

    def assemble(
        self, key: pa.Array | None, text: pa.Array, kept: Mapping[str, pa.Array]
    ) -> pa.RecordBatch:
        """A batch of `key` (if there is one), `text` and the kept columns."""
        arrays = {block_name(name): kept[name] for name in self.keep}
        named = ({} if key is None else {"key": key}) | {"text": text} | arrays
        return pa.RecordBatch.from_arrays(list(named.values()), names=list(named))


class Reader(Protocol):
    """The rows of one file."""

    @property
    def path(self) -> Place:
        """The file."""
        ...

    def describe(
        self, text: str | None, key: str | None, keep: tuple[str, ...]
    ) -> pa.Schema | None:
        """The file's columns and their types, at least so far as these names need; None: no rows.

        `text` None asks for enough to tell the only string column.
        """
        ...

    def read(self, columns: Columns, start: int, block_rows: int) -> Iterator[pa.RecordBatch]:
        """The rows from row `start` of the file on, as `Columns.arrange` lays them out.

        At most `block_rows` a batch. Raises `InputError` naming file and row for broken data.
        """
        ...


@contextmanager
def reading(path: Place, what: str) -> Iterator[None]:
    """Turns what Arrow or the disk says about a broken file into an `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as {what}: {reason}") from error


def open_stream(place: Place, compression: str | None) -> pa.NativeFile:
    """The bytes of a file from its beginning, without their compression; an object's as they
    come, without a copy on this machine."""
    source = str(place) if isinstance(place, Path) else ObjectStream(place)
    return pa.input_stream(source, compression=compression)


def bounded(batch: pa.RecordBatch, limit: int = MAX_BLOCK_BYTES) -> Iterator[pa.RecordBatch]:
    """The batch in pieces of at most `limit` bytes, or of one row."""
    if batch.num_rows <= 1 or batch.nbytes <= limit:
        yield batch
        return
    half = batch.num_rows // 2
    yield from bounded(batch.slice(0, half), limit)
    yield from bounded(batch.slice(half), limit)


def pieces(batch: pa.RecordBatch, block_rows: int) -> Iterator[pa.RecordBatch]:
    """The batch in slices of at most `block_rows` rows."""
    for offset in range(0, batch.num_rows, block_rows):
        yield batch.slice(offset, block_rows)
