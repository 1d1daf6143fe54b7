"""Steps by the batch: what workers that take turns at jobs ask, where threads ask by the run."""

import secrets
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, or_, select, update

from embatch.journal.conditions import SENT, under_way
from embatch.journal.database import Database
from embatch.journal.gates import Gate
from embatch.journal.leases import Claim
from embatch.journal.refusals import repeated
from embatch.journal.rows import batch_record
from embatch.journal.schema import UNDER_WAY_STATES, batches_table, runs_table
from embatch.types.state import BatchState, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A batch under way that no process has in hand."""

    batch_id: int
    next_at: float
    """When its next step is due, in seconds since 1970."""


class DueTable:
    """Looks at single batches, and leases them for their next step."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @repeated
    def claim(self, batch_id: int, *, owner: str, lease_s: float, now: float) -> Claim | None:
        """This batch, leased, if it is under way and due; None when it is not, or is in hand.

        Of a parked run nothing is sent. New batches are begun by `leases.claim_step` alone, whose
        gates look at the whole run.
        """
        table = batches_table.c
        with self._database.write() as connection:
            run = connection.execute(
                select(runs_table.c.id, runs_table.c.state).where(
                    runs_table.c.id
                    == select(table.run_id).where(table.id == batch_id).scalar_subquery()
                )
            ).one_or_none()
            if run is None or (states := _moving(run.state)) is None:
                return None
            gate = Gate.of(connection, run.id)
            moves: ColumnElement[bool] = table.state.in_(states)
            if gate.audit_rows is not None and run.state != RunState.PARKED:
                moves = or_(moves, gate.audited_too_little())
            token = secrets.token_hex(8)
            lease_now = self._database.lease_now(connection)
            row = connection.execute(
                update(batches_table)
                .where(table.id == batch_id, table.next_at <= now, _is_free(lease_now), moves)
                .values(lease_owner=owner, lease_token=token, lease_expires_at=lease_now + lease_s)
                .returning(*table)
            ).one_or_none()
            return None if row is None else Claim(batch=batch_record(row), token=token)

    def free(self, run_id: str, *, by: float, limit: int) -> list[Due]:
        """Batches under way that nobody has in hand and that are due `by` then, soonest first."""
        table = batches_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(table.id, table.next_at)
                .where(
                    *(table.run_id == run_id, under_way(), table.next_at <= by),
                    _is_free(self._database.lease_now(connection)),
                )
                .order_by(table.next_at, table.number)
                .limit(limit)
            ).all()
        return [Due(batch_id=row.id, next_at=row.next_at) for row in rows]

    def still_free(self, batch_id: int) -> Due | None:
        """The batch, if it is under way and nobody has it in hand; None otherwise."""
        table = batches_table.c
        with self._database.read() as connection:
            row = connection.execute(
                select(table.id, table.next_at).where(
                    *(table.id == batch_id, under_way()),
                    _is_free(self._database.lease_now(connection)),
                )
            ).one_or_none()
        return None if row is None else Due(batch_id=row.id, next_at=row.next_at)

    def next_new(self, run_id: str, *, after: float) -> float | None:
        """When the next new batch of the run may be begun that waits for a time; None for none."""
        table = batches_table.c
        with self._database.read() as connection:
            moment: float | None = connection.execute(
                select(func.min(table.next_at)).where(
                    *(table.run_id == run_id, table.state == BatchState.PLANNED.value),
                    *(table.next_at > after, _waits_for_no_person()),
                )
            ).scalar()
        return moment

    def is_planned(self, run_id: str) -> bool:
        """Some process has the planning or the finish of the run in hand."""
        table = runs_table.c
        with self._database.read() as connection:
            now = self._database.lease_now(connection)
            held = select(table.id).where(
                *(table.id == run_id, table.lease_token.is_not(None)), table.lease_expires_at >= now
            )
            return connection.execute(held).first() is not None


def _moving(state: str) -> tuple[str, ...] | None:
    """The states in which batches of a run in `state` take steps; None when none does."""
    if state == RunState.PARKED:
        return SENT
    return UNDER_WAY_STATES if state in (RunState.PLANNING, RunState.RUNNING) else None


def _is_free(lease_now: float) -> ColumnElement[bool]:
    table = batches_table.c
    unheld = or_(table.lease_token.is_(None), table.lease_expires_at < lease_now)
    return and_(unheld, _waits_for_no_person())


def _waits_for_no_person() -> ColumnElement[bool]:
    reason = batches_table.c.blocked_reason
    return or_(reason.is_(None), reason != "person")
