"""The ledger of all runs, for what happens outside of a batch's changes of state."""

from dataclasses import replace

from sqlalchemy import Connection, func, select, update

from embatch.journal.database import Database
from embatch.journal.ledger import (
    close_abandoned,
    committed,
    reopen,
    reserve,
    settle,
    settle_unseen,
    something_moves,
    void,
    wake,
)
from embatch.journal.purchases import Bought, KindSums, LedgerLine, Purchase, PurchaseKind
from embatch.journal.refusals import repeated
from embatch.journal.schema import ledger_table
from embatch.journal.sums import sum_ledger


class LedgerTable:
    """The ledger of all runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @repeated
    def reserve(self, *purchases: Purchase, now: float) -> None:
        """Reserves purchases that go with no change of state; raises BudgetExceededError."""
        if not purchases:
            return
        with self._database.write(purchases[0].run_id) as connection:
            reserve(connection, purchases, now)

    @repeated
    def begin_call(self, purchase: Purchase, *, used: int = 0, now: float) -> None:
        """Reserves an interactive call; raises BudgetExceededError.

        Calls of the same batch and kind that a killed process left open are settled at their
        bounds first. Of a direct call as many rows count as bought again as are paid for without
        use: those of its batch's direct calls, and the purchase's own `rows_again`, less the
        `used` ones, whose answers are in hand.
        """
        with self._database.write(purchase.run_id) as connection:
            if purchase.batch_id is not None:
                close_abandoned(connection, purchase.batch_id, purchase.kind, now)
                if purchase.kind == "direct":
                    purchase = _with_lost(connection, purchase, purchase.batch_id, used)
            reserve(connection, [purchase], now)

    @repeated
    def settle(self, ref: str, bought: Bought, *, now: float) -> None:
        """Settles a purchase outside of any change of state."""
        with self._database.write() as connection:
            settle(connection, ref, bought, now)

    @repeated
    def void(self, ref: str, *, now: float) -> None:
        """Strikes out a reservation outside of any change of state."""
        with self._database.write() as connection:
            void(connection, ref, now)

    @repeated
    def tighten(self, ref: str, tokens: int, *, now: float) -> None:
        """An open purchase cannot cost more than `tokens`, as its results tell by now."""
        table = ledger_table.c
        with self._database.write() as connection:
            run_id = connection.execute(
                update(ledger_table)
                .where(table.ref == ref, table.state == "reserved", table.tokens_bound > tokens)
                .values(
                    tokens_bound=max(1, tokens),
                    usd_bound=table.usd_bound * (max(1, tokens) * 1.0 / table.tokens_bound),
                )
                .returning(table.run_id)
            ).scalar()
            wake(connection, run_id, now)

    @repeated
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

    @repeated
    def wake(self, run_id: str, *, now: float) -> None:
        """Has batches that wait for money tried again: there may be more of it."""
        with self._database.write(run_id) as connection:
            wake(connection, run_id, now)

    def may_free(self, run_id: str) -> bool:
        """Something of the run is under way whose end may free money."""
        with self._database.read() as connection:
            return something_moves(connection, run_id)

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
        """Dollars spent, and dollars that its cap must bear besides (`ledger.committed`)."""
        with self._database.read() as connection:
            return committed(connection, run_id)

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


def _with_lost(connection: Connection, purchase: Purchase, batch_id: int, used: int) -> Purchase:
    table = ledger_table.c
    paid = connection.execute(
        select(func.coalesce(func.sum(table.rows - table.rows_again), 0)).where(
            table.batch_id == batch_id, table.kind == "direct", table.state == "settled"
        )
    ).scalar_one()
    again = min(purchase.rows, max(0, int(paid) + purchase.rows_again - used))
    why = "lost_call" if paid > used or not purchase.rows_again else purchase.again_why
    return replace(purchase, rows_again=again, again_why=why if again else None)
