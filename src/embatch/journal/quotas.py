"""What is believed of each quota: one row a scope, changed by one process at a time.

What a belief says is the caller's; here it is a JSON object that no two processes can change
from the same reading.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Update, and_, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.journal.database import Database
from embatch.journal.refusals import repeated
from embatch.journal.rows import sooner
from embatch.journal.schema import batches_table, jobs_table, quotas_table, runs_table
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunState

COUNTS_S: Final = 96 * 3600.0
"""No service lets a job wait and run for longer than this, in seconds: what was asked for before
that counts no more, whoever has lost sight of it. Vertex AI: 72 hours in the queue, then a day."""
_ENDED_RUNS: Final = tuple(state.value for state in FINAL_RUN_STATES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """What counts against one quota at this moment, as far as the journal knows."""

    tokens: int = 0
    """Estimated, of all jobs that count."""
    jobs: int = 0
    cancelled_tokens: int = 0
    """The part of `tokens` whose jobs were stopped, and may count no more."""
    cancelled_jobs: int = 0
    creating_tokens: int = 0
    """The part of `tokens` whose jobs may not exist: their creation is under way or in doubt."""
    creating: frozenset[str] = field(default_factory=frozenset)
    """Labels of these."""
    live_jobs: int = 0
    """Jobs that exist or may, of runs that have not ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What became of a belief."""

    belief: Mapping[str, Any]
    cancelled_are_free: bool = False
    """The cancelled jobs of the scope are proven not to count any more."""


Decide = Callable[[Mapping[str, Any], Occupancy], Ruling]
"""From what is believed (empty at first) and what is in flight; raising leaves all as it was."""


class QuotaTable:
    """Beliefs by scope, shared by all runs, threads and processes of a journal."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def believed(self, scope: str) -> Mapping[str, Any]:
        """The belief as it stands; empty when nothing was ever sent."""
        with self._database.read() as connection:
            return _believed(connection, scope)

    def occupancy(self, scope: str, *, now: float) -> Occupancy:
        """What is in flight."""
        with self._database.read() as connection:
            return _occupancy(connection, scope, now)

    def changing(self, scope: str, decide: Decide, *, now: float) -> Callable[[Connection], None]:
        """What `change` does, in the transaction of a change of state (`also=`)."""
        return lambda connection: _change(connection, scope, decide, now)

    @repeated
    def change(self, scope: str, decide: Decide, *, now: float) -> None:
        """Changes a belief. Nobody else can between the reading and the writing."""
        with self._database.write() as connection:
            _change(connection, scope, decide, now)

    def scopes_of(self, run_id: str) -> list[str]:
        """The quotas that jobs of a run have counted against, the latest first."""
        with self._database.read() as connection:
            return list(
                connection.execute(
                    select(jobs_table.c.scope)
                    .where(jobs_table.c.run_id == run_id)
                    .group_by(jobs_table.c.scope)
                    .order_by(func.max(jobs_table.c.intended_at).desc())
                ).scalars()
            )

    def waits(self, run_id: str) -> bool:
        """Some batch of the run is still to be sent, and none of those is in anyone's hand."""
        table = batches_table.c
        unsent = [BatchState.PLANNED.value, BatchState.UPLOADING.value, BatchState.UPLOADED.value]
        mine = and_(table.run_id == run_id, table.kind == "embed")
        in_hand = and_(mine, table.state.in_(unsent), table.lease_token.is_not(None))
        # In the order of an index: else PostgreSQL may read past all batches that are sent.
        first = select(table.id).where(mine).order_by(table.row_min).limit(1)
        with self._database.read() as connection:
            if connection.execute(select(table.id).where(in_hand).limit(1)).first() is not None:
                return False
            return any(
                connection.execute(first.where(table.state == state)).first() is not None
                for state in unsent
            )

    @repeated
    def look_sooner(self, run_id: str, *, by: float) -> None:
        """Has the jobs of a run looked at no later than `by`: another waits for one to end."""
        table = batches_table.c
        with self._database.write() as connection:
            running = and_(
                table.run_id == run_id,
                table.state == BatchState.SUBMITTED.value,
                table.next_at > by,
                table.blocked_reason.is_(None),
            )
            connection.execute(sooner(running, by))

    @repeated
    def wake(self, run_id: str, *, now: float) -> None:
        """Lets the batches of a run that wait for quota try at once."""
        with self._database.write() as connection:
            connection.execute(_waking(batches_table.c.run_id == run_id, now))


def wake_waiting(connection: Connection, scope: str, now: float) -> None:
    """Lets what waits for quota in a scope try again, now that a job of it has ended."""
    table, jobs, runs = batches_table.c, jobs_table.c, runs_table.c
    waiting = connection.execute(
        select(table.run_id).where(_waits_for_quota(now)).distinct()
    ).scalars()
    # Run by run: in one query the database may add up all jobs that ever were.
    for run_id in waiting.all():
        of_scope = select(jobs.label).where(jobs.run_id == run_id, jobs.scope == scope).limit(1)
        going = select(runs.id).where(
            runs.id == run_id,
            runs.state.in_([RunState.PLANNING.value, RunState.RUNNING.value]),
        )
        if connection.execute(going).first() and connection.execute(of_scope).first():
            connection.execute(_waking(table.run_id == run_id, now))


def _waking(where: ColumnElement[bool], now: float) -> Update:
    return sooner(and_(_waits_for_quota(now), where), now)


def _waits_for_quota(now: float) -> ColumnElement[bool]:
    table = batches_table.c
    return and_(
        table.blocked_reason == "quota",
        table.state == BatchState.UPLOADED.value,
        table.next_at > now,
    )


def _believed(connection: Connection, scope: str, *, lock: bool = False) -> Mapping[str, Any]:
    query = select(quotas_table.c.belief).where(quotas_table.c.scope == scope)
    found = connection.execute(query.with_for_update() if lock else query).scalar()
    return found or {}


def _change(connection: Connection, scope: str, decide: Decide, now: float) -> None:
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    entry = make(quotas_table).values(scope=scope, belief={}, updated_at=now)
    connection.execute(entry.on_conflict_do_nothing(index_elements=["scope"]))
    believed = _believed(connection, scope, lock=True)
    ruling = decide(believed, _occupancy(connection, scope, now))
    if ruling.cancelled_are_free:
        # One that another transaction is changing is seen by the next ruling.
        cancelled = (
            select(jobs_table.c.label)
            .where(
                jobs_table.c.scope == scope,
                jobs_table.c.state == "cancelled",
                jobs_table.c.occupies,
            )
            .with_for_update(skip_locked=True)
        )
        connection.execute(
            update(jobs_table).where(jobs_table.c.label.in_(cancelled)).values(occupies=False)
        )
    if ruling.belief != believed:
        connection.execute(
            update(quotas_table)
            .where(quotas_table.c.scope == scope)
            .values(belief=dict(ruling.belief), updated_at=now)
        )


def _occupancy(connection: Connection, scope: str, now: float) -> Occupancy:
    table = jobs_table.c
    counting = and_(table.scope == scope, table.occupies, table.intended_at > now - COUNTS_S)
    sums = connection.execute(
        select(table.state, func.coalesce(func.sum(table.tokens), 0), func.count())
        .where(counting)
        .group_by(table.state)
    ).all()
    tokens = {str(state): int(total) for state, total, _ in sums}
    jobs = {str(state): int(count) for state, _, count in sums}
    creating = connection.execute(
        select(table.label).where(counting, table.state == "submitting")
    ).scalars()
    live = connection.execute(
        select(func.count())
        .select_from(jobs_table.outerjoin(runs_table, table.run_id == runs_table.c.id))
        .where(
            counting,
            or_(table.state == "submitting", table.state == "running"),
            runs_table.c.state.not_in(_ENDED_RUNS),
        )
    ).scalar_one()
    return Occupancy(
        tokens=sum(tokens.values()),
        jobs=sum(jobs.values()),
        cancelled_tokens=tokens.get("cancelled", 0),
        cancelled_jobs=jobs.get("cancelled", 0),
        creating_tokens=tokens.get("submitting", 0),
        creating=frozenset(creating),
        live_jobs=int(live),
    )
