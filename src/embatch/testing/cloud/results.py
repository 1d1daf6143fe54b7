"""Writes what a job answers, row by row, fast enough for millions and in constant memory."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from embatch.testing.cloud.answers import ApiError
from embatch.testing.cloud.dialects import Dialect
from embatch.testing.cloud.faults import FaultKind
from embatch.testing.cloud.models import MODELS, count_read, cut_to_limit
from embatch.testing.cloud.rows import Line, RowRequest, read_line
from embatch.testing.cloud.spoil import RowAtHand, Spoiler, shuffled, status_of
from embatch.testing.cloud.vectors import row_seed, text_digest, write_vectors

_BLOCK_ROWS: Final = 512
_K = FaultKind


class StoppedError(Exception):
    """The cloud stops; the job's answer is written anew at the next start."""


@dataclass(slots=True)
class Tally:
    """What came of a job's rows."""

    succeeded: int = 0
    failed: int = 0
    tokens: int = 0


@dataclass(slots=True)
class _Row:
    """One row on its way through a block."""

    line: Line
    at: RowAtHand
    wanted: RowRequest | None = None
    seed: int = 0
    tokens: int = 0
    truncated: bool = False
    error: dict[str, Any] | None = None
    values: bytes = b""


@dataclass(slots=True, kw_only=True)
class ResultWriter:
    """Answers the rows of one batch file."""

    source: Path
    model: str
    rows: int
    dialect: Dialect
    spoiler: Spoiler
    foreign_keys: Callable[[int], list[Any]]
    """Keys of another job, for the fault that mixes them in."""
    served: int
    """Rows served before the job ended; the rest is cancelled or left out."""
    stopping: threading.Event
    """Set when the cloud stops; `write` then raises `StoppedError`."""
    bytes_per_token: int
    cancelled_rows: bool = False
    """Rows not served stand there with code 1."""
    dims_ignored: bool = False
    tally: Tally = field(default_factory=Tally)

    def write(self, targets: list[BinaryIO], digests: BinaryIO) -> Tally:
        """Writes the answer into `targets` (shards take turns by block) and the SHA-256 of each
        charged text into `digests`, 32 bytes a row."""
        swapped = self._swapped_seeds()
        for number, block in enumerate(self._blocks()):
            if self.stopping.is_set():
                raise StoppedError
            self._embed(block, swapped)
            lines: list[bytes] = []
            for row in block:
                if row.error is None:
                    digests.write(row.at.digest)
                lines.extend(self._lines(row))
            targets[number % len(targets)].write(b"".join(lines))
        targets[-1].write(b"".join(self._uninvited()))
        return self.tally

    def _blocks(self) -> Iterator[list[_Row]]:
        block: list[_Row] = []
        for index, line in self._lines_in_order():
            if index >= self.served and not self.cancelled_rows:
                continue
            block.append(self._read(index, line))
            if len(block) == _BLOCK_ROWS:
                yield block
                block = []
        if block:
            yield block

    def _lines_in_order(self) -> Iterator[tuple[int, bytes]]:
        if not self.spoiler.has(_K.SHUFFLE):
            with self.source.open("rb", buffering=1 << 20) as file:
                yield from enumerate(line for line in file if line.strip())
            return
        yield from self._lines_at(shuffled(self.rows))

    def _lines_at(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        offsets = np.empty(self.rows, dtype=np.int64)
        at = found = 0
        with self.source.open("rb", buffering=1 << 20) as file:
            for line in file:
                if line.strip():
                    offsets[found] = at
                    found += 1
                at += len(line)
            for index in indices.tolist():
                file.seek(offsets[index])
                yield index, file.readline()

    def _read(self, index: int, raw: bytes) -> _Row:
        card = MODELS[self.model]
        try:
            line, wanted = read_line(raw, card)
        except ApiError as error:
            row = _Row(_line_or_nothing(raw), RowAtHand(index, "", b""))
            row.error = status_of(3, error.message, details=False)
            return row
        row = _Row(line, RowAtHand(index, wanted.text, text_digest(wanted.text, card.name)), wanted)
        text, row.truncated = cut_to_limit(wanted.text, card)
        row.tokens = count_read(text, card, self.bytes_per_token)
        row.seed = row_seed(row.at.digest, card.name, wanted.task_type, wanted.title)
        row.error = self._error(row)
        return row

    def _error(self, row: _Row) -> dict[str, Any] | None:
        if row.at.index >= self.served:
            return status_of(1, None, details=False)
        if not row.at.text:
            return status_of(3, "content is empty", details=False)
        if row.truncated and self.spoiler.has(_K.OVER_LONG_REFUSED):
            return status_of(3, "The input is longer than the model reads.", details=False)
        fault = self.spoiler.row_error(row.at) if self.spoiler.touches_rows else None
        if fault is None:
            return None
        code, message = int(fault.arg("code")), fault.arg("message")
        return status_of(code, message, details=fault.arg("details"))

    def _embed(self, block: list[_Row], swapped: dict[int, int]) -> None:
        by_dims: dict[int, list[_Row]] = {}
        for row in block:
            if row.error is not None or row.wanted is None:
                self.tally.failed += 1
                continue
            self.tally.succeeded += 1
            self.tally.tokens += row.tokens
            dims = MODELS[self.model].full_dims if self.dims_ignored else row.wanted.dims
            by_dims.setdefault(dims, []).append(row)
        for dims, rows in by_dims.items():
            seeds = [swapped.get(row.at.index, row.seed) for row in rows]
            vectors = write_vectors(np.array(seeds, dtype=np.uint64), self.model, dims)
            for row, values in zip(rows, vectors, strict=True):
                row.values = values
        if self.spoiler.touches_values:
            for row in block:
                if row.values:
                    row.values = self.spoiler.spoil_values(row.values, row.at)

    def _swapped_seeds(self) -> dict[int, int]:
        """Seeds that the fault deals out in a ring among the rows it takes."""
        if not self.spoiler.has(_K.SWAP_VALUES):
            return {}
        taken = []
        for index, raw in self._lines_at(np.arange(self.rows)):
            row = self._read(index, raw)
            if row.error is None and self.spoiler.taken(_K.SWAP_VALUES, row.at):
                taken.append(row)
        self.spoiler.seen.clear()
        seeds = [row.seed for row in taken]
        ring = seeds[1:] + seeds[:1]
        return {row.at.index: seed for row, seed in zip(taken, ring, strict=True)}

    def _lines(self, row: _Row) -> Iterator[bytes]:
        spoiler = self.spoiler
        if not spoiler.touches_rows:
            yield self._line(row)
            return
        for line in spoiler.copies(row.at, lambda: self._line(row), lambda: self._twin(row)):
            yield line if line.endswith(self.dialect.end) else line + self.dialect.end

    def _twin(self, row: _Row) -> bytes:
        """The row's line with another vector."""
        if row.values and row.wanted is not None:
            other = np.array([row.seed ^ 1], dtype=np.uint64)
            row.values = write_vectors(other, self.model, row.wanted.dims)[0]
        return self._line(row)

    def _line(self, row: _Row) -> bytes:
        dialect, spoiler = self.dialect, self.spoiler
        echo = b"" if spoiler.keyless else dialect.echo(row.line)
        if row.error is not None:
            body = dialect.failure(row.line, row.error)
        else:
            gone = spoiler.taken(_K.NULL_VECTOR, row.at) if spoiler.touches_rows else None
            tokens = None if spoiler.tokenless else row.tokens
            shape = gone.arg("shape") if gone else None
            body = dialect.success(row.line, row.values, tokens, shape, row.truncated)
        # The order of fields varies, as it does on the wire.
        members = (echo, body) if row.at.index % 2 == 0 else (body, echo)
        return b"{" + b",".join(member for member in members if member) + b"}" + dialect.end

    def _uninvited(self) -> Iterator[bytes]:
        keys: list[Any] = []
        unknown = self.spoiler.plain.get(_K.UNKNOWN_ROWS)
        if unknown:
            keys += [f"unknown-{n}" for n in range(unknown.arg("count"))]
        foreign = self.spoiler.plain.get(_K.FOREIGN_ROWS)
        if foreign:
            keys += self.foreign_keys(int(foreign.arg("count")))
        for n, key in enumerate(keys):
            seed = np.array([n], dtype=np.uint64)
            dims = self._usual_dims()
            values = write_vectors(seed, self.model, dims)[0]
            row = self.dialect.keyed(key)
            body = self.dialect.success(row, values, 1, None, truncated=False)
            yield b"{" + self.dialect.echo(row) + b"," + body + b"}" + self.dialect.end

    def _usual_dims(self) -> int:
        with self.source.open("rb") as file:
            row = self._read(0, file.readline())
        return row.wanted.dims if row.wanted else MODELS[self.model].full_dims


def _line_or_nothing(raw: bytes) -> Line:
    try:
        line = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    return line if isinstance(line, dict) else {}
