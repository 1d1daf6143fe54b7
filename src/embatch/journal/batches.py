"""Batches in the journal: entering, guarded changes of state, and sums over them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, case, delete, select, update

from embatch.errors import LeaseLostError, NotFoundError, TransitionRefusedError
from embatch.journal.bookkeeping import record_purchase
from embatch.journal.database import Database
from embatch.journal.entries import enter_batches, enter_failures
from embatch.journal.jobs import record_job
from embatch.journal.outlook import Outlook, read_outlook
from embatch.journal.records import BatchRecord, Failure, NewBatch, RunCounts
from embatch.journal.refusals import repeated
from embatch.journal.rows import batch_record, record_event
from embatch.journal.schema import batches_table, failures_table, runs_table
from embatch.journal.sums import ToBuy, count_rows, present_pace, sum_to_buy
from embatch.types.state import (
    FINAL_BATCH_STATES,
    BatchEvent,
    BatchState,
    RunEvent,
    RunState,
    next_batch_state,
    next_run_state,
)

PAGE_ROWS = 500
_LARGEST_NUMBER = 2**31 - 1
"""Of the column; PostgreSQL refuses to look for more."""
Also = Callable[[Connection], None]
"""Something that must happen with a change of state or not at all; raising undoes the change."""

_RESET = (
    BatchState.UPLOADED,
    BatchState.SUBMITTED,
    BatchState.FAILED,
    BatchState.EXPIRED,
    BatchState.CANCELLED,
    BatchState.QUARANTINED,
)
"""States in which a batch waits for what a person has mended by resuming its run."""

_SHOWN = (
    *("label", "remote_name", "part", "succeeded", "failed", "error", "error_code"),
    "attempt",
)
"""Facts of a change of state that its event keeps."""


class BatchTable:
    """The batches of all runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Entering

    @repeated
    def add_planned(
        self,
        run_id: str,
        token: str,
        *,
        batches: Sequence[NewBatch],
        failures: Sequence[Failure],
        plan: Mapping[str, Any],
        now: float,
    ) -> None:
        """Enters what one planning step made, with the planner's new position, all or nothing.

        Raises LeaseLostError when another process plans the run by now.
        """
        with self._database.write(run_id) as connection:
            changed = connection.execute(
                update(runs_table)
                .where(
                    runs_table.c.id == run_id,
                    runs_table.c.lease_token == token,
                    runs_table.c.state == RunState.PLANNING.value,
                )
                .values(plan=dict(plan), updated_at=now)
            )
            if changed.rowcount != 1:
                raise LeaseLostError(f"run {run_id} is planned by another process now")
            enter_batches(connection, run_id, batches, now)
            enter_failures(connection, run_id, failures)

    @repeated
    def add_retries(
        self, run_id: str, batches: Sequence[NewBatch], *, rows: Sequence[int], now: float
    ) -> None:
        """Enters batches that try failed rows again, takes the rows off the failures, and sets
        the run going, all or nothing.
        """
        source = RunState.COMPLETED_WITH_FAILURES
        target = next_run_state(source, RunEvent.RETRIED)
        with self._database.write(run_id) as connection:
            changed = connection.execute(
                update(runs_table)
                .where(runs_table.c.id == run_id, runs_table.c.state == source.value)
                .values(state=target.value, updated_at=now, finished_at=None)
            )
            if changed.rowcount != 1:
                raise TransitionRefusedError(f"run {run_id} is not {source}: retry does not apply")
            record_event(
                connection,
                run_id=run_id,
                at=now,
                kind=RunEvent.RETRIED,
                source=source,
                target=target,
                data={"rows": len(rows)},
            )
            enter_batches(connection, run_id, batches, now)
            for start in range(0, len(rows), PAGE_ROWS):
                connection.execute(
                    delete(failures_table).where(
                        failures_table.c.run_id == run_id,
                        failures_table.c.row.in_(rows[start : start + PAGE_ROWS]),
                    )
                )

    @repeated
    def reset_attempts(self, run_id: str, *, now: float) -> None:
        """Gives batches of a run that stopped their attempts back, now that a person resumes it."""
        table = batches_table.c
        stopped = [state.value for state in _RESET]
        with self._database.write(run_id) as connection:
            connection.execute(
                update(batches_table)
                .where(table.run_id == run_id, table.state.in_(stopped))
                .values(attempt=0, next_at=now, updated_at=now, blocked_reason=None)
            )

    @repeated
    def unblock(self, run_id: str, *, now: float) -> int:
        """Lets the batches that wait for a person try again, with all attempts where their job
        ended badly. Gives how many."""
        table = batches_table.c
        ended = case((table.state.in_([state.value for state in _RESET]), 0), else_=table.attempt)
        with self._database.write(run_id) as connection:
            return connection.execute(
                update(batches_table)
                .where(table.run_id == run_id, table.blocked_reason == "person")
                .values(
                    attempt=ended,
                    next_at=now,
                    updated_at=now,
                    blocked_reason=None,
                    blocked_detail=None,
                )
            ).rowcount

    # Changes under a lease

    @repeated
    def transition(
        self,
        batch: BatchRecord,
        token: str,
        event: BatchEvent,
        *,
        now: float,
        scope: str | None = None,
        also: Sequence[Also] = (),
        children: Sequence[NewBatch] = (),
        failures: Sequence[Failure] = (),
        **facts: Any,
    ) -> BatchRecord:
        """Moves `batch` from the state it was read in by `event`, with its facts, all or nothing.

        `children` are entered, `failures` recorded and `also` done in the same transaction; with
        `scope`, the provider's, the remote job that bears the batch's label is recorded too.
        Raises LeaseLostError when the lease went to another process and TransitionRefusedError
        when the batch stands in another state.
        """
        target = next_batch_state(batch.state, event)
        table = batches_table.c
        with self._database.write(batch.run_id) as connection:
            row = connection.execute(
                update(batches_table)
                .where(
                    table.id == batch.id,
                    table.state == batch.state.value,
                    table.lease_token == token,
                )
                .values(state=target.value, updated_at=now, **facts)
                .returning(*batches_table.c)
            ).one_or_none()
            if row is None:
                raise _refusal(connection, batch, event)
            after = batch_record(row)
            if scope is not None:
                record_job(connection, batch, after, event, scope=scope, now=now)
            for change in also:
                change(connection)
            if scope is not None:
                record_purchase(connection, batch, after, event, now)
            enter_batches(connection, batch.run_id, children, now)
            enter_failures(connection, batch.run_id, failures)
            record_event(
                connection,
                run_id=batch.run_id,
                batch_id=batch.id,
                number=batch.number,
                at=now,
                kind=event,
                source=batch.state,
                target=target,
                data=_event_data(facts, children, failures),
            )
            return after

    @repeated
    def note(self, batch: BatchRecord, token: str, *, now: float, **facts: Any) -> None:
        """Records facts that change no state: counts after a poll. A lost lease is an error."""
        table = batches_table.c
        with self._database.write() as connection:
            changed = connection.execute(
                update(batches_table)
                .where(table.id == batch.id, table.lease_token == token)
                .values(updated_at=now, **facts)
            )
            if changed.rowcount != 1:
                raise LeaseLostError(f"batch {batch.number} is worked by another process now")

    # Looking

    def get(self, batch_id: int) -> BatchRecord:
        """One batch; NotFoundError when it is not there."""
        with self._database.read() as connection:
            row = connection.execute(
                select(batches_table).where(batches_table.c.id == batch_id)
            ).one_or_none()
        if row is None:
            raise NotFoundError(f"batch {batch_id} is not in this journal any more")
        return batch_record(row)

    def numbered(self, run_id: str, number: int) -> BatchRecord:
        """The batch with this number; NotFoundError when the run has none."""
        row = None
        if 0 <= number <= _LARGEST_NUMBER:
            with self._database.read() as connection:
                row = connection.execute(
                    select(batches_table).where(
                        batches_table.c.run_id == run_id, batches_table.c.number == number
                    )
                ).one_or_none()
        if row is None:
            raise NotFoundError(f"run {run_id} has no batch {number}")
        return batch_record(row)

    def walk(
        self, run_id: str, *, states: Iterable[BatchState] | None = None
    ) -> Iterator[BatchRecord]:
        """The batches of a run by number, in constant memory."""
        table = batches_table.c
        after = -1
        wanted = None if states is None else [state.value for state in states]
        while True:
            query = select(batches_table).where(table.run_id == run_id, table.number > after)
            if wanted is not None:
                query = query.where(table.state.in_(wanted))
            with self._database.read() as connection:
                page = connection.execute(query.order_by(table.number).limit(PAGE_ROWS)).all()
            records = [batch_record(row) for row in page]
            yield from records
            if len(records) < PAGE_ROWS:
                return
            after = records[-1].number

    def parts_between(self, run_id: str, row_min: int, row_max: int) -> list[BatchRecord]:
        """Published batches whose parts may hold rows of `row_min..row_max`."""
        table = batches_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(batches_table).where(
                    table.run_id == run_id,
                    table.state == BatchState.PUBLISHED.value,
                    table.kind == "embed",
                    table.part_row_min <= row_max,
                    table.part_row_max >= row_min,
                )
            ).all()
        return [batch_record(row) for row in rows]

    def counts(self, run_id: str) -> RunCounts:
        """Sums over a run, as they stand now."""
        with self._database.read() as connection:
            return count_rows(connection, run_id)

    def pace(self, run_id: str, *, batches: int, now: float) -> float | None:
        """Rows a second of late; None before the first row is done."""
        with self._database.read() as connection:
            return present_pace(connection, run_id, batches, now)

    def waiting_for_person(self, run_id: str, *, limit: int = 20) -> list[BatchRecord]:
        """The batches of a run that go on only when someone acts, by number."""
        table = batches_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(batches_table)
                .where(
                    table.run_id == run_id,
                    table.blocked_reason == "person",
                    table.state != BatchState.SPLIT.value,
                )
                .order_by(table.number)
                .limit(limit)
            ).all()
        return [batch_record(row) for row in rows]

    def outlook(self, run_id: str) -> Outlook:
        """How long the run's jobs take, and what of it is not sent yet."""
        with self._database.read() as connection:
            return read_outlook(connection, run_id)

    def to_buy(self, run_id: str) -> ToBuy:
        """What the run has still to buy."""
        with self._database.read() as connection:
            return sum_to_buy(connection, run_id)

    def first_blocked(self, run_id: str) -> BatchRecord | None:
        """The blocked batch whose next step is the earliest."""
        table = batches_table.c
        with self._database.read() as connection:
            row = connection.execute(
                select(batches_table)
                .where(
                    table.run_id == run_id,
                    table.blocked_reason.is_not(None),
                    table.state.not_in([state.value for state in FINAL_BATCH_STATES]),
                )
                .order_by(table.next_at)
                .limit(1)
            ).one_or_none()
        return None if row is None else batch_record(row)


def _refusal(
    connection: Connection, batch: BatchRecord, event: BatchEvent
) -> LeaseLostError | TransitionRefusedError:
    state = connection.execute(
        select(batches_table.c.state).where(batches_table.c.id == batch.id)
    ).scalar()
    if state == batch.state.value:
        return LeaseLostError(f"batch {batch.number} is worked by another process now")
    return TransitionRefusedError(
        f"batch {batch.number} is {state}, not {batch.state}: {event} does not apply"
    )


def _event_data(
    facts: Mapping[str, Any], children: Sequence[NewBatch], failures: Sequence[Failure]
) -> dict[str, Any]:
    data = {name: facts[name] for name in _SHOWN if facts.get(name) is not None}
    if children:
        data["children"] = len(children)
    if failures:
        data["failures"] = len(failures)
    return data
