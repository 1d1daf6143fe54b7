"""Figures over the whole journal, in a few queries that stay cheap with many batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, or_, select, text, true

from embatch.journal.database import Database
from embatch.journal.schema import (
    MARKED_EVENTS,
    batches_table,
    events_table,
    failures_table,
    ledger_table,
    notifications_table,
    quotas_table,
    runs_table,
    spending_table,
)
from embatch.types.state import BatchState, RunState

LATELY_S: Final = 86_400.0
"""For so long a notification that was given up is told of, in seconds."""
KEPT_S: Final = 300.0
"""So long at most the sums of a run that does not move are taken again, in seconds."""
MOST_NAMED: Final = 500
"""When more runs than that are summed anew, all are."""
_UNMARKED: Final = (RunState.PLANNING.value,)
"""States in which batches come without an event."""
NO_RETRY = ("stuck", "low_success_rate", "resumed")
"""Marked events that send nothing again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSums:
    """The batches of one kind of a run that stand in one state."""

    run_id: str
    state: BatchState
    kind: str
    batches: int
    items: int
    planned: int
    """Items of those that are no other batch's child."""
    written: int
    """Rows in their parts."""
    oldest_at: float | None
    """When the first of them was submitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSums:
    """What a run has bought by batches, or otherwise, in dollars; 0.0 where no price is known."""

    run_id: str
    kind: str
    rows: int
    tokens: int
    spent_usd: float
    reserved_usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSums:
    """A run, by what its figures are grouped."""

    id: str
    state: str
    space: Mapping[str, Any]
    rows: int | None
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The journal in figures, at one moment."""

    runs: tuple[RunSums, ...]
    """Newest first."""
    batches: tuple[BatchSums, ...]
    ledger: tuple[LedgerSums, ...]
    beliefs: Mapping[str, Mapping[str, Any]]
    """What is believed of each quota, by its scope, as the journal keeps it."""
    retries: Mapping[str, int]
    """Events that had something sent again, by kind."""
    notifications_waiting: int
    notifications_given_up: int
    """Within the last day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What of a run stands still at the provider. Times are seconds since 1970."""

    number: int | None
    """The batch that has not moved for the longest time; None when none is out."""
    since: float | None
    """When it last moved."""
    batches: int
    """So many are out."""
    still: int
    """So many of them have not moved since the moment asked about."""
    last_event_at: float | None
    """When anything of the run last changed."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """What was summed over one run."""

    mark: tuple[Any, ...]
    """The run as it was then: state, last change and event, dollars."""
    until: float
    failed: int
    batches: tuple[BatchSums, ...]
    ledger: tuple[LedgerSums, ...]


class MeasureTable:
    """Reads figures of the journal. Sums over runs that do not move are kept. Safe in threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, _Kept] = {}

    def read(self, *, now: float) -> Measures:
        """All figures, as they stood at one moment."""
        outbox, event = notifications_table.c, events_table.c
        with self._database.read() as connection:
            runs = connection.execute(_RUNS).all()
            kept = self._sums(connection, runs, now)
            beliefs = connection.execute(select(quotas_table.c.scope, quotas_table.c.belief)).all()
            retries = connection.execute(
                select(event.kind, func.count()).where(text(MARKED_EVENTS)).group_by(event.kind)
            ).all()
            waiting, given_up = connection.execute(
                select(
                    func.count().filter(outbox.given_up_at.is_(None)),
                    func.count().filter(outbox.given_up_at > now - LATELY_S),
                ).where(outbox.delivered_at.is_(None))
            ).one()
        return Measures(
            runs=tuple(
                RunSums(
                    id=run.id,
                    state=run.state,
                    space=run.space,
                    rows=run.rows,
                    failed=kept[run.id].failed,
                )
                for run in runs
            ),
            batches=tuple(one for run in runs for one in kept[run.id].batches),
            ledger=tuple(one for run in runs for one in kept[run.id].ledger),
            beliefs={str(scope): belief for scope, belief in beliefs},
            retries={str(kind): int(count) for kind, count in retries if kind not in NO_RETRY},
            notifications_waiting=int(waiting),
            notifications_given_up=int(given_up),
        )

    def _sums(self, connection: Connection, runs: Sequence[Any], now: float) -> dict[str, _Kept]:
        """The sums of each run: those of runs that have not moved since are taken again."""
        before, kept, moved = self._kept, dict[str, _Kept](), dict[str, tuple[Any, ...]]()
        for run in runs:
            mark = (run.state, run.updated_at, run.twins, run.spent, run.held, run.newest)
            known = before.get(run.id)
            if known is None or known.mark != mark or now >= known.until or run.state in _UNMARKED:
                moved[run.id] = mark
            else:
                kept[run.id] = known
        failed, batches, ledger = _sum_runs(connection, list(moved))
        for run_id, mark in moved.items():
            kept[run_id] = _Kept(
                mark=mark,
                until=now + KEPT_S,
                failed=failed.get(run_id, 0),
                batches=tuple(batches.get(run_id, ())),
                ledger=tuple(ledger.get(run_id, ())),
            )
        self._kept = kept
        return kept

    def standing(self, run_id: str, *, before: float) -> Standing:
        """What of a run has stood still at the provider since `before`."""
        table = batches_table.c
        moved = func.coalesce(table.moved_at, table.submitted_at)
        out = (
            table.run_id == run_id,
            table.state == BatchState.SUBMITTED.value,
            or_(table.blocked_reason.is_(None), table.blocked_reason != "person"),
            table.submitted_at.is_not(None),
        )
        with self._database.read() as connection:
            oldest = connection.execute(
                select(table.number, moved).where(*out).order_by(moved).limit(1)
            ).one_or_none()
            count, still = connection.execute(
                select(func.count(), func.count().filter(moved <= before)).where(*out)
            ).one()
            last: Any = connection.execute(
                select(events_table.c.at)
                .where(events_table.c.run_id == run_id)
                .order_by(events_table.c.id.desc())
                .limit(1)
            ).scalar()
        return Standing(
            number=None if oldest is None else int(oldest[0]),
            since=None if oldest is None else float(oldest[1]),
            batches=int(count),
            still=int(still),
            last_event_at=None if last is None else float(last),
        )


_RUNS: Final = (
    select(
        *(runs_table.c[name] for name in ("id", "state", "space", "rows", "updated_at", "twins")),
        *(spending_table.c[name] for name in ("spent", "held")),
        select(events_table.c.id)
        .where(events_table.c.run_id == runs_table.c.id)
        .order_by(events_table.c.id.desc())
        .limit(1)
        .scalar_subquery()
        .label("newest"),
    )
    .select_from(runs_table.outerjoin(spending_table, spending_table.c.run_id == runs_table.c.id))
    .order_by(runs_table.c.created_at.desc(), runs_table.c.id)
)


def _sum_runs(
    connection: Connection, run_ids: Sequence[str]
) -> tuple[dict[str, int], dict[str, list[BatchSums]], dict[str, list[LedgerSums]]]:
    """Failed rows, batches and purchases of some runs, by run."""
    every = len(run_ids) > MOST_NAMED

    def mine(column: Any) -> Any:
        return true() if every else column.in_(run_ids)

    failure = failures_table.c
    failed = connection.execute(
        select(failure.run_id, func.count()).where(mine(failure.run_id)).group_by(failure.run_id)
    ).all()
    return (
        {run_id: int(count) for run_id, count in failed},
        _sum_batches(connection, mine(batches_table.c.run_id)),
        _sum_purchases(connection, mine(ledger_table.c.run_id)),
    )


def _sum_batches(connection: Connection, mine: Any) -> dict[str, list[BatchSums]]:
    batch = batches_table.c
    rows = connection.execute(
        select(
            batch.run_id,
            batch.state,
            batch.kind,
            func.count(),
            func.sum(batch["items"]),
            func.coalesce(func.sum(batch["items"]).filter(batch.parent_id.is_(None)), 0),
            func.coalesce(func.sum(batch.part_rows), 0),
            func.min(batch.submitted_at),
        )
        .where(mine)
        .group_by(batch.run_id, batch.state, batch.kind)
    ).all()
    found: dict[str, list[BatchSums]] = {}
    for run_id, state, kind, count, items, planned, written, oldest in rows:
        found.setdefault(run_id, []).append(
            BatchSums(
                run_id=run_id,
                state=BatchState(state),
                kind=kind,
                batches=int(count),
                items=int(items),
                planned=int(planned),
                written=int(written),
                oldest_at=oldest,
            )
        )
    return found


def _sum_purchases(connection: Connection, mine: Any) -> dict[str, list[LedgerSums]]:
    ledger = ledger_table.c
    settled, open_ = ledger.state == "settled", ledger.state == "reserved"
    lines = connection.execute(
        select(
            ledger.run_id,
            ledger.kind,
            func.coalesce(func.sum(ledger["rows"]).filter(settled), 0),
            func.coalesce(func.sum(ledger.tokens).filter(settled), 0),
            func.coalesce(func.sum(ledger.usd).filter(settled), 0.0),
            func.coalesce(func.sum(ledger.usd_bound).filter(open_), 0.0),
        )
        .where(mine, ledger.state != "void")
        .group_by(ledger.run_id, ledger.kind)
    ).all()
    found: dict[str, list[LedgerSums]] = {}
    for run_id, kind, rows, tokens, spent, reserved in lines:
        found.setdefault(run_id, []).append(
            LedgerSums(
                run_id=run_id,
                kind=kind,
                rows=int(rows),
                tokens=int(tokens),
                spent_usd=float(spent),
                reserved_usd=float(reserved),
            )
        )
    return found
