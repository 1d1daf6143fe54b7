"""Leases: who works on a batch or plans a run, until when, and what happens when they die."""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    false,
    func,
    literal_column,
    or_,
    select,
    update,
)

from embatch.errors import LeaseLostError
from embatch.journal.conditions import (
    NO_ROW,
    SENT,
    UNSENT,
    free,
    frontier,
    has_room,
    held,
    is_worked,
    moves,
    planned,
    short_of_money,
    soonest_lost,
    under_way,
)
from embatch.journal.database import Database
from embatch.journal.gates import Gate
from embatch.journal.outbox import enter_person
from embatch.journal.records import BatchRecord
from embatch.journal.refusals import repeated
from embatch.journal.rows import batch_record
from embatch.journal.schema import batches_table, events_table, runs_table

RECENT_S = 60.0
"""A run whose due step is no older than this, in seconds, counts as worked on."""


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
        soon; with `new_only` they are left to others. New ones only while fewer than
        `max_in_flight` occupy the provider, and of these fewer than `max_ahead` wait for their
        create; copies only when no unfinished batch may still own their texts. Of a `parked` run
        nothing is sent.
        """
        with self._database.write(run_id) as connection:
            lease_now = self._database.lease_now(connection)
            table, gate = batches_table.c, Gate.of(connection, run_id)
            unheld = free(batches_table, lease_now)
            mine = and_(
                *(table.run_id == run_id, is_worked(run_id, parked=parked), unheld),
                *(table.next_at <= now, moves()),
            )
            found = None
            if not new_only:
                begun = and_(mine, under_way(), *([table.state.in_(SENT)] if parked else []))
                order = (*soonest_lost(now), table.next_at, table.number)
                found = _first(connection, begun, *order)
            if found is None and gate.audit_rows is not None:
                found = _first(connection, and_(mine, gate.audited_too_little()), table.number)
            bounds = (max_in_flight, max_ahead)
            if (
                found is None
                and not parked
                and has_room(connection, run_id, *bounds, lease_now=lease_now)
            ):
                new = and_(table.kind == "embed", gate.may_begin(), ~short_of_money(run_id, now))
                found = _first(connection, and_(mine, planned(), new), *_IN_ROWS)
            if found is None:
                found = _first_copy(connection, run_id, mine)
            if found is None:
                return None
            token = secrets.token_hex(8)
            row = connection.execute(
                update(batches_table)
                .where(table.id == found, unheld)
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
                .where(batches_table.c.id == batch_id, free(batches_table, lease_now))
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
                enter_person(connection, batch_id, next_at)

    @repeated
    def claim_planning(self, run_id: str, *, owner: str, lease_s: float) -> str | None:
        """Leases the planning of a run; None while another process plans it."""
        with self._database.write() as connection:
            lease_now = self._database.lease_now(connection)
            token = secrets.token_hex(8)
            changed = connection.execute(
                update(runs_table)
                .where(runs_table.c.id == run_id, free(runs_table, lease_now))
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
        mine = batches_table.c.run_id == run_id
        with self._database.read() as connection:
            gate = Gate.of(connection, run_id)
            return (
                _is_any(connection, mine, under_way())
                or _is_any(connection, mine, planned(), by=batches_table.c.next_at)
                or (gate.audit_rows is not None and _is_any(connection, gate.audited_too_little()))
            )

    def is_probing(self, run_id: str) -> bool:
        """The run's probe is not decided: nothing else may be begun."""
        with self._database.read() as connection:
            return Gate.of(connection, run_id).probe_row is not None

    def waits_for_person(self, run_id: str) -> bool:
        """Batches of the run wait for a person, and no other can move before they do."""
        table = batches_table.c
        mine = table.run_id == run_id
        with self._database.read() as connection:
            gate = Gate.of(connection, run_id)
            doubtful = gate.audited_too_little() if gate.audit_rows is not None else false()
            blocked = and_(mine, table.blocked_reason == "person")
            if not _is_any(connection, blocked, or_(under_way(), planned(), doubtful)):
                return False
            if _is_any(connection, mine, under_way(), moves()):
                return False
            if gate.audit_rows is not None and _is_any(connection, doubtful, moves()):
                return False
            lowest = connection.execute(select(frontier(run_id))).scalar()
            waiting = and_(
                table.kind == "copies", table.owner_max >= (NO_ROW if lowest is None else lowest)
            )
            new = and_(mine, planned(), moves())
            return not _is_any(connection, new, ~or_(waiting, gate.held_back()))

    def next_due(self, run_id: str, *, parked: bool = False) -> float | None:
        """When the next step that nobody has in hand is due; None when there is none.

        Batches that wait to be begun count only while none is under way: the end of one is what
        makes room for them. Of a `parked` run nothing is sent.
        """
        table = batches_table.c
        mine = table.run_id == run_id
        with self._database.read() as connection:
            gate = Gate.of(connection, run_id)
            unheld = free(batches_table, self._database.lease_now(connection))
            counted = [and_(mine, under_way(), *([table.state.not_in(UNSENT)] if parked else []))]
            if gate.audit_rows is not None:
                counted.append(gate.audited_too_little())
            moments = []
            for begun in counted:
                count, due = connection.execute(
                    select(func.count(), func.min(table.next_at).filter(unheld)).where(
                        begun, moves()
                    )
                ).one()
                moments += [due] if count else []
            if moments or parked:
                return min((due for due in moments if due is not None), default=None)
            return connection.execute(
                select(func.min(table.next_at)).where(mine, planned(), moves(), ~gate.held_back())
            ).scalar()

    def is_worked(self, run_id: str, *, now: float) -> bool:
        """Some process holds a lease of the run, or takes its steps when they are due."""
        table = batches_table.c
        with self._database.read() as connection:
            lease_now = self._database.lease_now(connection)
            if _is_any(connection, table.run_id == run_id, held(batches_table, lease_now)):
                return True
            planner = select(runs_table.c.id).where(
                runs_table.c.id == run_id, held(runs_table, lease_now)
            )
            if connection.execute(planner).first() is not None:
                return True
            due = connection.execute(
                select(func.min(table.next_at)).where(table.run_id == run_id, under_way())
            ).scalar()
            latest = connection.execute(
                select(events_table.c.at)
                .where(events_table.c.run_id == run_id)
                .order_by(events_table.c.id.desc())
                .limit(1)
            ).scalar()
        # A batch under way is due again long before anything happens to it.
        moved = latest if due is None else due
        return (moved or 0.0) > now - RECENT_S


_IN_ROWS = (batches_table.c.row_min, batches_table.c.number)


def _first(
    connection: Connection, where: ColumnElement[bool], *order: ColumnElement[Any]
) -> int | None:
    """The first batch that no other transaction has in hand, for this one alone."""
    found: int | None = connection.execute(
        select(batches_table.c.id)
        .where(where)
        .order_by(*order)
        .limit(1)
        .with_for_update(skip_locked=True)
    ).scalar()
    return found


def _first_copy(connection: Connection, run_id: str, mine: ColumnElement[bool]) -> int | None:
    """The first new batch whose vectors are there already: reused, or copies of finished rows."""
    table = batches_table.c
    reused = _first(connection, and_(mine, planned(), table.kind == "reused"), *_IN_ROWS)
    if reused is not None:
        return reused
    copies = and_(mine, planned(), table.kind == literal_column("'copies'"))
    lowest = connection.execute(select(frontier(run_id))).scalar()
    ripe = copies if lowest is None else and_(copies, table.owner_max < lowest)
    return _first(connection, ripe, table.owner_max, table.number)


def _is_any(
    connection: Connection, *where: ColumnElement[bool], by: ColumnElement[Any] | None = None
) -> bool:
    """Some batch is so. `by` is the order of an index: without one PostgreSQL may read past all
    that is done, where it takes those that are asked for to be everywhere."""
    found = select(batches_table.c.id).where(*where).order_by(by).limit(1)
    return connection.execute(found).first() is not None
