"""New rows of the journal, in the caller's transaction."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.journal.ledger import void
from embatch.journal.purchases import audit_ref
from embatch.journal.records import AdoptedPart, Failure, NewBatch
from embatch.journal.rows import record_event
from embatch.journal.schema import batches_table, failures_table, runs_table
from embatch.types.state import BATCH_TRANSITIONS, BatchEvent, BatchState

CANCELLABLE = tuple(
    source for source, event in BATCH_TRANSITIONS if event is BatchEvent.RUN_CANCELLED
)
_COUNTERS = ("succeeded", "failed", "tokens", "truncated", "repeated", "polls", "absences")
_ENTRY_ZEROS = dict.fromkeys(_COUNTERS, 0)


def enter_batches(
    connection: Connection, run_id: str, batches: Sequence[NewBatch], now: float
) -> None:
    """Adds planned batches with the next free numbers."""
    if not batches:
        return
    number = _next_number(connection, run_id)
    connection.execute(
        insert(batches_table),
        [
            _ENTRY_ZEROS
            | {
                "run_id": run_id,
                "number": number + offset,
                "kind": batch.kind,
                "parent_id": batch.parent_id,
                "state": BatchState.PLANNED.value,
                "attempt": batch.attempt,
                "items": batch.items,
                "tokens_estimated": batch.tokens_estimated,
                "tokens_bound": batch.tokens_bound,
                "item_bound": batch.item_bound,
                "bought": batch.bought,
                "bought_why": batch.bought_why,
                "text_bytes": batch.text_bytes,
                "row_min": batch.row_min,
                "row_max": batch.row_max,
                "owner_min": batch.owner_min,
                "owner_max": batch.owner_max,
                "stage": batch.stage,
                "next_at": now + batch.delay_s,
                "created_at": now,
                "updated_at": now,
            }
            for offset, batch in enumerate(batches)
        ],
    )


def adopted_values(part: AdoptedPart) -> dict[str, Any]:
    """A published batch made of a part that was found."""
    return _ENTRY_ZEROS | {
        "number": part.number,
        "kind": part.kind,
        "state": BatchState.PUBLISHED.value,
        "attempt": 0,
        "items": part.rows,
        "succeeded": part.rows,
        "tokens_estimated": 0,
        "tokens_bound": 0,
        "item_bound": 0,
        "bought": 0,
        "text_bytes": 0,
        "row_min": part.row_min,
        "row_max": part.row_max,
        "part": part.name,
        "part_sha256": part.sha256,
        "part_bytes": part.size_bytes,
        "part_rows": part.rows,
        "part_row_min": part.row_min,
        "part_row_max": part.row_max,
    }


def _next_number(connection: Connection, run_id: str) -> int:
    highest = connection.execute(
        select(func.max(batches_table.c.number)).where(batches_table.c.run_id == run_id)
    ).scalar()
    return 0 if highest is None else int(highest) + 1


def enter_failures(connection: Connection, run_id: str, failures: Sequence[Failure]) -> None:
    """Records failed rows; a row that failed before is replaced."""
    if not failures:
        return
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement = make(failures_table)
    fields = ("key", "code", "message", "attempts", "batch_id", "kept", "kept_in")
    statement = statement.on_conflict_do_update(
        index_elements=["run_id", "row"],
        set_={name: statement.excluded[name] for name in fields},
    )
    connection.execute(
        statement,
        [
            {"run_id": run_id, "row": failure.row}
            | {name: getattr(failure, name) for name in fields}
            for failure in failures
        ],
    )


def enter_adopted(connection: Connection, run_id: str, part: AdoptedPart, now: float) -> None:
    """Adds a published batch for a part that was found in the output."""
    moments = dict.fromkeys(("next_at", "created_at", "updated_at", "finished_at"), now)
    connection.execute(
        insert(batches_table).values(**adopted_values(part), **moments, run_id=run_id)
    )
    record_event(connection, run_id=run_id, at=now, kind="adopted", data={"part": part.name})


def cancel_batches(connection: Connection, run_id: str, now: float) -> None:
    """Cancels every batch that may still change and voids the run's leases.

    A submission under way stays: only its answer tells whether there is a job to stop.
    """
    table = batches_table.c
    no_lease = {"lease_owner": None, "lease_token": None, "lease_expires_at": None}
    for source in CANCELLABLE:
        rows = connection.execute(
            update(batches_table)
            .where(table.run_id == run_id, table.state == source.value)
            .values(state=BatchState.CANCELLED.value, updated_at=now, finished_at=now, **no_lease)
            .returning(table.id, table.number, table.label)
        ).all()
        for batch_id, number, label in rows:
            if label is not None:
                void(connection, label, now)
                void(connection, audit_ref(label), now)
            record_event(
                connection,
                run_id=run_id,
                batch_id=batch_id,
                number=number,
                at=now,
                kind=BatchEvent.RUN_CANCELLED,
                source=source,
                target=BatchState.CANCELLED,
            )
    connection.execute(update(runs_table).where(runs_table.c.id == run_id).values(**no_lease))
