"""Every remote job that was ever asked for, by its label: one may turn up long after its batch
went on, and all that are unfinished share the provider's quota."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import Connection, func, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.journal.database import Database
from embatch.journal.records import BatchRecord
from embatch.journal.schema import jobs_table
from embatch.types.state import BatchEvent, BatchState

JobMark = Literal["submitting", "running", "ended", "cancelled", "refused", "absent"]
"""What is known of a job: `submitting` may or may not exist, `refused` surely never did, `absent`
was looked for and not found, `cancelled` was stopped and may still hold its share of the quota."""

_E = BatchEvent
_MARKS: Final[dict[BatchEvent, JobMark]] = {
    _E.SUBMIT_INTENDED: "submitting",
    _E.SUBMIT_DEFERRED: "refused",
    _E.SUBMIT_REFUSED: "refused",
    _E.SUBMIT_CONFIRMED: "running",
    _E.TWIN_ADOPTED: "running",
    _E.HELD_ABSENT: "absent",
    _E.RESULTS_READY: "ended",
    _E.JOB_FAILED: "ended",
    _E.JOB_EXPIRED: "ended",
    _E.JOB_CANCELLED: "cancelled",
    _E.INPUT_LOST: "ended",
}
OCCUPYING: Final = ("submitting", "running", "cancelled")
"""Marks of jobs that count against the quota."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One remote job of ours."""

    label: str
    run_id: str
    batch_id: int
    attempt: int
    scope: str
    """What shares one quota: `Provider.scope`."""
    items: int
    tokens: int
    """Estimated."""
    state: JobMark
    occupies: bool
    """It counts against the quota, as far as we know."""
    remote_name: str | None
    intended_at: float
    ended_at: float | None


def record_job(
    connection: Connection,
    before: BatchRecord,
    after: BatchRecord,
    event: BatchEvent,
    *,
    scope: str,
    now: float,
) -> None:
    """Notes what a change of a batch says of its job, in the caller's transaction."""
    mark = _MARKS.get(event)
    if mark is None or (event is _E.INPUT_LOST and before.state is not BatchState.SUBMITTED):
        return
    label = after.label if event is _E.TWIN_ADOPTED else before.label or after.label
    if label is None:
        return
    if mark == "ended" and before.cancel_asked_at is not None:
        mark = "cancelled"
    table = jobs_table.c
    values = {
        "state": mark,
        "occupies": mark in OCCUPYING,
        "remote_name": after.remote_name,
        "ended_at": None if mark in ("submitting", "running") else now,
    }
    if event is not _E.SUBMIT_INTENDED:
        connection.execute(update(jobs_table).where(table.label == label).values(**values))
        return
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    entry = make(jobs_table).values(
        label=label,
        run_id=after.run_id,
        batch_id=after.id,
        attempt=after.attempt,
        scope=scope,
        items=after.items,
        tokens=after.tokens_estimated,
        intended_at=now,
        **values,
    )
    connection.execute(
        entry.on_conflict_do_update(index_elements=["label"], set_={**values, "intended_at": now})
    )


class JobTable:
    """The jobs of all runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def occupying(self, scope: str) -> tuple[int, int]:
        """Tokens and jobs that count against the quota of `scope`, as far as we know."""
        with self._database.read() as connection:
            return occupying(connection, scope)

    def of_run(self, run_id: str, *, state: JobMark | None = None) -> Iterator[JobRecord]:
        """The jobs of a run, oldest first; those in one state alone."""
        query = select(jobs_table).where(jobs_table.c.run_id == run_id)
        if state is not None:
            query = query.where(jobs_table.c.state == state)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(jobs_table.c.intended_at)).mappings().all()
        for row in rows:
            yield JobRecord(**row)

    def of_batch(self, batch_id: int) -> list[JobRecord]:
        """Every job that a batch ever asked for, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(jobs_table)
                .where(jobs_table.c.batch_id == batch_id)
                .order_by(jobs_table.c.intended_at)
            ).mappings()
            return [JobRecord(**row) for row in rows]

    def find(self, label: str) -> JobRecord | None:
        """The job that bears `label`; None when this journal never asked for it."""
        with self._database.read() as connection:
            row = (
                connection.execute(select(jobs_table).where(jobs_table.c.label == label))
                .mappings()
                .one_or_none()
            )
        return None if row is None else JobRecord(**row)

    def mark(self, label: str, state: JobMark, *, now: float, **facts: str) -> None:
        """Notes what was learned of a job outside its batch's steps."""
        with self._database.write() as connection:
            connection.execute(
                update(jobs_table)
                .where(jobs_table.c.label == label)
                .values(state=state, occupies=state in OCCUPYING, ended_at=now, **facts)
            )

    def release(self, scope: str) -> int:
        """Cancelled jobs of `scope` are proven not to count any more. Gives how many."""
        table = jobs_table.c
        with self._database.write() as connection:
            return connection.execute(
                update(jobs_table)
                .where(table.scope == scope, table.state == "cancelled", table.occupies)
                .values(occupies=False)
            ).rowcount


def occupying(connection: Connection, scope: str) -> tuple[int, int]:
    """Tokens and jobs of a scope that count against its quota, in the caller's transaction."""
    table = jobs_table.c
    row = connection.execute(
        select(func.coalesce(func.sum(table.tokens), 0), func.count()).where(
            table.scope == scope, table.occupies
        )
    ).one()
    return int(row[0]), int(row[1])
