"""Conditions on batches, each worded so that an index answers it however many batches there are.

The partial indexes of schema.py hold the few batches that are under way, blocked or leased. A
database takes one for a query that states its condition word for word.
"""

from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    case,
    exists,
    func,
    literal_column,
    or_,
    select,
)
from sqlalchemy.sql.selectable import ScalarSelect

from embatch.journal.schema import UNDER_WAY_STATES, batches_table, runs_table
from embatch.types.state import BatchState, RunState

NO_ROW: Final = 2**62
PRESSING_S: Final = 12 * 3600.0
"""Results that the provider keeps for no longer than this, in seconds, are read first."""
UNSENT: Final = (BatchState.PLANNED.value, BatchState.UPLOADING.value, BatchState.UPLOADED.value)
SENT: Final = tuple(state for state in UNDER_WAY_STATES if state not in UNSENT)
_OCCUPYING: Final = (
    BatchState.UPLOADING.value,
    BatchState.UPLOADED.value,
    BatchState.SUBMITTING.value,
    BatchState.SUBMITTED.value,
)
_AHEAD: Final = (BatchState.UPLOADING.value, BatchState.UPLOADED.value)


def under_way() -> ColumnElement[bool]:
    """It is begun, and not at its end."""
    return batches_table.c.state.in_([literal_column(f"'{state}'") for state in UNDER_WAY_STATES])


def planned() -> ColumnElement[bool]:
    """It is not begun."""
    return batches_table.c.state == literal_column(f"'{BatchState.PLANNED.value}'")


def free(table: Table, lease_now: float) -> ColumnElement[bool]:
    """Nobody has it in hand, a batch or a run."""
    return or_(table.c.lease_token.is_(None), table.c.lease_expires_at < lease_now)


def held(table: Table, lease_now: float) -> ColumnElement[bool]:
    """A process has it in hand, a batch or a run."""
    return and_(table.c.lease_token.is_not(None), table.c.lease_expires_at >= lease_now)


def moves() -> ColumnElement[bool]:
    """It waits for no person."""
    reason = batches_table.c.blocked_reason
    return or_(reason.is_(None), reason != "person")


def soonest_lost(now: float) -> tuple[ColumnElement[Any], ...]:
    """Batches whose results the provider keeps for little longer, the most pressing first."""
    until = batches_table.c.results_until
    pressing = and_(until.is_not(None), until < now + PRESSING_S)
    return (case((pressing, 0), else_=1), case((pressing, until), else_=0.0))


def short_of_money(run_id: str, now: float) -> ColumnElement[bool]:
    """A new batch of the run waits for money: others would find none either."""
    waiting = batches_table.alias("waiting").c
    return (
        exists()
        .where(
            waiting.run_id == run_id,
            waiting.blocked_reason == "budget",
            waiting.state == BatchState.PLANNED.value,
            waiting.next_at > now,
        )
        .correlate(None)
    )


def is_worked(run_id: str, *, parked: bool) -> ColumnElement[bool]:
    """The run is in a state in which its batches move, or some of them."""
    states = [RunState.PARKED] if parked else [RunState.PLANNING, RunState.RUNNING]
    return (
        select(runs_table.c.id)
        .where(runs_table.c.id == run_id, runs_table.c.state.in_([state.value for state in states]))
        .exists()
    )


def has_room(
    connection: Connection,
    run_id: str,
    max_in_flight: int,
    max_ahead: int | None,
    *,
    lease_now: float,
) -> bool:
    """Another batch may begin. One that a process has in hand to begin it has begun."""
    table = batches_table.c
    occupying, ahead = connection.execute(
        select(func.count(), func.count().filter(table.state.in_(_AHEAD))).where(
            table.run_id == run_id, under_way(), table.state.in_(_OCCUPYING), moves()
        )
    ).one()
    begun = connection.execute(
        select(func.count()).where(
            table.run_id == run_id,
            held(batches_table, lease_now),
            table.state == BatchState.PLANNED.value,
            table.kind == "embed",
        )
    ).scalar_one()
    return occupying + begun < max_in_flight and (max_ahead is None or ahead + begun < max_ahead)


def frontier(run_id: str) -> ScalarSelect[int | None]:
    """The lowest row that an unfinished batch may still bring."""
    table = batches_table.c
    mine = and_(table.run_id == run_id, table.kind == "embed")
    begun = select(func.min(table.row_min).label("row_min")).where(mine, under_way())
    new = select(func.min(table.row_min).label("row_min")).where(mine, planned())
    lowest = begun.union_all(new).subquery()
    return select(func.min(lowest.c.row_min)).scalar_subquery()
