"""The journal's one door: runs, batches, failures and events, each change guarded and recorded."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from embatch.errors import JournalError, NotFoundError, TransitionRefusedError
from embatch.journal.audits import AuditTable
from embatch.journal.batches import BatchTable
from embatch.journal.calibrations import CalibrationTable
from embatch.journal.changes import ChangeWatch
from embatch.journal.clock import DatabaseClock
from embatch.journal.database import Database
from embatch.journal.dues import DueTable
from embatch.journal.entries import cancel_batches, enter_adopted
from embatch.journal.jobs import JobTable
from embatch.journal.leases import LeaseTable
from embatch.journal.ledger_table import LedgerTable
from embatch.journal.measures import MeasureTable
from embatch.journal.outbox import OutboxTable, enter_transition
from embatch.journal.quotas import QuotaTable
from embatch.journal.records import AdoptedPart, EventRecord, Failure, RunRecord
from embatch.journal.refusals import repeated
from embatch.journal.rows import record_event, run_record
from embatch.journal.schema import events_table, failures_table, runs_table
from embatch.journal.views import ViewTable
from embatch.journal.workers import WorkerTable
from embatch.types.state import RunEvent, RunState, next_run_state

PAGE_ROWS = 1000
"""Rows fetched at once when a table is walked."""


class Journal:
    """The database of runs and batches. Safe to use from several threads and processes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.id = database.journal_id
        self.batches = BatchTable(database)
        self.leases = LeaseTable(database)
        self.dues = DueTable(database)
        self.jobs = JobTable(database)
        self.audits = AuditTable(database)
        self.ledger = LedgerTable(database)
        self.quotas = QuotaTable(database)
        self.calibrations = CalibrationTable(database)
        self.views = ViewTable(database)
        self.workers = WorkerTable(database)
        self.outbox = OutboxTable(database)
        self.measures = MeasureTable(database)

    @classmethod
    def open(cls, url: str) -> "Journal":
        """Opens the journal at `url`, making or migrating it first."""
        return cls(Database.open(url))

    def close(self) -> None:
        """Closes the database. Safe to call twice."""
        self._database.close()

    def clock(self, own: Callable[[], float]) -> Callable[[], float]:
        """What tells the time to all who share the journal: `own` for a file, which one machine
        has, else the database's clock, since machines may disagree."""
        return DatabaseClock(self._database) if self._database.is_shared else own

    def watch(self) -> ChangeWatch:
        """Tells again and again what has changed since the last look."""
        return ChangeWatch(self._database)

    # Runs

    @repeated
    def create_run(
        self,
        *,
        run_id: str,
        out: str,
        config: Mapping[str, Any],
        space: Mapping[str, Any],
        now: float,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
        priority: int = 0,
        adopted: Sequence[AdoptedPart] = (),
    ) -> RunRecord:
        """Enters a run in state `planning`. A run that stands already is given back as it is.

        `adopted` are parts found in its output, entered with it as published batches.
        """
        with self._database.write(run_id) as connection:
            found = _find_run(connection, run_id)
            if found is not None:
                return found
            connection.execute(
                insert(runs_table).values(
                    id=run_id,
                    name=name,
                    state=RunState.PLANNING.value,
                    out=out,
                    config=dict(config),
                    space=dict(space),
                    tags=dict(tags or {}),
                    priority=priority,
                    created_at=now,
                    updated_at=now,
                )
            )
            record_event(
                connection, run_id=run_id, at=now, kind="created", target=RunState.PLANNING
            )
            for part in adopted:
                enter_adopted(connection, run_id, part, now)
            return _need_run(connection, run_id)

    def get_run(self, name: str) -> RunRecord:
        """The run with this id, this name, or an id that begins so; NotFoundError otherwise."""
        with self._database.read() as connection:
            found = _find_run(connection, name)
            if found is not None:
                return found
            named = connection.execute(
                select(runs_table).where(runs_table.c.name == name).limit(2)
            ).all()
            if not named:
                named = connection.execute(
                    select(runs_table)
                    .where(runs_table.c.id.startswith(name, autoescape=True))
                    .limit(2)
                ).all()
        if len(named) == 1:
            return run_record(named[0])
        if named:
            raise NotFoundError(f"{name!r} names more than one run: give more of its id")
        raise NotFoundError(f"no run {name!r} in this journal: `embatch runs` lists them")

    def find_run(self, run_id: str) -> RunRecord | None:
        """The run with exactly this id, None when the journal does not have it."""
        with self._database.read() as connection:
            return _find_run(connection, run_id)

    def list_runs(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        states: Iterable[RunState] | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first; those alone that bear all `tags` and stand in one of `states`."""
        query = select(runs_table).order_by(runs_table.c.created_at.desc(), runs_table.c.id)
        if states is not None:
            query = query.where(runs_table.c.state.in_([state.value for state in states]))
        with self._database.read() as connection:
            records = [run_record(row) for row in connection.execute(query)]
        wanted = (tags or {}).items()
        return [record for record in records if wanted <= record.tags.items()]

    @repeated
    def update_run(self, run_id: str, *, now: float, **values: Any) -> RunRecord:
        """Changes what may change between starts; states change by `transition_run` alone."""
        refused = values.keys() - {"config", "name", "tags", "priority", "rows", "plan", "error"}
        if refused:
            raise JournalError(f"a run's {', '.join(sorted(refused))} is not changed like this")
        with self._database.write(run_id) as connection:
            connection.execute(
                update(runs_table).where(runs_table.c.id == run_id).values(updated_at=now, **values)
            )
            return _need_run(connection, run_id)

    @repeated
    def transition_run(
        self,
        run_id: str,
        event: RunEvent,
        *,
        expected: RunState,
        now: float,
        token: str | None = None,
        **facts: Any,
    ) -> RunRecord:
        """Moves a run from `expected` by `event`; TransitionRefusedError if it stands elsewhere.

        With `token` only under that planning lease. Cancelling voids the planning lease, and
        cancels the batches that are not submitted, leases and all, in the same transaction.
        """
        target = next_run_state(expected, event)
        guard = [runs_table.c.id == run_id, runs_table.c.state == expected.value]
        if token is not None:
            guard.append(runs_table.c.lease_token == token)
        with self._database.write(run_id) as connection:
            changed = connection.execute(
                update(runs_table).where(*guard).values(state=target.value, updated_at=now, **facts)
            )
            run = _need_run(connection, run_id)
            if changed.rowcount != 1:
                raise TransitionRefusedError(
                    f"run {run_id} is {run.state}, not {expected}: {event} does not apply"
                )
            code = facts.get("error_code")
            record_event(
                connection,
                run_id=run_id,
                at=now,
                kind=event,
                source=expected,
                target=target,
                data=None if code is None else {"error_code": code},
            )
            enter_transition(connection, run, event, now)
            if event is RunEvent.CANCELLED:
                cancel_batches(connection, run_id, now)
            return run

    @repeated
    def begin_watch(self, run_id: str, *, now: float, every_s: float) -> bool:
        """The provider's list may be walked for jobs held absent: nobody has in `every_s`."""
        table = runs_table.c
        due = or_(table.watched_at.is_(None), table.watched_at <= now - every_s)
        with self._database.write() as connection:
            changed = connection.execute(
                update(runs_table).where(table.id == run_id, due).values(watched_at=now)
            )
            return changed.rowcount == 1

    @repeated
    def delete_run(self, run_id: str) -> None:
        """Forgets a run with its batches, failures and events. Its output stays."""
        with self._database.write(run_id) as connection:
            connection.execute(delete(runs_table).where(runs_table.c.id == run_id))

    # Failures and events

    def failures(self, run_id: str) -> Iterator[Failure]:
        """Failed rows in row order, in constant memory."""
        after = -1
        while True:
            with self._database.read() as connection:
                rows = connection.execute(
                    select(failures_table)
                    .where(failures_table.c.run_id == run_id, failures_table.c.row > after)
                    .order_by(failures_table.c.row)
                    .limit(PAGE_ROWS)
                ).mappings()
                page = [Failure(**{k: v for k, v in row.items() if k != "run_id"}) for row in rows]
            yield from page
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].row

    def failures_among(self, run_id: str, rows: list[int]) -> dict[int, Failure]:
        """The failures of some rows, by row number."""
        found: dict[int, Failure] = {}
        with self._database.read() as connection:
            for start in range(0, len(rows), PAGE_ROWS):
                page = connection.execute(
                    select(failures_table).where(
                        failures_table.c.run_id == run_id,
                        failures_table.c.row.in_(rows[start : start + PAGE_ROWS]),
                    )
                ).mappings()
                for row in page:
                    values = {k: v for k, v in row.items() if k != "run_id"}
                    found[values["row"]] = Failure(**values)
        return found

    @repeated
    def add_event(
        self,
        run_id: str,
        kind: str,
        *,
        now: float,
        batch_id: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes a line into a run's history that is no change of state."""
        with self._database.write(run_id) as connection:
            record_event(connection, run_id=run_id, at=now, kind=kind, batch_id=batch_id, data=data)

    def events(self, run_id: str, *, after_id: int = 0, limit: int = 200) -> list[EventRecord]:
        """Lines of a run's history after `after_id`, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(events_table)
                .where(events_table.c.run_id == run_id, events_table.c.id > after_id)
                .order_by(events_table.c.id)
                .limit(limit)
            ).mappings()
            return [EventRecord(**row) for row in rows]


def _find_run(connection: Connection, run_id: str) -> RunRecord | None:
    row = connection.execute(select(runs_table).where(runs_table.c.id == run_id)).one_or_none()
    return None if row is None else run_record(row)


def _need_run(connection: Connection, run_id: str) -> RunRecord:
    found = _find_run(connection, run_id)
    if found is None:
        raise NotFoundError(f"run {run_id} is not in this journal any more")
    return found


def new_run_id(random_hex: Callable[[int], str] = secrets.token_hex) -> str:
    """An id that no other run has: 10 characters, easy to type."""
    return f"r{random_hex(5)[:9]}"
