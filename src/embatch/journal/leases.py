"""Leases: who works on a batch or plans a run, until when, and what happens when they die."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    case,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.sql.selectable import ScalarSelect

from embatch.errors import LeaseLostError
from embatch.journal.database import Database
from embatch.journal.gates import Gate
from embatch.journal.outbox import enter_person
from embatch.journal.records import BatchRecord
from embatch.journal.refusals import repeated
from embatch.journal.rows import batch_record
from embatch.journal.schema import batches_table, events_table, runs_table
from embatch.types.state import FINAL_BATCH_STATES, BatchState, RunState

_NO_ROW = 2**62
PRESSING_S = 12 * 3600.0
"""Results that the provider keeps for no longer than this, in seconds, are read first."""
RECENT_S = 60.0
"""A run whose due step is no older than this, in seconds, counts as worked on."""
_ACTIVE = tuple(
    state.value
    for state in BatchState
    if state not in FINAL_BATCH_STATES and state is not BatchState.PLANNED
)
_UNFINISHED = (*_ACTIVE, BatchState.PLANNED.value)
_UNSENT = (BatchState.PLANNED.value, BatchState.UPLOADING.value, BatchState.UPLOADED.value)
_SENT = tuple(state for state in _ACTIVE if state not in _UNSENT)
_OCCUPYING = (
    BatchState.UPLOADING.value,
    BatchState.UPLOADED.value,
    BatchState.SUBMITTING.value,
    BatchState.SUBMITTED.value,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A batch, and the lease under which it may be changed."""

    batch: BatchRecord
    token: str


class LeaseTable:
    """Hands out leases on batches and on the planning of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @repeated
    def claim_step(
        self,
        run_id: str,
        *,
        owner: str,
        lease_s: float,
        now: float,
        max_in_flight: int,
        max_ahead: int | None = None,
        parked: bool = False,
        new_only: bool = False,
    ) -> Claim | None:
        """The next batch of a run that is due for a step, leased; None when none is.

        Batches under way come before new ones, those first whose results the provider lets go of
        soon; with `new_only` they are left to others. New ones only while fewer than `max_in_flight`
        occupy the provider, and of these fewer than `max_ahead` wait for their create; copies only
        when no unfinished batch may still own their texts. Of a `parked` run nothing is sent.
        """
        with self._database.write(run_id) as connection:
            lease_now = self._database.lease_now(connection)
            free = _free(batches_table, lease_now)
            table = batches_table.c
            mine = and_(
                *(table.run_id == run_id, _is_worked(run_id, parked=parked), free),
                *(table.next_at <= now, _moves()),
            )
            planned = table.state == BatchState.PLANNED.value
            gate = Gate.of(connection, run_id)
            found = None
            if not new_only:
                found = connection.execute(
                    select(table.id)
                    .where(mine, table.state.in_(_SENT if parked else _ACTIVE))
                    .order_by(*_soonest_lost(now), table.next_at, table.number)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                ).scalar()
            if found is None and gate.audit_rows is not None:
                found = connection.execute(
                    select(table.id)
                    .where(mine, gate.audited_too_little())
                    .order_by(table.number)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                ).scalar()
            begun = and_(planned, table.kind == "embed", gate.may_begin())
            room = not parked and _has_room(connection, run_id, max_in_flight, max_ahead)
            if found is None and room:
                found = connection.execute(
                    select(table.id)
                    .where(mine, begun, ~_short_of_money(run_id, now))
                    .order_by(table.row_min, table.number)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                ).scalar()
            if found is None:
                frontier = connection.execute(select(_frontier(run_id))).scalar()
                ripe = table.owner_max < frontier if frontier is not None else planned
                found = connection.execute(
                    select(table.id)
                    .where(
                        mine,
                        planned,
                        or_(table.kind == "reused", and_(table.kind == "copies", ripe)),
                    )
                    .order_by(table.row_min, table.number)
                    .limit(1)
                    .with_for_update(skip_locked=True)
                ).scalar()
            if found is None:
                return None
            token = secrets.token_hex(8)
            row = connection.execute(
                update(batches_table)
                .where(table.id == found, free)
                .values(lease_owner=owner, lease_token=token, lease_expires_at=lease_now + lease_s)
                .returning(*batches_table.c)
            ).one_or_none()
            return None if row is None else Claim(batch=batch_record(row), token=token)

    @repeated
    def claim_batch(self, batch_id: int, *, owner: str, lease_s: float) -> Claim | None:
        """This very batch, leased whatever it waits for; None while a process works on it."""
        with self._database.write() as connection:
            token = secrets.token_hex(8)
            lease_now = self._database.lease_now(connection)
            row = connection.execute(
                update(batches_table)
                .where(batches_table.c.id == batch_id, _free(batches_table, lease_now))
                .values(lease_owner=owner, lease_token=token, lease_expires_at=lease_now + lease_s)
                .returning(*batches_table.c)
            ).one_or_none()
            return None if row is None else Claim(batch=batch_record(row), token=token)

    @repeated
    def release(
        self,
        batch_id: int,
        token: str,
        *,
        next_at: float,
        blocked_reason: str | None = None,
        blocked_detail: str | None = None,
    ) -> None:
        """Gives a batch back, due again at `next_at`. A lease lost meanwhile is left alone."""
        with self._database.write() as connection:
            if blocked_reason == "person":
                run_id = select(batches_table.c.run_id).where(batches_table.c.id == batch_id)
                self._database.take_turn(connection, str(connection.execute(run_id).scalar()))
            changed = connection.execute(
                update(batches_table)
                .where(batches_table.c.id == batch_id, batches_table.c.lease_token == token)
                .values(
                    lease_owner=None,
                    lease_token=None,
                    lease_expires_at=None,
                    next_at=next_at,
                    blocked_reason=blocked_reason,
                    blocked_detail=blocked_detail,
                )
            )
            if changed.rowcount == 1 and blocked_reason == "person":
                enter_person(connection, batch_id, blocked_detail, next_at)

    @repeated
    def claim_planning(self, run_id: str, *, owner: str, lease_s: float) -> str | None:
        """Leases the planning of a run; None while another process plans it."""
        with self._database.write() as connection:
            lease_now = self._database.lease_now(connection)
            token = secrets.token_hex(8)
            changed = connection.execute(
                update(runs_table)
                .where(runs_table.c.id == run_id, _free(runs_table, lease_now))
                .values(lease_owner=owner, lease_token=token, lease_expires_at=lease_now + lease_s)
            )
            return token if changed.rowcount == 1 else None

    @repeated
    def release_planning(self, run_id: str, token: str) -> None:
        """Gives the planning of a run back. A lease lost meanwhile is left alone."""
        with self._database.write() as connection:
            connection.execute(
                update(runs_table)
                .where(runs_table.c.id == run_id, runs_table.c.lease_token == token)
                .values(lease_owner=None, lease_token=None, lease_expires_at=None)
            )

    def renew(self, tokens: Iterable[str], *, lease_s: float) -> None:
        """Holds leases for another `lease_s` seconds. Raises LeaseLostError if one is gone."""
        wanted = list(tokens)
        if wanted:
            self._renew(wanted, lease_s)

    @repeated
    def _renew(self, wanted: Sequence[str], lease_s: float) -> None:
        with self._database.write() as connection:
            until = self._database.lease_now(connection) + lease_s
            held = 0
            for table in (batches_table, runs_table):
                held += connection.execute(
                    update(table)
                    .where(table.c.lease_token.in_(wanted))
                    .values(lease_expires_at=until)
                ).rowcount
        if held != len(wanted):
            raise LeaseLostError("a lease was taken over by another process: its step is void")

    @repeated
    def release_dead(self, is_known_dead: Callable[[str], bool]) -> int:
        """Frees at once what processes held that have ended. Gives the number of leases freed."""
        freed = 0
        with self._database.write() as connection:
            for table in (batches_table, runs_table):
                held = table.c.lease_token.is_not(None)
                owners = connection.execute(
                    select(table.c.lease_owner).where(held).distinct()
                ).scalars()
                dead = [owner for owner in owners if is_known_dead(owner)]
                if dead:
                    freed += connection.execute(
                        update(table)
                        .where(held, table.c.lease_owner.in_(dead))
                        .values(lease_owner=None, lease_token=None, lease_expires_at=None)
                    ).rowcount
        return freed

    def has_steps(self, run_id: str) -> bool:
        """Some batch of the run still needs a step, now or later."""
        table = batches_table.c
        with self._database.read() as connection:
            unfinished = Gate.of(connection, run_id).unfinished()
            left = connection.execute(select(table.id).where(unfinished).limit(1)).first()
        return left is not None

    def is_probing(self, run_id: str) -> bool:
        """The run's probe is not decided: nothing else may be begun."""
        with self._database.read() as connection:
            return Gate.of(connection, run_id).probe_row is not None

    def waits_for_person(self, run_id: str) -> bool:
        """Batches of the run wait for a person, and no other can move before they do."""
        table = batches_table.c
        with self._database.read() as connection:
            frontier = connection.execute(select(_frontier(run_id))).scalar()
            gate = Gate.of(connection, run_id)
            waiting = and_(
                table.kind == "copies",
                table.state == BatchState.PLANNED.value,
                table.owner_max >= (_NO_ROW if frontier is None else frontier),
            )
            held_back = or_(waiting, gate.held_back())
            blocked, moving = connection.execute(
                select(
                    func.count().filter(~_moves()),
                    func.count().filter(_moves(), ~held_back),
                ).where(gate.unfinished())
            ).one()
        return bool(blocked) and not moving

    def next_due(self, run_id: str, *, parked: bool = False) -> float | None:
        """When the next step that nobody has in hand is due; None when there is none.

        Batches that wait to be begun count only while none is under way: the end of one is what
        makes room for them. Of a `parked` run nothing is sent.
        """
        table = batches_table.c
        with self._database.read() as connection:
            gate = Gate.of(connection, run_id)
            free = _free(batches_table, self._database.lease_now(connection))
            unsent = _UNSENT if parked else (BatchState.PLANNED.value,)
            under_way = connection.execute(
                select(func.count(), func.min(table.next_at).filter(free)).where(
                    gate.unfinished(), table.state.not_in(unsent), _moves()
                )
            ).one()
            if under_way[0] or parked:
                due: float | None = under_way[1]
                return due
            return connection.execute(
                select(func.min(table.next_at)).where(
                    *(table.run_id == run_id, table.state == BatchState.PLANNED.value),
                    *(_moves(), ~gate.held_back()),
                )
            ).scalar()

    def is_worked(self, run_id: str, *, now: float) -> bool:
        """Some process holds a lease of the run, or takes its steps when they are due."""
        table = batches_table.c
        with self._database.read() as connection:
            lease_now = self._database.lease_now(connection)
            held = connection.execute(
                select(table.id)
                .where(table.run_id == run_id, table.lease_expires_at >= lease_now)
                .limit(1)
            ).first()
            planned = connection.execute(
                select(runs_table.c.id).where(
                    runs_table.c.id == run_id, runs_table.c.lease_expires_at >= lease_now
                )
            ).first()
            due = connection.execute(
                select(func.min(table.next_at)).where(
                    table.run_id == run_id, table.state.in_(_ACTIVE)
                )
            ).scalar()
            latest = connection.execute(
                select(events_table.c.at)
                .where(events_table.c.run_id == run_id)
                .order_by(events_table.c.id.desc())
                .limit(1)
            ).scalar()
        # A batch under way is due again long before anything happens to it.
        moved = latest if due is None else due
        return held is not None or planned is not None or (moved or 0.0) > now - RECENT_S


def _free(table: Table, lease_now: float) -> ColumnElement[bool]:
    return or_(table.c.lease_token.is_(None), table.c.lease_expires_at < lease_now)


def _moves() -> ColumnElement[bool]:
    """It waits for no person."""
    reason = batches_table.c.blocked_reason
    return or_(reason.is_(None), reason != "person")


def _soonest_lost(now: float) -> tuple[ColumnElement[Any], ...]:
    """Batches whose results the provider keeps for little longer, the most pressing first."""
    until = batches_table.c.results_until
    pressing = and_(until.is_not(None), until < now + PRESSING_S)
    return (case((pressing, 0), else_=1), case((pressing, until), else_=0.0))


def _short_of_money(run_id: str, now: float) -> ColumnElement[bool]:
    """A new batch of the run waits for money: others would find none either."""
    waiting = batches_table.alias("waiting").c
    return (
        exists()
        .where(
            waiting.run_id == run_id,
            waiting.state == BatchState.PLANNED.value,
            waiting.next_at > now,
            waiting.blocked_reason == "budget",
        )
        .correlate(None)
    )


def _is_worked(run_id: str, *, parked: bool) -> ColumnElement[bool]:
    """The run is in a state in which its batches move, or some of them."""
    states = [RunState.PARKED] if parked else [RunState.PLANNING, RunState.RUNNING]
    return (
        select(runs_table.c.id)
        .where(runs_table.c.id == run_id, runs_table.c.state.in_([state.value for state in states]))
        .exists()
    )


def _has_room(
    connection: Connection, run_id: str, max_in_flight: int, max_ahead: int | None
) -> bool:
    """Another batch may begin."""
    table = batches_table.c
    waiting = table.state.in_((BatchState.UPLOADING.value, BatchState.UPLOADED.value))
    occupying, ahead = connection.execute(
        select(func.count(), func.count().filter(waiting)).where(
            table.run_id == run_id, table.state.in_(_OCCUPYING), _moves()
        )
    ).one()
    return int(occupying) < max_in_flight and (max_ahead is None or int(ahead) < max_ahead)


def _frontier(run_id: str) -> ScalarSelect[int | None]:
    """The lowest row that an unfinished batch may still bring; one index look-up a state."""
    table = batches_table.c
    lowest = [
        select(func.min(table.row_min).label("row_min")).where(
            table.run_id == run_id, table.kind == "embed", table.state == state
        )
        for state in _UNFINISHED
    ]
    union = lowest[0].union_all(*lowest[1:]).subquery()
    return select(func.min(union.c.row_min)).scalar_subquery()
