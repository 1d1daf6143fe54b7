"""The ledger: a line for each purchase of a run, and the cap that all of them together keep.

A line is made before anything is sent, at the most that the purchase can cost. It is settled by
what the service reports, or void once it is sure that nothing was bought. What a run has spent is
the sum of its settled lines; what it may still come to is that and the bounds of the open ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, case, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.errors import BudgetExceededError
from embatch.journal.database import Database
from embatch.journal.purchases import (
    Bought,
    KindSums,
    LedgerLine,
    Purchase,
    PurchaseKind,
    dollars,
)
from embatch.journal.schema import batches_table, ledger_table, runs_table
from embatch.journal.sums import sum_ledger
from embatch.types.state import FINAL_BATCH_STATES, BatchState

_LOCK: Final = text("SELECT pg_advisory_xact_lock(hashtext(:run_id))")
_AT_REST: Final = tuple(
    state.value for state in (*FINAL_BATCH_STATES, BatchState.PLANNED, BatchState.CANCELLED)
)
"""States of batches that free no money by themselves."""

Change = Callable[[Connection], None]
"""Something done in the transaction of a batch's change of state: `Step.move(also=[…])`."""


def reservation(*purchases: Purchase, now: float) -> Change:
    """Reserves purchases with a change of state. Raises BudgetExceededError, which undoes it."""
    return lambda connection: reserve(connection, purchases, now)


def settlement(ref: str, bought: Bought, *, now: float) -> Change:
    """Settles a purchase with a change of state; one that is settled by a count stays."""
    return lambda connection: settle(connection, ref, bought, now)


def reserve(connection: Connection, purchases: Sequence[Purchase], now: float) -> None:
    """Enters purchases at their bounds, if the run's cap bears all of them together.

    No two processes can pass the cap between them: they wait for one another's transaction.
    """
    if not purchases:
        return
    run_id = purchases[0].run_id
    _lock(connection, run_id)
    given_back = [ref for one in purchases for ref in (one.ref, one.replaces) if ref is not None]
    cap = _cap(connection, run_id)
    if cap is not None:
        spent, held = _committed(connection, run_id, without=given_back)
        wanted = sum(math.inf if one.usd_bound is None else one.usd_bound for one in purchases)
        if spent + held + wanted > cap:
            raise _refusal(connection, purchases[0], cap, spent, held, wanted)
    for one in purchases:
        if one.replaces is not None:
            void(connection, one.replaces, now)
        _enter(connection, one, now)
        _unblock(connection, one.batch_id)


def settle(connection: Connection, ref: str, bought: Bought, now: float) -> None:
    """Writes what a purchase came to, at the price at which it was reserved.

    A line that was settled by the service's own count stays; no line is none.
    """
    table = ledger_table.c
    share = bought.tokens * 1.0 / table.tokens_bound
    run_id = connection.execute(
        update(ledger_table)
        .where(
            table.ref == ref,
            or_(table.state == "reserved", (table.state == "settled") & table.estimated),
        )
        .values(
            state="settled",
            rows=bought.rows,
            rows_failed=bought.rows_failed,
            rows_again=case((table.rows_again < bought.rows, table.rows_again), else_=bought.rows),
            tokens=bought.tokens,
            usd=table.usd_bound * share,
            estimated=bought.estimated,
            settled_at=now,
        )
        .returning(table.run_id)
    ).scalar()
    _wake(connection, run_id, now)


def void(connection: Connection, ref: str, now: float) -> None:
    """Strikes out a reservation: nothing was bought."""
    table = ledger_table.c
    run_id = connection.execute(
        update(ledger_table)
        .where(table.ref == ref, table.state == "reserved")
        .values(state="void", settled_at=now)
        .returning(table.run_id)
    ).scalar()
    _wake(connection, run_id, now)


def settle_unseen(connection: Connection, ref: str, now: float) -> None:
    """Settles a reservation by its estimate: its rows were billed, and brought no vector."""
    table = ledger_table.c
    run_id = connection.execute(
        update(ledger_table)
        .where(table.ref == ref, table.state == "reserved")
        .values(
            state="settled",
            rows_failed=table.rows,
            tokens=table.tokens_estimated,
            usd=table.usd_bound * (table.tokens_estimated * 1.0 / table.tokens_bound),
            estimated=True,
            settled_at=now,
        )
        .returning(table.run_id)
    ).scalar()
    _wake(connection, run_id, now)


def reopen(connection: Connection, ref: str) -> None:
    """Holds a purchase at its bound again: what was thought void, exists."""
    table = ledger_table.c
    connection.execute(
        update(ledger_table)
        .where(table.ref == ref, table.state == "void")
        .values(state="reserved", settled_at=None)
    )


def close_abandoned(connection: Connection, batch_id: int, kind: PurchaseKind, now: float) -> int:
    """Settles calls of a batch that a process did not live to settle, at their bounds.

    Reservations that no call was made under stay. Gives how many rows may have been billed.
    """
    table = ledger_table.c
    rows = connection.execute(
        update(ledger_table)
        .where(
            table.batch_id == batch_id,
            table.kind == kind,
            table.state == "reserved",
            table.ref.like(f"{kind}:call:%"),
        )
        .values(
            state="settled",
            tokens=table.tokens_bound,
            usd=table.usd_bound,
            estimated=True,
            settled_at=now,
        )
        .returning(table.rows)
    ).scalars()
    return sum(rows)


class LedgerTable:
    """The ledger of all runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve(self, *purchases: Purchase, now: float) -> None:
        """Reserves purchases that go with no change of state; raises BudgetExceededError."""
        with self._database.write() as connection:
            reserve(connection, purchases, now)

    def begin_call(self, purchase: Purchase, *, now: float) -> None:
        """Reserves an interactive call; raises BudgetExceededError.

        Calls of the same batch and kind that a killed process left open are settled at their
        bounds first. Rows that they were to bring count as bought again, but for audits.
        """
        with self._database.write() as connection:
            if purchase.batch_id is not None:
                lost = close_abandoned(connection, purchase.batch_id, purchase.kind, now)
                if lost and purchase.kind == "direct":
                    again = min(lost, purchase.rows)
                    purchase = replace(purchase, rows_again=again, again_why="lost_call")
            reserve(connection, [purchase], now)

    def settle(self, ref: str, bought: Bought, *, now: float) -> None:
        """Settles a purchase outside of any change of state."""
        with self._database.write() as connection:
            settle(connection, ref, bought, now)

    def void(self, ref: str, *, now: float) -> None:
        """Strikes out a reservation outside of any change of state."""
        with self._database.write() as connection:
            void(connection, ref, now)

    def settle_beside(self, label: str, rows: int, *, now: float) -> None:
        """A job that its batch went on without has ended: `rows` of it were billed once more."""
        table = ledger_table.c
        with self._database.write() as connection:
            if not rows:
                void(connection, label, now)
                settle(connection, label, Bought(rows=0, tokens=0), now)  # what was estimated
                return
            reopen(connection, label)
            connection.execute(
                update(ledger_table)
                .where(table.ref == label, table.state == "reserved")
                .values(
                    rows=rows,
                    rows_again=rows,
                    again_why="late_twin",
                    tokens_estimated=table.tokens_estimated * rows // table["rows"],
                )
            )
            settle_unseen(connection, label, now)

    def wake(self, run_id: str, *, now: float) -> None:
        """Has batches that wait for money tried again: there may be more of it."""
        with self._database.write() as connection:
            _wake(connection, run_id, now)

    def may_free(self, run_id: str) -> bool:
        """Something of the run is under way whose end may free money."""
        with self._database.read() as connection:
            return _something_moves(connection, run_id)

    def find(self, ref: str) -> LedgerLine | None:
        """The line of a purchase, None when nothing was ever reserved under `ref`."""
        with self._database.read() as connection:
            row = (
                connection.execute(select(ledger_table).where(ledger_table.c.ref == ref))
                .mappings()
                .one_or_none()
            )
        return None if row is None else LedgerLine(**row)

    def lines(self, run_id: str) -> list[LedgerLine]:
        """Every purchase of a run, void ones too, oldest first."""
        table = ledger_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(ledger_table).where(table.run_id == run_id).order_by(table.at, table.ref)
            ).mappings()
            return [LedgerLine(**row) for row in rows]

    def committed(self, run_id: str) -> tuple[float, float]:
        """Dollars spent, and dollars that open purchases may come to."""
        with self._database.read() as connection:
            return _committed(connection, run_id)

    def sums(self, run_id: str) -> dict[PurchaseKind, KindSums]:
        """What a run has bought, by kind; kinds of which nothing was bought are left out."""
        with self._database.read() as connection:
            return sum_ledger(connection, run_id)

    def again(self, run_id: str) -> dict[str, int]:
        """Rows that were billed more than once, by the reason."""
        table = ledger_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(table.again_why, func.sum(table.rows_again))
                .where(table.run_id == run_id, table.state == "settled", table.rows_again > 0)
                .group_by(table.again_why)
            )
            return {str(why or "unknown"): int(count) for why, count in rows}


def _lock(connection: Connection, run_id: str) -> None:
    # A write transaction of SQLite holds the whole file already.
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK, {"run_id": run_id})


def _cap(connection: Connection, run_id: str) -> float | None:
    config: Any = connection.execute(
        select(runs_table.c.config).where(runs_table.c.id == run_id)
    ).scalar()
    cap = (config or {}).get("max_cost_usd")
    return None if cap is None else float(cap)


def _committed(
    connection: Connection, run_id: str, *, without: Sequence[str] = ()
) -> tuple[float, float]:
    table = ledger_table.c
    zero = 0.0
    row = connection.execute(
        select(
            func.coalesce(func.sum(case((table.state == "settled", table.usd), else_=zero)), zero),
            func.coalesce(
                func.sum(case((table.state == "reserved", table.usd_bound), else_=zero)), zero
            ),
        ).where(table.run_id == run_id, table.ref.not_in(without))
    ).one()
    return float(row[0]), float(row[1])


def _enter(connection: Connection, purchase: Purchase, now: float) -> None:
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    values = {
        "run_id": purchase.run_id,
        "batch_id": purchase.batch_id,
        "kind": purchase.kind,
        "state": "reserved",
        "rows": purchase.rows,
        "rows_failed": 0,
        "rows_again": purchase.rows_again,
        "again_why": purchase.again_why,
        "tokens_bound": max(1, purchase.tokens_bound),
        "tokens_estimated": purchase.tokens_estimated,
        "tokens": None,
        "usd_bound": purchase.usd_bound,
        "usd": None,
        "estimated": False,
        "at": now,
        "settled_at": None,
    }
    entry = make(ledger_table).values(ref=purchase.ref, **values)
    connection.execute(entry.on_conflict_do_update(index_elements=["ref"], set_=values))


def _refusal(
    connection: Connection,
    purchase: Purchase,
    cap: float,
    spent: float,
    held: float,
    wanted: float,
) -> BudgetExceededError:
    if math.isinf(wanted):
        return BudgetExceededError("the price is not known, so no cap can be kept")
    error = BudgetExceededError(
        f"the cap is {dollars(cap)}: {dollars(spent)} is spent, {dollars(held)} may still come of "
        f"what is under way, and this may cost {dollars(wanted)} more"
    )
    error.may_free = _something_moves(connection, purchase.run_id, but=purchase.batch_id)
    return error


def _something_moves(connection: Connection, run_id: str, *, but: int | None = None) -> bool:
    """A batch of the run, `but` one, is under way or being begun, and waits for no money."""
    table = batches_table.c
    begun = (table.state == BatchState.PLANNED.value) & table.lease_token.is_not(None)
    waits = table.blocked_reason.in_(("budget", "person"))
    found = connection.execute(
        select(table.id)
        .where(
            table.run_id == run_id,
            table.id != (but or 0),
            or_(table.state.not_in(_AT_REST), begun & (table.kind == "embed")),
            or_(table.blocked_reason.is_(None), ~waits),
        )
        .limit(1)
    ).first()
    return found is not None


def _unblock(connection: Connection, batch_id: int | None) -> None:
    """A batch that found money waits for none any more, before its step is over."""
    table = batches_table.c
    if batch_id is not None:
        connection.execute(
            update(batches_table)
            .where(table.id == batch_id, table.blocked_reason == "budget")
            .values(blocked_reason=None, blocked_detail=None)
        )


def _wake(connection: Connection, run_id: str | None, now: float) -> None:
    """Has batches that wait for money tried again at once."""
    table = batches_table.c
    if run_id is not None:
        connection.execute(
            update(batches_table)
            .where(
                table.run_id == run_id,
                table.state.not_in([state.value for state in FINAL_BATCH_STATES]),
                table.next_at > now,
                table.blocked_reason == "budget",
            )
            .values(next_at=now)
        )
