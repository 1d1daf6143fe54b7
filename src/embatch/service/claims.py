"""The worker's side of the store: claim a batch, commit its slices, give it back.

A claim is the batch's file lock, which the kernel frees when the process dies, and a token that
stands in the WHERE of every update: what was cancelled, deleted or taken over is not written.
"""

import errno
import json
import os
import secrets
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from embatch.errors import InputError, JournalError, LeaseLostError, ProviderUnavailableError
from embatch.service.batch import StoredBatch
from embatch.service.database import Values
from embatch.service.files import (
    REQUESTS_FILE,
    RESULTS_FILE,
    Requests,
    ResultFile,
    SliceResult,
    lock_batch,
)
from embatch.service.slices import slice_end
from embatch.service.store import BatchStore, parse_batch
from embatch.service.told import tell

CLAIM_LOOKS: Final = 64
"""Batches looked at for a claim: more than there are processes to hold one each."""


_PASSING: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS}
)
"""What the disk or the system says when it is full, not when one batch's files are broken."""


def may_pass(error: BaseException) -> bool:
    """The trouble is with the store or the disk, not with the batch: try again later."""
    if isinstance(error, OSError):
        return error.errno in _PASSING
    return isinstance(error, (JournalError, ProviderUnavailableError))


class Claim:
    """The right to work on one batch, until `close` or the end of the process."""

    def __init__(
        self, store: BatchStore, batch: StoredBatch, *, token: str, stop: int, lock: int
    ) -> None:
        """Takes over `lock`. Raises `InputError` or OSError when the batch's files are gone."""
        self.batch = batch
        """As of the last commit."""
        self._stop = stop
        self._store = store
        self._token = token
        self._lock = lock
        folder = store.folder(batch.id)
        self._requests = Requests(folder / REQUESTS_FILE)
        try:
            self._results = ResultFile(
                folder / RESULTS_FILE, items=batch.items, dims=batch.dims, writable=True
            )
        except BaseException:
            self._requests.close()
            raise

    @property
    def slice_items(self) -> int:
        """Rows of the slice in hand; 0 when the batch has ended."""
        return self._stop - self.batch.rows_done

    def texts(self) -> list[str]:
        """Texts of the slice in hand, which the store counts as begun."""
        return self._requests.texts(self.batch.rows_done, self._stop)

    def commit(self, part: SliceResult, *, next_items: int) -> None:
        """Makes the slice in hand durable and takes the next `next_items` rows in hand.

        Raises `LeaseLostError` when the batch was cancelled or deleted meanwhile; OSError and
        `ProviderUnavailableError` when the disk refuses: the same call may be repeated.
        """
        store, start = self._store, self.batch.rows_done
        store.checkpoint("service.computed")
        self._results.write(start, part)
        store.checkpoint("service.written")
        now = store.clock()
        ended = self._stop == self.batch.items
        stop = slice_end(self._stop, next_items, self.batch.items)
        with store.database.transaction() as db:
            row = db.execute(
                "UPDATE batches SET rows_done = ?, rows_begun = ?, failed = failed + ?,"
                " tokens = tokens + ?, updated_at = ?, state = iif(?, 'completed', state),"
                " ended_at = iif(?, ?, ended_at)"
                " WHERE id = ? AND claim = ? AND state = 'processing' AND rows_done = ?"
                " RETURNING *",
                (
                    self._stop, stop, len(part.errors), int(part.tokens.sum()), now, ended,
                    ended, now, self.batch.id, self._token, start,
                ),
            ).fetchone()  # fmt: skip
            if row is None:
                raise self._lost()
            db.executemany(
                "INSERT INTO row_errors VALUES (?, ?, ?, ?, ?)",
                [
                    (self.batch.id, start + place, error.code, error.message, error.transient)
                    for place, error in part.errors.items()
                ],
            )
        self.batch, self._stop = parse_batch(row), stop
        if ended:
            tell(self.batch, "processing")
        store.checkpoint("service.committed")

    def release(self) -> None:
        """Leaves the batch to whoever comes next; the slice in hand counts as not begun."""
        self._update(
            "UPDATE batches SET claim = NULL, rows_begun = rows_done"
            " WHERE id = ? AND claim = ? AND state = 'processing' RETURNING *",
            (self.batch.id, self._token),
        )

    def fail(self, reason: str) -> None:
        """Ends the batch badly; rows that are done stay. `reason` holds no user's text."""
        now = self._store.clock()
        self._update(
            "UPDATE batches SET state = 'failed', error = ?, ended_at = ?, updated_at = ?"
            " WHERE id = ? AND claim = ? AND state = 'processing' RETURNING *",
            (reason, now, now, self.batch.id, self._token),
        )
        tell(self.batch, "processing")

    def _update(self, sql: str, values: Values) -> None:
        with self._store.database.transaction() as db:
            row = db.execute(sql, values).fetchone()
        if row is None:
            raise self._lost()
        self.batch = parse_batch(row)

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"batch {self.batch.id} was cancelled, deleted or taken over")

    def close(self) -> None:
        """Lets go of the files and the lock. Call once."""
        self._requests.close()
        self._results.close()
        os.close(self._lock)


def claim_next(
    store: BatchStore,
    *,
    slice_items: int,
    models: Collection[str] | None = None,
    at_least: int | None = None,
) -> Claim | None:
    """The waiting batch that goes first, with its next `slice_items` rows in hand.

    Highest priority, then oldest; never one that a living worker holds. `models` limits the
    choice, and so does the priority that it must have `at_least`. None when nothing waits.
    """
    for batch_id in _waiting(store, models, above=None if at_least is None else at_least - 1):
        claim = _try_claim(store, batch_id, slice_items)
        if claim is not None:
            return claim
    return None


def is_outranked(
    store: BatchStore, priority: int, *, models: Collection[str] | None = None
) -> bool:
    """A batch of higher priority waits, and no living worker holds it."""
    for batch_id in _waiting(store, models, above=priority):
        with suppress(FileNotFoundError):
            lock = lock_batch(store.folder(batch_id))
            if lock is not None:
                os.close(lock)
                return True
    return False


def _waiting(
    store: BatchStore, models: Collection[str] | None, *, above: int | None = None
) -> list[str]:
    rows = store.database.rows(
        "SELECT id FROM batches WHERE waiting AND (:above IS NULL OR priority > :above)"
        " AND (:models IS NULL OR model IN (SELECT value FROM json_each(:models)))"
        " ORDER BY priority DESC, seq LIMIT :looks",
        {
            "above": above,
            "models": None if models is None else json.dumps(list(models)),
            "looks": CLAIM_LOOKS,
        },
    )
    return [row["id"] for row in rows]


def _try_claim(store: BatchStore, batch_id: str, slice_items: int) -> Claim | None:
    try:
        lock = lock_batch(store.folder(batch_id))
    except FileNotFoundError:
        _fail_without_files(store, batch_id)
        return None
    if lock is None:
        return None
    try:
        claim = _claim_locked(store, batch_id, slice_items, lock)
    except BaseException as error:
        os.close(lock)
        if isinstance(error, (OSError, InputError)) and not may_pass(error):
            _fail_without_files(store, batch_id)
            return None
        raise
    if claim is None:
        os.close(lock)
    else:
        store.checkpoint("service.claimed")
    return claim


def _claim_locked(store: BatchStore, batch_id: str, slice_items: int, lock: int) -> Claim | None:
    token, now = f"{os.getpid()}-{secrets.token_hex(4)}", store.clock()
    with store.database.transaction() as db:
        before = db.execute(
            "SELECT state, rows_begun, rows_done, items FROM batches WHERE id = ? AND waiting",
            (batch_id,),
        ).fetchone()
        if before is None:
            return None
        lost = max(0, before["rows_begun"] - before["rows_done"])
        row = db.execute(
            "UPDATE batches SET state = 'processing', claim = ?, items_redone = items_redone + ?,"
            " rows_begun = ?, updated_at = ?,"
            " started_at = coalesce(started_at, ?) WHERE id = ? RETURNING *",
            (
                token,
                lost,
                slice_end(before["rows_done"], slice_items, before["items"]),
                now,
                now,
                batch_id,
            ),
        ).fetchone()
        if lost:
            db.execute(
                "INSERT INTO counters VALUES ('items_redone', ?1)"
                " ON CONFLICT (name) DO UPDATE SET value = value + ?1",
                (lost,),
            )
    batch = parse_batch(row)
    if before["state"] != "processing":
        tell(batch, before["state"])
    return Claim(store, batch, token=token, stop=row["rows_begun"], lock=lock)


def _fail_without_files(store: BatchStore, batch_id: str) -> None:
    """A batch whose files are gone can never be computed; one that was deleted has no row."""
    now = store.clock()
    with store.database.transaction() as db:
        row = db.execute(
            "UPDATE batches SET state = 'failed', ended_at = ?, updated_at = ?,"
            " error = 'the files of this batch are gone or damaged: submit it again'"
            " WHERE id = ? AND waiting RETURNING *",
            (now, now, batch_id),
        ).fetchone()
    if row is not None:
        tell(parse_batch(row), None)
