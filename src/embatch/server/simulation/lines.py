"""A batch's results as a day leaves them: cut short, out of order, spoiled. In constant memory."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embatch.server.details import BatchDetails
from embatch.server.outputs import StoppedError, spell, status_of
from embatch.server.simulation.counts import Counts
from embatch.server.simulation.plans import BatchPlan
from embatch.server.simulation.rows import StoredRow, StoredRows
from embatch.server.weather import Plan, Results
from embatch.service.batch import StoredBatch
from embatch.service.store import BatchStore
from embatch.testing import FakeEngine
from embatch.testing.cloud import spoil
from embatch.testing.cloud.dialects import GeminiFile, GeminiInline
from embatch.testing.cloud.faults import Fault, FaultKind
from embatch.testing.cloud.spoil import Spoiler
from embatch.types.results import Matrix
from embatch.vectors import truncate

_BLOCK_VALUES: Final = 1 << 20
"""Numbers of the vectors that are held at a time: rows out of order are dear in small blocks."""
_MOST_BLOCK_ROWS: Final = 8192
_SPELLED_ROWS: Final = 128
"""Few, so that no other thread waits long while they are spelled out."""
_OTHERS_LOOKED_AT: Final = 100
"""Batches among which keys of another one are looked for."""
_K = FaultKind


class SimulatedResults(Results):
    """The output of one batch with a plan."""

    def __init__(
        self,
        store: BatchStore,
        batch: StoredBatch,
        plan: BatchPlan,
        counts: Counts,
        *,
        stopping: Callable[[], bool],
    ) -> None:
        """Counts failures of transient row errors in `counts`."""
        super().__init__(self._lines())
        self._store = store
        self._batch = batch
        self._plan = plan
        self._counts = counts
        self._stopping = stopping
        self._inline = BatchDetails.parse(batch.details).file_name is None
        self._dialect = GeminiInline() if self._inline else GeminiFile()
        self._spoiler = Spoiler(
            [Fault(**values) for values in plan.faults],
            rows=batch.items,
            seed=plan.seed,
            job=f"batch {plan.number}",
            store=counts,
        )
        self._cancelled_rows = plan.end is not None and plan.end.cancelled_rows
        self._served = min(plan.served(batch.items), batch.rows_done)
        self._succeeded = 0
        self._failed = 0

    def plan(self) -> Plan | None:
        """The plan with the tally; counts failures that pass."""
        for what, digest in self._spoiler.seen:
            self._counts.count(what, digest)
        return replace(self._plan, succeeded=self._succeeded, failed=self._failed).build()

    def _lines(self) -> Iterator[bytes]:
        needs_texts = self._spoiler.touches_rows
        with closing(StoredRows(self._store, self._batch, texts=needs_texts)) as rows:
            ring = self._ring(rows)
            order = self._order()
            size = max(1, min(_MOST_BLOCK_ROWS, _BLOCK_VALUES // self._batch.dims))
            for start in range(0, len(order), size):
                yield from self._block(rows, order[start : start + size], ring)
        yield from self._uninvited()

    def _order(self) -> NDArray[np.int64]:
        items = self._batch.items
        order = np.arange(items)
        if self._spoiler.has(_K.SHUFFLE):
            order = spoil.shuffled(items, self._plan.seed)
        return order if self._cancelled_rows else order[order < self._served]

    def _ring(self, rows: StoredRows) -> dict[int, int]:
        """Whose vector a row bears in place of its own, dealt out in a ring among those taken."""
        if not self._spoiler.has(_K.SWAP_VALUES):
            return {}
        taken = [
            row.at.index
            for start in range(0, self._served, _MOST_BLOCK_ROWS)
            for row in rows.at(np.arange(start, min(start + _MOST_BLOCK_ROWS, self._served)))
            if self._spoiler.taken(_K.SWAP_VALUES, row.at) and self._error(row) is None
        ]
        self._spoiler.seen.clear()
        return dict(zip(taken, taken[1:] + taken[:1], strict=True))

    def _block(
        self, rows: StoredRows, indices: NDArray[np.int64], ring: dict[int, int]
    ) -> Iterator[bytes]:
        read = rows.at(indices)
        errors = [self._error(row) for row in read]
        good = [row for row, error in zip(read, errors, strict=True) if error is None]
        sources = np.array([ring.get(row.at.index, row.at.index) for row in good], dtype=np.int64)
        spelled = self._spelled(rows.vectors(sources), good)
        self._succeeded += len(good)
        self._failed += len(read) - len(good)
        for row, error in zip(read, errors, strict=True):
            values = b"" if error is not None else spelled[row.at.index]
            yield from self._copies(rows, row, error, values)

    def _error(self, row: StoredRow) -> dict[str, Any] | None:
        if row.at.index >= self._served:
            return spoil.status_of(1, None, details=False)
        if row.error is not None:
            code, message = status_of(row.error, empty=row.empty)
            return spoil.status_of(code, message, details=False)
        if row.truncated and self._spoiler.has(_K.OVER_LONG_REFUSED):
            message = "The input is longer than the model reads."
            return spoil.status_of(3, message, details=False)
        fault = self._spoiler.row_error(row.at) if self._spoiler.touches_rows else None
        if fault is None:
            return None
        code, message = int(fault.arg("code")), fault.arg("message")
        return spoil.status_of(code, message, details=fault.arg("details"))

    def _spelled(self, vectors: Matrix, rows: list[StoredRow]) -> dict[int, bytes]:
        """The JSON array of each row, by its index."""
        held = self._batch.dims
        whole = self._spoiler.has(_K.DIMS_IGNORED)
        wanted = np.array([held if whole else row.dims for row in rows], dtype=np.int64)
        spelled: dict[int, bytes] = {}
        for dims in np.unique(wanted).tolist():
            all_places = np.flatnonzero(wanted == dims)
            for start in range(0, len(all_places), _SPELLED_ROWS):
                if self._stopping():
                    raise StoppedError
                places = all_places[start : start + _SPELLED_ROWS]
                cut = vectors[places] if dims == held else truncate(vectors[places], dims)
                for place, values in zip(places.tolist(), spell(cut), strict=True):
                    row = rows[place]
                    spelled[row.at.index] = self._spoiled(row, b"[" + values + b"]")
        return spelled

    def _spoiled(self, row: StoredRow, values: bytes) -> bytes:
        if not self._spoiler.touches_values:
            return values
        return self._spoiler.spoil_values(values, row.at)

    def _copies(
        self, rows: StoredRows, row: StoredRow, error: dict[str, Any] | None, values: bytes
    ) -> Iterator[bytes]:
        if not self._spoiler.touches_rows:
            yield self._line(row, error, values)
            return

        def twin() -> bytes:
            if error is not None:
                return self._line(row, error, values)
            other = truncate(-rows.vectors(np.array([row.at.index])), row.dims)
            return self._line(row, error, b"[" + spell(other)[0] + b"]")

        yield from self._spoiler.copies(row.at, lambda: self._line(row, error, values), twin)

    def _line(self, row: StoredRow, error: dict[str, Any] | None, values: bytes) -> bytes:
        spoiler = self._spoiler
        echo = b"" if spoiler.keyless else row.echo
        if error is not None:
            body = self._dialect.failure({}, error)
        else:
            gone = spoiler.taken(_K.NULL_VECTOR, row.at) if spoiler.touches_rows else None
            tokens = None if spoiler.tokenless else row.tokens
            shape = gone.arg("shape") if gone else None
            body = self._dialect.success({}, values, tokens, shape, row.truncated)
        # The order of fields varies, as it does on the wire.
        members = (echo, body) if row.at.index % 2 == 0 else (body, echo)
        return b"{" + b",".join(member for member in members if member) + b"}"

    def _uninvited(self) -> Iterator[bytes]:
        """Rows under keys that this batch does not have."""
        echoes: list[bytes] = []
        unknown = self._spoiler.plain.get(_K.UNKNOWN_ROWS)
        if unknown:
            echoes += [self._echo(f"unknown-{n}") for n in range(int(unknown.arg("count")))]
        foreign = self._spoiler.plain.get(_K.FOREIGN_ROWS)
        if foreign:
            echoes += self._echoes_of_another(int(foreign.arg("count")))
        engine = FakeEngine(self._batch.dims)
        for number, echo in enumerate(echoes):
            values = b"[" + spell(engine.expected([f"uninvited {number}"]))[0] + b"]"
            yield b"{" + echo + b"," + self._dialect.success({}, values, 1, None, False) + b"}"

    def _echo(self, key: str) -> bytes:
        return self._dialect.echo(self._dialect.keyed(key))

    def _echoes_of_another(self, count: int) -> list[bytes]:
        for other in self._store.page(limit=_OTHERS_LOOKED_AT):
            inline = BatchDetails.parse(other.details).file_name is None
            if other.id == self._batch.id or inline != self._inline:
                continue
            with closing(StoredRows(self._store, other, texts=False)) as rows:
                found = [row.echo for row in rows.at(np.arange(min(count, other.items)))]
            if found and all(found):
                return found
        return [self._echo(f"0123456789ab:{n}") for n in range(count)]
