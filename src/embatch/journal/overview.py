"""Sums over many runs at once: what a list of them shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Integer, RowMapping, case, cast, func, select

from embatch.journal.purchases import KindSums, PurchaseKind
from embatch.journal.records import RunCounts
from embatch.journal.schema import batches_table, failures_table, runs_table
from embatch.journal.sums import UNDER_WAY, sum_ledgers
from embatch.types.state import BatchState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSums:
    """The sums of one run."""

    counts: RunCounts
    ledger: Mapping[PurchaseKind, KindSums] = field(default_factory=dict)


def sum_runs(connection: Connection, run_ids: Sequence[str]) -> dict[str, RunSums]:
    """The sums of some runs."""
    counts = _counts(connection, run_ids)
    ledgers = sum_ledgers(connection, run_ids)
    return {
        name: RunSums(counts=counts.get(name, RunCounts()), ledger=ledgers.get(name, {}))
        for name in run_ids
    }


def spark_runs(
    connection: Connection, run_ids: Sequence[str], steps: int, now: float
) -> dict[str, list[int]]:
    """Rows that each of some runs wrote in `steps` equal spans of its time."""
    batch, run = batches_table.c, runs_table.c
    ended = func.coalesce(run.finished_at, now)
    length = case((ended - run.created_at > 1.0, ended - run.created_at), else_=1.0)
    step = cast(func.floor((batch.finished_at - run.created_at) * steps / length), Integer)
    rows = connection.execute(
        select(batch.run_id, step, func.sum(batch.part_rows))
        .select_from(batches_table.join(runs_table, run.id == batch.run_id))
        .where(
            batch.run_id.in_(run_ids),
            batch.state == BatchState.PUBLISHED.value,
            batch.finished_at.is_not(None),
        )
        .group_by(batch.run_id, step)
    ).all()
    found: dict[str, list[int]] = {}
    for run_id, at, written in rows:
        spark = found.setdefault(str(run_id), [0] * steps)
        spark[min(steps - 1, max(0, int(at)))] += int(written or 0)
    return found


def _counts(connection: Connection, run_ids: Sequence[str]) -> dict[str, RunCounts]:
    table = batches_table.c
    original = case((table.parent_id.is_(None), table["items"]), else_=0)
    names = ("part_rows", "succeeded", "truncated", "repeated", "tokens", "part_bytes")
    sums = [func.coalesce(func.sum(table[name]), 0).label(name) for name in names]
    rows = connection.execute(
        select(
            *(table.run_id, table.state, table.kind, func.count().label("batches")),
            *(func.sum(original).label("original"), *sums),
        )
        .where(table.run_id.in_(run_ids))
        .group_by(table.run_id, table.state, table.kind)
    ).mappings()
    made: dict[str, dict[str, Any]] = {}
    for row in rows:
        _add(made.setdefault(row["run_id"], {"batches": {}}), row)
    failed = connection.execute(
        select(failures_table.c.run_id, func.count())
        .where(failures_table.c.run_id.in_(run_ids))
        .group_by(failures_table.c.run_id)
    ).all()
    for run_id, count in failed:
        made.setdefault(run_id, {"batches": {}})["failed"] = int(count)
    return {name: RunCounts(**values) for name, values in made.items()}


def _add(into: dict[str, Any], row: RowMapping) -> None:
    """The sums of the batches of one state and kind, into those of their run."""
    state = BatchState(row["state"])
    into["batches"][state] = into["batches"].get(state, 0) + int(row["batches"])
    adds = {"planned": row["original"]}
    if state is BatchState.PUBLISHED:
        adds["written"] = row["part_rows"]
        adds |= {name: row[name] for name in ("truncated", "repeated", "tokens", "part_bytes")}
    if state in UNDER_WAY and row["kind"] == "embed":
        adds["live"] = row["succeeded"]
    if row["kind"] in ("copies", "reused"):
        adds[row["kind"]] = row["original"]
    for name, value in adds.items():
        into[name] = into.get(name, 0) + int(value)
