"""Sums over the batches of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, func, select

from embatch.journal.purchases import KindSums, PurchaseKind
from embatch.journal.records import RunCounts
from embatch.journal.schema import batches_table, failures_table, ledger_table
from embatch.types.state import BatchState

UNDER_WAY = (BatchState.SUBMITTED, BatchState.READY, BatchState.COLLECTED)
"""States of batches whose rows may be done and are not written yet."""
NOT_SENT = (BatchState.PLANNED, BatchState.UPLOADING, BatchState.UPLOADED)
"""States of batches that nothing was bought for yet."""


def count_rows(connection: Connection, run_id: str) -> RunCounts:
    """What stands where, of one run."""
    table = batches_table.c
    mine = table.run_id == run_id
    by_state = {
        BatchState(state): int(count)
        for state, count in connection.execute(
            select(table.state, func.count()).where(mine).group_by(table.state)
        )
    }
    published = table.state == BatchState.PUBLISHED.value
    under_way = table.state.in_([state.value for state in UNDER_WAY])
    original = table.parent_id.is_(None)

    def total(condition: Any, column: Any) -> Any:
        return func.coalesce(func.sum(case((condition, column), else_=0)), 0)

    sums = connection.execute(
        select(
            total(original, table["items"]).label("planned"),
            total(published, table.part_rows).label("written"),
            total(and_(under_way, table.kind == "embed"), table.succeeded).label("live"),
            total(and_(original, table.kind == "copies"), table["items"]).label("copies"),
            total(and_(original, table.kind == "reused"), table["items"]).label("reused"),
            total(published, table.truncated).label("truncated"),
            total(published, table.repeated).label("repeated"),
            total(published, table.tokens).label("tokens"),
            total(published, table.part_bytes).label("part_bytes"),
        ).where(mine)
    ).one()
    failed = connection.execute(
        select(func.count()).select_from(failures_table).where(failures_table.c.run_id == run_id)
    ).scalar_one()
    return RunCounts(
        batches=by_state,
        failed=int(failed),
        **{name: int(value) for name, value in sums._mapping.items()},  # noqa: SLF001 - public API
    )


def present_pace(connection: Connection, run_id: str, batches: int, now: float) -> float | None:
    """Rows a second of the last `batches` published ones and of those under way, up to `now`."""
    table = batches_table.c
    # A published batch's next_at is the moment of its last step; the index has it in order.
    last = connection.execute(
        select(table.part_rows, table.submitted_at)
        .where(
            table.run_id == run_id,
            table.state == BatchState.PUBLISHED.value,
            table.submitted_at.is_not(None),
        )
        .order_by(table.next_at.desc())
        .limit(batches)
    ).all()
    live = connection.execute(
        select(table.succeeded, table.submitted_at).where(
            table.run_id == run_id,
            table.state.in_([state.value for state in UNDER_WAY]),
            table.submitted_at.is_not(None),
        )
    ).all()
    paced = [(int(rows), float(since)) for rows, since in (*last, *live)]
    rows = sum(count for count, _ in paced)
    return rows / max(0.001, now - min(since for _, since in paced)) if rows else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToBuy:
    """Batches of a run that are not at the provider yet."""

    batches: int
    tokens: int
    """Estimated."""
    largest: int
    """Rows of the largest."""
    largest_bound: int
    """The most tokens that one of them can be billed."""
    item_bound: int
    """The most tokens that one of their items can be billed."""


def sum_to_buy(connection: Connection, run_id: str) -> ToBuy:
    """What a run has still to buy."""
    table = batches_table.c

    def largest(column: Any) -> Any:
        return func.coalesce(func.max(column), 0)

    row = connection.execute(
        select(
            func.count().label("batches"),
            func.coalesce(func.sum(table.tokens_estimated), 0).label("tokens"),
            largest(table["items"]).label("largest"),
            largest(table.tokens_bound).label("largest_bound"),
            largest(table.item_bound).label("item_bound"),
        ).where(
            table.run_id == run_id,
            table.kind == "embed",
            table.state.in_([state.value for state in NOT_SENT]),
        )
    ).one()
    return ToBuy(**{name: int(value) for name, value in row._mapping.items()})  # noqa: SLF001 - public API


def sum_ledger(connection: Connection, run_id: str) -> dict[PurchaseKind, KindSums]:
    """What a run has bought, by kind."""
    return sum_ledgers(connection, [run_id]).get(run_id, {})


def sum_ledgers(
    connection: Connection, run_ids: Sequence[str]
) -> dict[str, dict[PurchaseKind, KindSums]]:
    """What some runs have bought, by run and kind."""
    table = ledger_table.c
    settled, reserved = table.state == "settled", table.state == "reserved"

    def total(condition: Any, column: Any) -> Any:
        return func.coalesce(func.sum(case((condition, column), else_=0)), 0)

    rows = connection.execute(
        select(
            table.run_id,
            table.kind,
            total(settled, table["rows"]).label("rows"),
            total(settled, table.rows_failed).label("rows_failed"),
            total(settled, table.rows_again).label("rows_again"),
            total(settled, table.tokens).label("tokens"),
            total(settled, table.usd).label("usd"),
            total(settled & table.estimated, table.usd).label("usd_estimated"),
            total(reserved, table["rows"]).label("open_rows"),
            total(reserved, table.usd_bound).label("usd_open"),
            total(table.usd_bound.is_(None), 1).label("unpriced"),
        )
        .where(table.run_id.in_(run_ids), table.state != "void")
        .group_by(table.run_id, table.kind)
    ).mappings()
    found: dict[str, dict[PurchaseKind, KindSums]] = {}
    for row in rows:
        sums = {name: _plain(value) for name, value in row.items() if name not in _NAMES}
        found.setdefault(row["run_id"], {})[row["kind"]] = KindSums(**sums)
    return found


_NAMES = ("run_id", "kind")


def _plain(value: Any) -> Any:
    """PostgreSQL sums 64-bit columns as decimals."""
    return value if isinstance(value, (int, float)) else int(value)
