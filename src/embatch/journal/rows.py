"""Database rows to records, and the one way an event is written."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert

from embatch.journal.records import BatchRecord, RunRecord
from embatch.journal.schema import events_table
from embatch.types.state import BatchState, RunState


def run_record(row: Row[Any]) -> RunRecord:
    """The run that a row of `runs` holds."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name for a row's mapping
    return RunRecord(**{**values, "state": RunState(values["state"])})


def batch_record(row: Row[Any]) -> BatchRecord:
    """The batch that a row of `batches` holds."""
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented name for a row's mapping
    return BatchRecord(**{**values, "state": BatchState(values["state"])})


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
) -> None:
    """Appends one line to a run's history, in the caller's transaction."""
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
