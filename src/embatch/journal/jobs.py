"""Every remote job that was ever asked for, by its label: one may turn up long after its batch
went on, and all that are unfinished share the provider's quota."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy import Connection, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.journal.database import Database
from embatch.journal.ledger import reopen
from embatch.journal.quotas import wake_waiting
from embatch.journal.records import BatchRecord
from embatch.journal.refusals import repeated
from embatch.journal.rows import record_event
from embatch.journal.schema import batches_table, jobs_table, runs_table
from embatch.types.state import BatchEvent, BatchState

JobMark = Literal["submitting", "running", "ended", "cancelled", "refused", "absent", "stray"]
"""What is known of a job: `submitting` may or may not exist, `refused` surely never did, `absent`
was looked for and not found, `cancelled` was stopped and may still hold its share of the quota,
`stray` was asked to stop and goes on while its batch has gone on without it."""

STUCK: Final = "stuck"
"""Error code of a batch that went on without its job, which stood still and would not stop."""
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
OCCUPYING: Final = ("submitting", "running", "cancelled", "stray")
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
    if event is _E.JOB_EXPIRED and after.error_code == STUCK:
        mark = "stray"
    elif mark == "ended" and before.cancel_asked_at is not None:
        mark = "cancelled"
    table = jobs_table.c
    values = {
        "state": mark,
        "occupies": mark in OCCUPYING,
        "remote_name": after.remote_name,
        "ended_at": None if mark in ("submitting", "running") else now,
    }
    if event is _E.TWIN_ADOPTED and _is_absent(connection, label):
        count_twin(connection, after.run_id)
    if event is not _E.SUBMIT_INTENDED:
        connection.execute(update(jobs_table).where(table.label == label).values(**values))
        if mark in ("ended", "absent"):
            wake_waiting(connection, scope, now)
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

    def watched(self, run_id: str) -> list[JobRecord]:
        """Jobs of a run that nobody follows and that may cost: those held absent, those that go
        on beside their batch, and those that turned up when it was sent again already."""
        table, batch = jobs_table.c, batches_table.c
        followed = select(batch.id).where(batch.id == table.batch_id, batch.label == table.label)
        beside = and_(table.state == "running", ~followed.exists())
        query = select(jobs_table).where(
            table.run_id == run_id, or_(table.state.in_(("absent", "stray")), beside)
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(table.intended_at)).mappings()
            return [JobRecord(**row) for row in rows]

    @repeated
    def turned_up(self, job: JobRecord, name: str, state: JobMark, *, now: float) -> bool:
        """A job that was held absent is there after all, and counts in its run from now on.

        Gives whether it was held absent still: its batch may have taken it over by now.
        """
        with self._database.write(job.run_id) as connection:
            facts = {"remote_name": name}
            if not _mark(connection, job.label, state, now, facts, expected="absent"):
                return False
            reopen(connection, job.label)
            count_twin(connection, job.run_id)
            record_event(
                connection,
                run_id=job.run_id,
                batch_id=job.batch_id,
                at=now,
                kind="twin_found",
                data={"label": job.label, "remote_name": name},
            )
        return True

    def sighted(self, strays: Iterable[JobRecord], seen: Container[str], *, now: float) -> None:
        """After a complete look: of these strays those whose labels were `seen` count against
        the quota, and the others count no more."""
        changed = [job for job in strays if job.occupies is not (job.label in seen)]
        if not changed:
            return
        self._count(changed, now)

    @repeated
    def _count(self, changed: Sequence[JobRecord], now: float) -> None:
        table = jobs_table.c
        with self._database.write() as connection:
            for job in changed:
                connection.execute(
                    update(jobs_table)
                    .where(table.label == job.label, table.state == "stray")
                    .values(occupies=not job.occupies)
                )
            for scope in {job.scope for job in changed if job.occupies}:
                wake_waiting(connection, scope, now)

    @repeated
    def mark(self, label: str, state: JobMark, *, now: float, **facts: str) -> None:
        """Notes what was learned of a job outside its batch's steps."""
        with self._database.write() as connection:
            _mark(connection, label, state, now, facts)


def held_gone(label: str, *, now: float) -> Callable[[Connection], None]:
    """A change: a job that was there is held to be gone, counts no more, and stays watched."""

    def change(connection: Connection) -> None:
        _mark(connection, label, "stray", now, {"occupies": False})

    return change


def _is_absent(connection: Connection, label: str) -> bool:
    state = connection.execute(select(jobs_table.c.state).where(jobs_table.c.label == label))
    return state.scalar() == "absent"


def count_twin(connection: Connection, run_id: str) -> None:
    """One job more of the run that turned up late, in the caller's transaction."""
    connection.execute(
        update(runs_table).where(runs_table.c.id == run_id).values(twins=runs_table.c.twins + 1)
    )


def _mark(
    connection: Connection,
    label: str,
    state: JobMark,
    now: float,
    facts: Mapping[str, Any],
    *,
    expected: JobMark | None = None,
) -> bool:
    there = [jobs_table.c.label == label]
    if expected is not None:
        there.append(jobs_table.c.state == expected)
    changed = connection.execute(
        update(jobs_table)
        .where(*there)
        .values(
            **{
                "state": state,
                "occupies": state in OCCUPYING,
                "ended_at": None if state == "running" else now,
                **facts,
            }
        )
    )
    return changed.rowcount == 1


def occupying(connection: Connection, scope: str) -> tuple[int, int]:
    """Tokens and jobs of a scope that count against its quota, in the caller's transaction."""
    table = jobs_table.c
    row = connection.execute(
        select(func.coalesce(func.sum(table.tokens), 0), func.count()).where(
            table.scope == scope, table.occupies
        )
    ).one()
    return int(row[0]), int(row[1])
