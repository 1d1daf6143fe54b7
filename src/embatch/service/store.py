"""Batches on disk: created, claimed slice by slice, finished, read. Survives kill -9 anywhere.

The rule that makes it so: a slice's bytes are flushed before its progress is committed, and rows
are done in order. What is committed is complete; what is not is computed again, in place.
"""

import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from embatch.errors import (
    BatchNotCompleteError,
    EmbatchError,
    InputError,
    InvalidRequestError,
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.service.batch import ServiceBlock, StoredBatch
from embatch.service.database import Database, Value, Values
from embatch.service.files import (
    EMBEDDED,
    RESULTS_FILE,
    Requests,
    ResultFile,
    place_batch,
)
from embatch.service.told import tell
from embatch.types.embedding import RowError
from embatch.types.state import JobState

BLOCK_ROWS: Final = 1024
"""Rows of a block of results."""

ORPHAN_AGE_S: Final = 3600.0
"""A batch folder that no row names is being created, or is waste when older than this."""

CHECKPOINTS: Final = (
    "service.placed",
    "service.created",
    "service.claimed",
    "service.computed",
    "service.written",
    "service.committed",
)
"""The moments that `checkpoint` hears of, in the order of a batch's life."""


class BatchStore:
    """The batches of one folder. Threads and processes may share it, on one host."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Opens or makes the store. `clock` gives seconds since 1970."""
        self._batches = folder / "batches"
        self._batches.mkdir(parents=True, exist_ok=True)
        self.database = Database(folder / "service.db")
        self.clock = clock
        self.checkpoint = checkpoint

    def create(
        self,
        *,
        label: str,
        requests: Path,
        items: int,
        model: str,
        dims: int,
        prompt: str = "",
        priority: int = 0,
        details: str = "",
    ) -> StoredBatch:
        """A new batch of the texts in `requests`, an Arrow IPC file that nobody changes any more.

        The same label and request again give the batch that exists; the same label for something
        else raises `InvalidRequestError`. Raises `InputError` when the file does not hold the
        `items` texts.
        """
        with closing(Requests(requests)) as opened:
            held = opened.count()
        if held != items or items < 1:
            raise InputError(
                f"batch {label!r} should have {items} items and one at least, "
                f"but {requests} holds {held}"
            )
        wanted: dict[str, Value] = {
            "model": model, "dims": dims, "prompt": prompt, "items": items
        }  # fmt: skip
        batch = self.find(label) or self._insert(
            requests, {**wanted, "label": label, "priority": priority, "details": details}
        )
        if any(getattr(batch, name) != value for name, value in wanted.items()):
            raise InvalidRequestError(
                f"batch {batch.id} already bears the label {label!r} with other items or "
                "another model: choose another label"
            )
        self.checkpoint("service.created")
        return batch

    def _insert(self, requests: Path, columns: dict[str, Value]) -> StoredBatch:
        """Files first, then the row; of two callers with one label the second finds the first's."""
        batch_id, now = secrets.token_hex(8), self.clock()
        try:
            place_batch(self.folder(batch_id), requests)
        except OSError as error:
            self._remove_files(batch_id)
            raise ProviderUnavailableError(
                f"the batch's requests cannot be stored in {self._batches} ({error.strerror}): "
                "make room, then try again"
            ) from error
        self.checkpoint("service.placed")
        try:
            with self.database.transaction() as db:
                db.execute(
                    "INSERT INTO batches (id, label, details, model, dims, prompt, priority, items,"
                    " state, created_at, updated_at) VALUES (:id, :label, :details, :model, :dims,"
                    " :prompt, :priority, :items, 'pending', :now, :now)"
                    " ON CONFLICT (label) DO NOTHING",
                    {**columns, "id": batch_id, "now": now},
                )
                row = db.execute("SELECT * FROM batches WHERE label = :label", columns).fetchone()
        except BaseException:
            with suppress(EmbatchError, ProviderUnavailableError):
                self.clear(batch_id)
            raise
        batch = parse_batch(row)
        if batch.id != batch_id:
            self._remove_files(batch_id)
        else:
            tell(batch, None)
        return batch

    def get(self, batch_id: str) -> StoredBatch:
        """The batch now, whatever its size in one read. Raises `NotFoundError`."""
        rows = self.database.rows("SELECT * FROM batches WHERE id = ?", (batch_id,))
        if not rows:
            raise unknown_batch(batch_id)
        return parse_batch(rows[0])

    def find(self, label: str) -> StoredBatch | None:
        """The batch that bears `label`, None when there is none."""
        rows = self.database.rows("SELECT * FROM batches WHERE label = ?", (label,))
        return parse_batch(rows[0]) if rows else None

    def page(self, *, before_seq: int | None = None, limit: int = 100) -> list[StoredBatch]:
        """Batches, newest first; go on with the last one's `seq`."""
        rows = self.database.rows(
            "SELECT * FROM batches WHERE ?1 IS NULL OR seq < ?1 ORDER BY seq DESC LIMIT ?2",
            (before_seq, limit),
        )
        return [parse_batch(row) for row in rows]

    def ended_before(
        self, time_s: float, *, after_seq: int = 0, limit: int = 100
    ) -> list[StoredBatch]:
        """Batches that ended before `time_s`, seconds since 1970, oldest first; go on by `seq`."""
        rows = self.database.rows(
            "SELECT * FROM batches WHERE ended_at < ? AND seq > ? ORDER BY seq LIMIT ?",
            (time_s, after_seq, limit),
        )
        return [parse_batch(row) for row in rows]

    def find_all(self, labels: Sequence[str]) -> list[StoredBatch]:
        """The batches that bear any of `labels`, oldest first, in one read."""
        rows = self.database.rows(
            "SELECT * FROM batches WHERE label IN (SELECT value FROM json_each(?)) ORDER BY seq",
            (json.dumps(list(labels)),),
        )
        return [parse_batch(row) for row in rows]

    def count_states(self) -> dict[str, int]:
        """How many batches there are of each state."""
        rows = self.database.rows("SELECT state, count(*) AS batches FROM batches GROUP BY state")
        return {row["state"]: row["batches"] for row in rows}

    def items_redone(self) -> int:
        """Rows begun again after a process died, over all batches that ever were."""
        rows = self.database.rows("SELECT value FROM counters WHERE name = 'items_redone'")
        return int(rows[0]["value"]) if rows else 0

    def set_priority(self, batch_id: str, priority: int) -> StoredBatch:
        """Moves a batch in the order, from its next slice on."""
        return self._update(
            batch_id,
            "UPDATE batches SET priority = ?, updated_at = ? WHERE id = ? RETURNING *",
            (priority, self.clock(), batch_id),
        )

    def change_details(self, batch_id: str, change: Callable[[str], str]) -> StoredBatch:
        """Replaces a batch's details by what `change` makes of them. Raises `NotFoundError`."""
        with self.database.transaction() as db:
            row = db.execute("SELECT details FROM batches WHERE id = ?", (batch_id,)).fetchone()
            if row is None:
                raise unknown_batch(batch_id)
            changed = db.execute(
                "UPDATE batches SET details = ?, updated_at = ? WHERE id = ? RETURNING *",
                (change(row["details"]), self.clock(), batch_id),
            ).fetchone()
        return parse_batch(changed)

    def cancel(self, batch_id: str) -> StoredBatch:
        """Ends a batch and keeps the rows that are done; a batch that has ended stays as it is."""
        now = self.clock()
        return self._update(
            batch_id,
            "UPDATE batches SET state = 'cancelled', ended_at = ?, updated_at = ?"
            " WHERE id = ? AND waiting RETURNING *",
            (now, now, batch_id),
            ends=True,
        )

    def delete(self, batch_id: str) -> None:
        """Removes a batch with its files; one under way stops. Raises `NotFoundError`."""
        with self.database.transaction() as db:
            if db.execute("DELETE FROM batches WHERE id = ?", (batch_id,)).rowcount == 0:
                raise unknown_batch(batch_id)
        self._remove_files(batch_id)

    def results(self, batch_id: str, *, block_rows: int = BLOCK_ROWS) -> Iterator[ServiceBlock]:
        """What an ended batch has, in order of rows, in constant memory.

        Rows that a cancelled or failed batch did not reach are in no block. Raises
        `BatchNotCompleteError` and `NotFoundError` at the call.
        """
        batch = self.get(batch_id)
        if not batch.done:
            raise BatchNotCompleteError(
                f"Batch not yet completed (current state: {batch.state}): {batch_id}"
            )
        return self._blocks(batch, block_rows)

    def _blocks(self, batch: StoredBatch, block_rows: int) -> Iterator[ServiceBlock]:
        if batch.rows_done == 0:
            return
        try:
            file = ResultFile(
                self.folder(batch.id) / RESULTS_FILE, items=batch.items, dims=batch.dims
            )
        except FileNotFoundError:
            raise unknown_batch(batch.id) from None
        with closing(file):
            for start in range(0, batch.rows_done, block_rows):
                stop = min(start + block_rows, batch.rows_done)
                yield self._block(batch, file, start, stop)

    def _block(self, batch: StoredBatch, file: ResultFile, start: int, stop: int) -> ServiceBlock:
        vectors, rows = file.read(start, stop)
        good = rows["state"] == EMBEDDED
        errors: list[tuple[int, RowError]] = []
        if not good.all():
            errors = self._row_errors(batch.id, start, stop)
            if [row for row, _ in errors] != (np.flatnonzero(~good) + start).tolist():
                raise unknown_batch(batch.id)
        return ServiceBlock(
            rows=np.flatnonzero(good) + start,
            vectors=vectors if not errors else np.ascontiguousarray(vectors[good]),
            tokens=rows["tokens"][good].astype(np.int32),
            truncated=rows["truncated"][good],
            errors=errors,
        )

    def _row_errors(self, batch_id: str, start: int, stop: int) -> list[tuple[int, RowError]]:
        rows = self.database.rows(
            "SELECT * FROM row_errors WHERE batch_id = ? AND row >= ? AND row < ? ORDER BY row",
            (batch_id, start, stop),
        )
        return [
            (
                row["row"],
                RowError(
                    code=row["code"], message=row["message"], transient=bool(row["transient"])
                ),
            )
            for row in rows
        ]

    def clear(self, batch_id: str) -> None:
        """Removes what is left of the files of a batch that was deleted or never made."""
        if not self.database.rows("SELECT 1 FROM batches WHERE id = ?", (batch_id,)):
            self._remove_files(batch_id)

    def sweep(self) -> None:
        """Removes folders that a process left behind when it died between folder and row."""
        known = {row["id"] for row in self.database.rows("SELECT id FROM batches")}
        for folder in self._batches.iterdir():
            if folder.name not in known:
                with suppress(FileNotFoundError):
                    if self.clock() - folder.stat().st_mtime > ORPHAN_AGE_S:
                        self._remove_files(folder.name)

    def folder(self, batch_id: str) -> Path:
        """Where a batch's files are."""
        return self._batches / batch_id

    def close(self) -> None:
        """Closes the database. Safe to call twice."""
        self.database.close()

    def _update(
        self, batch_id: str, sql: str, values: Values, *, ends: bool = False
    ) -> StoredBatch:
        """The batch after a guarded update; as it is when the guard refused."""
        with self.database.transaction() as db:
            row = db.execute(sql, values).fetchone()
        if row and ends:
            tell(parse_batch(row), None)
        return parse_batch(row) if row else self.get(batch_id)

    def _remove_files(self, batch_id: str) -> None:
        # What cannot be removed now has no row any more: sweep() takes it later.
        shutil.rmtree(self.folder(batch_id), ignore_errors=True)


def parse_batch(row: sqlite3.Row) -> StoredBatch:
    """The batch that a row of the table holds."""
    values = {field.name: row[field.name] for field in fields(StoredBatch)}
    for name in ("created_at", "started_at", "updated_at", "ended_at"):
        if values[name] is not None:
            values[name] = datetime.fromtimestamp(values[name], UTC)
    return StoredBatch(**{**values, "state": JobState(values["state"])})


def unknown_batch(batch_id: str) -> NotFoundError:
    """The error for a batch that is not, or no longer, in the store."""
    return NotFoundError(f"there is no batch {batch_id}: it was deleted, or never was")
