"""A batch's output: its rows as result lines, written once to a file of the batch's folder."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import numpy as np
import orjson
import pyarrow as pa

from embatch.server.details import BatchDetails
from embatch.server.intake import DIMS_COLUMN, ECHO_COLUMN, EMPTY_COLUMN
from embatch.server.wire import INTERNAL, INVALID_ARGUMENT
from embatch.server.wire_shapes import error_line, success_line
from embatch.service.batch import ServiceBlock, StoredBatch
from embatch.service.files import REQUESTS_FILE, sync_folder
from embatch.service.store import BatchStore
from embatch.types.embedding import RowError
from embatch.types.results import Matrix
from embatch.vectors import truncate

OUTPUT_FILE: Final = "output"
"""JSONL for file input; for inline input the items with commas between them."""

_TEMP_PREFIX: Final = "output."
_BLOCK_ROWS: Final = 128
"""Few, so that no other thread waits long while they are spelled out."""
_CODES: Final = {"invalid_argument": INVALID_ARGUMENT}
EMPTY_MESSAGE: Final = "content is empty"


class StoppedError(Exception):
    """The server stops; the output is written anew at the next start."""


class OutputWriter:
    """The output of a batch that has ended, written in turns and in constant memory. Close it."""

    def __init__(self, folder: Path, batch: StoredBatch, lines: Iterator[bytes]) -> None:
        """`folder` is the batch's own; what an earlier writer left half written is removed."""
        for left in folder.glob(_TEMP_PREFIX + "*"):
            left.unlink(missing_ok=True)
        self._folder = folder
        self._lines = lines
        self._hidden = folder / f"{_TEMP_PREFIX}{secrets.token_hex(4)}"
        self._file = self._hidden.open("xb", buffering=1 << 20)
        inline = BatchDetails.parse(batch.details).file_name is None
        self._before, self._after = (b",", b"") if inline else (b"", b"\n")
        self._first = True

    def write(self, most_bytes: int) -> bool:
        """Goes on for about so many bytes. True when the output is there, durably and whole.

        Raises what the lines and the disk raise.
        """
        written = 0
        for line in self._lines:
            before = b"" if self._first else self._before
            written += self._file.write(before + line + self._after)
            self._first = False
            if written >= most_bytes:
                return False
        self._file.flush()
        os.fsync(self._file.fileno())
        self._hidden.rename(self._folder / OUTPUT_FILE)
        sync_folder(self._folder)
        return True

    def close(self) -> None:
        """Removes what is half written. Safe to call twice."""
        self._lines = iter(())
        with suppress(OSError):  # what was buffered found no room: it is not wanted
            self._file.close()
        self._hidden.unlink(missing_ok=True)


def result_lines(
    store: BatchStore, batch: StoredBatch, stopping: Callable[[], bool]
) -> Iterator[bytes]:
    """The result of each row that was computed, in order of rows. Raises `StoppedError`."""
    with closing(_Echoes(store.folder(batch.id) / REQUESTS_FILE)) as echoes:
        for block in store.results(batch.id, block_rows=_BLOCK_ROWS):
            if stopping():
                raise StoppedError
            yield from _lines(block, echoes, batch.dims)


class _Echoes:
    """What comes back of each row beside its vector, read forward."""

    def __init__(self, path: Path) -> None:
        self._source = pa.memory_map(str(path))
        schema = pa.ipc.open_file(self._source).schema
        wanted = [schema.get_field_index(n) for n in (ECHO_COLUMN, DIMS_COLUMN, EMPTY_COLUMN)]
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        self._reader = pa.ipc.open_file(self._source, options=options)
        self._next_block = 0
        self._rows: list[tuple[bytes, int, bool]] = []
        self._first = 0

    def at(self, row: int) -> tuple[bytes, int, bool]:
        """Echo, dims and whether there is no text, of a row not before the last one asked for."""
        while row - self._first >= len(self._rows):
            self._first += len(self._rows)
            block = self._reader.get_batch(self._next_block)
            self._next_block += 1
            self._rows = list(zip(*(column.to_pylist() for column in block.columns), strict=True))
        return self._rows[row - self._first]

    def close(self) -> None:
        self._source.close()


def _lines(block: ServiceBlock, echoes: _Echoes, dims: int) -> Iterator[bytes]:
    errors = dict(block.errors)
    spelled = spell(block.vectors)
    place = 0
    for row in sorted([*block.rows.tolist(), *errors]):
        echo, wanted, empty = echoes.at(row)
        if row in errors:
            yield error_line(echo, *status_of(errors[row], empty=empty))
            continue
        values = spelled[place]
        if wanted != dims:
            values = spell(truncate(block.vectors[place : place + 1], wanted))[0]
        yield success_line(echo, values, int(block.tokens[place]))
        place += 1


def spell(vectors: Matrix) -> list[bytes]:
    """The numbers of each vector with commas between them."""
    if len(vectors) == 0:
        return []
    raw = orjson.dumps(np.ascontiguousarray(vectors), option=orjson.OPT_SERIALIZE_NUMPY)
    return raw[2:-2].split(b"],[")


def status_of(error: RowError, *, empty: bool) -> tuple[int, str]:
    """Code and message of a row that failed; `empty` when it has no text."""
    if empty:
        return INVALID_ARGUMENT, EMPTY_MESSAGE
    return _CODES.get(error.code, INTERNAL), error.message
