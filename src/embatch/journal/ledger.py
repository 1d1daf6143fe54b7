"""The ledger: a line for each purchase of a run, and the cap that all of them together keep.

A line is made before anything is sent, at the most that the purchase can cost. It is settled by
what the service reports, else by the estimate, or void once it is held that nothing was bought.
What a run has spent is the sum of its settled lines. Its cap bears that and, besides, the bounds of
the open lines, of those that the service did not count, and of jobs that may still turn up.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, and_, case, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.errors import BudgetExceededError
from embatch.journal.conditions import under_way
from embatch.journal.purchases import (
    Bought,
    Purchase,
    PurchaseKind,
    dollars,
)
from embatch.journal.rows import sooner
from embatch.journal.schema import (
    UNDER_WAY_STATES,
    batches_table,
    jobs_table,
    ledger_table,
    runs_table,
    spending_table,
)
from embatch.types.state import FINAL_BATCH_STATES, BatchState

ROUNDING_USD: Final = 1e-12
"""What sums of dollars may be off by."""
DRIFT: Final = 1e-9
"""What a running sum may be off by, as a share of it: 1e-16 a line, over ten million lines."""
_FREES: Final = tuple(state for state in UNDER_WAY_STATES if state != BatchState.CANCELLED.value)
"""States of batches that free money by themselves."""

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

    No two processes can pass the cap between them: the caller has the run's turn
    (`Database.write`).
    """
    if not purchases:
        return
    run_id = purchases[0].run_id
    given_back = [ref for one in purchases for ref in (one.ref, one.replaces) if ref is not None]
    rests = [_rest_of(connection, one) for one in purchases]
    cap = _cap(connection, run_id)
    if cap is not None:
        left = math.fsum(usd for _, usd in rests)
        wanted = sum(math.inf if one.usd_bound is None else one.usd_bound for one in purchases)
        roughly = roughly_committed(connection, run_id, without=given_back)
        if roughly + left + wanted > cap - DRIFT * (cap + roughly):
            spent, held = committed(connection, run_id, without=given_back)
            if spent + held + left + wanted > cap + ROUNDING_USD:
                raise _refusal(connection, purchases[0], cap, spent, held + left, wanted)
    for one, rest in zip(purchases, rests, strict=True):
        if one.replaces is not None:
            _shrink(connection, one.replaces, rest, now)
        _enter(connection, one, now)
        _unblock(connection, one.batch_id)


def settle(connection: Connection, ref: str, bought: Bought, now: float) -> None:
    """Writes what a purchase came to, at the price at which it was reserved.

    A line that was settled by the service's own count stays; no line is none.
    """
    table = ledger_table.c
    share = bought.tokens * 1.0 / table.tokens_bound
    most: Any = table.tokens_bound
    if bought.estimated and bought.most is not None:
        least = max(1, bought.tokens, bought.most)
        most = case((most > least, least), else_=most)
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
            tokens_bound=most,
            usd_bound=table.usd_bound * (most * 1.0 / table.tokens_bound),
            estimated=bought.estimated,
            settled_at=now,
        )
        .returning(table.run_id)
    ).scalar()
    wake(connection, run_id, now)


def void(connection: Connection, ref: str, now: float) -> None:
    """Strikes out a reservation: nothing was bought."""
    table = ledger_table.c
    run_id = connection.execute(
        update(ledger_table)
        .where(table.ref == ref, table.state == "reserved")
        .values(state="void", settled_at=now)
        .returning(table.run_id)
    ).scalar()
    wake(connection, run_id, now)


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
    wake(connection, run_id, now)


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


def _cap(connection: Connection, run_id: str) -> float | None:
    config: Any = connection.execute(
        select(runs_table.c.config).where(runs_table.c.id == run_id)
    ).scalar()
    cap = (config or {}).get("max_cost_usd")
    return None if cap is None else float(cap)


def committed(
    connection: Connection, run_id: str, *, without: Sequence[str] = ()
) -> tuple[float, float]:
    """Dollars spent, and dollars that all but the purchases of `without` may come to besides.

    These are the bounds of open purchases, the bounds of those that the service did not count over
    their estimates, and the bounds of jobs that are held absent and may still turn up.
    """
    table, zero = ledger_table.c, 0.0
    settled = table.state == "settled"
    uncounted = settled & table.estimated & (table.usd_bound > table.usd)
    absent = exists().where(jobs_table.c.label == table.ref, jobs_table.c.state == "absent")
    held = case(
        (table.state == "reserved", table.usd_bound),
        (uncounted, table.usd_bound - table.usd),
        ((table.state == "void") & absent, table.usd_bound),
        else_=zero,
    )
    row = connection.execute(
        select(
            func.coalesce(func.sum(case((settled, table.usd), else_=zero)), zero),
            func.coalesce(func.sum(held), zero),
        ).where(table.run_id == run_id, table.ref.not_in(without))
    ).one()
    return float(row[0]), float(row[1])


def roughly_committed(connection: Connection, run_id: str, *, without: Sequence[str] = ()) -> float:
    """The sum of `committed`, at a cost that does not grow with the ledger.

    It is kept line by line, so it may be off by less than `DRIFT` of all that was ever counted.
    """
    table, sums = ledger_table.c, spending_table.c
    total = connection.execute(select(sums.spent + sums.held).where(sums.run_id == run_id)).scalar()
    absent = connection.execute(
        select(func.coalesce(func.sum(table.usd_bound), 0.0)).where(
            table.ref == jobs_table.c.label,
            *(jobs_table.c.run_id == run_id, jobs_table.c.state == "absent"),
            *(table.state == "void", table.ref.not_in(without)),
        )
    ).scalar_one()
    left_out = connection.execute(
        select(func.coalesce(func.sum(_counted()), 0.0)).where(table.ref.in_(without))
    ).scalar_one()
    return float(total or 0.0) + float(absent) - float(left_out)


def _counted() -> ColumnElement[Any]:
    """What the triggers of the database add up of a line."""
    table = ledger_table.c
    uncounted = table.estimated & (table.usd_bound > table.usd)
    return case(
        (table.state == "reserved", func.coalesce(table.usd_bound, 0.0)),
        ((table.state == "settled") & uncounted, table.usd_bound),
        (table.state == "settled", func.coalesce(table.usd, 0.0)),
        else_=0.0,
    )


def _rest_of(connection: Connection, purchase: Purchase) -> tuple[int, float]:
    """Tokens and dollars that are left of the reservation that a purchase draws on."""
    if purchase.replaces is None:
        return 0, 0.0
    table = ledger_table.c
    row = connection.execute(
        select(table.tokens_bound, table.usd_bound).where(
            table.ref == purchase.replaces, table.state == "reserved"
        )
    ).one_or_none()
    if row is None:
        return 0, 0.0
    tokens = max(0, int(row.tokens_bound) - purchase.tokens_bound)
    return tokens, (row.usd_bound or 0.0) * tokens / row.tokens_bound


def _shrink(connection: Connection, ref: str, rest: tuple[int, float], now: float) -> None:
    tokens, usd = rest
    if not tokens:
        void(connection, ref, now)
        return
    table = ledger_table.c
    priced = case((table.usd_bound.is_(None), None), else_=usd)
    connection.execute(
        update(ledger_table)
        .where(table.ref == ref, table.state == "reserved")
        .values(tokens_bound=tokens, usd_bound=priced)
    )


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
        f"the cap is {dollars(cap)}: {dollars(spent)} is spent, {dollars(held)} may come of what "
        f"is not settled for sure, and this may cost {dollars(wanted)} more"
    )
    error.may_free = something_moves(connection, purchase.run_id, but=purchase.batch_id)
    return error


def something_moves(connection: Connection, run_id: str, *, but: int | None = None) -> bool:
    """A batch of the run, `but` one, is under way or being begun, or costs nothing, and waits for
    no money."""
    table = batches_table.c
    waits = table.blocked_reason.in_(("budget", "person"))
    others = and_(
        table.run_id == run_id,
        table.id != (but or 0),
        or_(table.blocked_reason.is_(None), ~waits),
    )
    new = table.state == BatchState.PLANNED.value
    return any(
        connection.execute(select(table.id).where(others, moves).limit(1)).first() is not None
        for moves in (
            and_(under_way(), table.state.in_(_FREES)),
            and_(table.lease_token.is_not(None), new, table.kind == "embed"),
            and_(new, table.kind == "reused"),
        )
    )


def _unblock(connection: Connection, batch_id: int | None) -> None:
    """A batch that found money waits for none any more, before its step is over."""
    table = batches_table.c
    if batch_id is not None:
        connection.execute(
            update(batches_table)
            .where(table.id == batch_id, table.blocked_reason == "budget")
            .values(blocked_reason=None, blocked_detail=None)
        )


def wake(connection: Connection, run_id: str | None, now: float) -> None:
    """Has batches that wait for money tried again at once."""
    table = batches_table.c
    if run_id is not None:
        waits = and_(
            table.run_id == run_id,
            table.blocked_reason == "budget",
            table.next_at > now,
            table.state.not_in([state.value for state in FINAL_BATCH_STATES]),
        )
        connection.execute(sooner(waits, now))
