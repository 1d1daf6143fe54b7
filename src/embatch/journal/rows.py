"""Database rows to records, and the one way an event is written."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Update, insert, select, update

from embatch.journal.chronicle import add_line
from embatch.journal.records import BatchRecord, RunRecord
from embatch.journal.schema import batches_table, events_table
from embatch.types.state import BatchState, RunState


def run_record(row: Row[Any]) -> RunRecord:
    """The run that a row of `runs` holds."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name for a row's mapping
    return RunRecord(**{**values, "state": RunState(values["state"])})


def batch_record(row: Row[Any]) -> BatchRecord:
    """The batch that a row of `batches` holds."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name for a row's mapping
    return BatchRecord(**{**values, "state": BatchState(values["state"])})


def sooner(where: ColumnElement[bool], at: float) -> Update:
    """Has batches tried at `at` that would wait for longer.

    One that another transaction is changing is passed over, as if it had been changed later: so
    nobody waits here, and no two wait for one another.
    """
    table = batches_table.c
    found = select(table.id).where(where).with_for_update(skip_locked=True)
    return update(batches_table).where(table.id.in_(found)).values(next_at=at)


def record_event(
    connection: Connection,
    *,
    run_id: str,
    at: float,
    kind: str,
    batch_id: int | None = None,
    source: str | None = None,
    target: str | None = None,
    data: Mapping[str, Any] | None = None,
    number: int | None = None,
) -> None:
    """Appends one line to a run's history, in the caller's transaction.

    `number` is the batch's, for the log: it tells of the event once the transaction is durable.
    """
    connection.execute(
        insert(events_table).values(
            run_id=run_id,
            batch_id=batch_id,
            at=at,
            kind=str(kind),
            source=source,
            target=target,
            data=None if data is None else dict(data),
        )
    )
    add_line(
        connection,
        run_id=run_id,
        kind=str(kind),
        batch_id=batch_id,
        number=number,
        source=source,
        target=target,
        data=data,
    )
