"""What audits found: the rows of quarantined batches that were embedded again, and their cosines.

Texts are never kept here. The changes are made in the transaction of a batch's change of state.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from embatch.journal.database import Database
from embatch.journal.refusals import repeated
from embatch.journal.rows import record_event
from embatch.journal.schema import audits_table, batches_table, runs_table
from embatch.types.state import BATCH_TRANSITIONS, BatchEvent

PAGE_ROWS: Final = 1000
_WITHDRAWABLE: Final = tuple(
    source for source, event in BATCH_TRANSITIONS if event is BatchEvent.OWNERS_WITHDRAWN
)
NO_PART: Final = dict.fromkeys(
    (
        "part",
        "part_temp",
        "part_sha256",
        "part_bytes",
        "part_rows",
        "part_row_min",
        "part_row_max",
        "part_good",
    )
)
"""Facts of a batch whose part was taken back."""
_NOTHING: Final = {
    **NO_PART,
    **dict.fromkeys(("lease_owner", "lease_token", "lease_expires_at", "finished_at")),
    "succeeded": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedRow:
    """One row that was embedded again, and how near its two vectors are."""

    run_id: str
    batch_id: int
    row: int
    key: str
    cosine: float
    """-1..1."""
    passed: bool
    at: float


class AuditTable:
    """The audited rows of all runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_run(self, run_id: str) -> Iterator[AuditedRow]:
        """The evidence of a run's quarantines, by batch and row."""
        table = audits_table.c
        after = (-1, -1)
        while True:
            query = (
                select(audits_table)
                .where(
                    table.run_id == run_id,
                    (table.batch_id > after[0])
                    | ((table.batch_id == after[0]) & (table.row > after[1])),
                )
                .order_by(table.batch_id, table.row)
                .limit(PAGE_ROWS)
            )
            with self._database.read() as connection:
                page = [AuditedRow(**row) for row in connection.execute(query).mappings()]
            yield from page
            if len(page) < PAGE_ROWS:
                return
            after = (page[-1].batch_id, page[-1].row)

    def has_passed(self, run_id: str) -> bool:
        """Some batch of the run stood an audit."""
        table = batches_table.c
        with self._database.read() as connection:
            found = connection.execute(
                select(table.id).where(table.run_id == run_id, table.audited > 0).limit(1)
            ).first()
        return found is not None

    @repeated
    def record(self, run_id: str, rows: Sequence[AuditedRow], *, audit_rows: int) -> None:
        """Keeps evidence outside of any change of state, and raises the run's audits."""
        with self._database.write(run_id) as connection:
            _enter(connection, rows)
            raise_audits(run_id, audit_rows)(connection)


def evidence(rows: Sequence[AuditedRow]) -> Callable[[Connection], None]:
    """Keeps evidence with a change of state; a row that was audited before is replaced."""
    return lambda connection: _enter(connection, rows)


def raise_audits(run_id: str, rows: int) -> Callable[[Connection], None]:
    """From now on at least `rows` rows of each batch of the run are audited."""

    def change(connection: Connection) -> None:
        connection.execute(
            update(runs_table).where(runs_table.c.id == run_id).values(audit_rows=rows)
        )

    return change


def withdraw_copies(
    run_id: str, row_min: int, row_max: int, *, now: float
) -> Callable[[Connection], None]:
    """Copies of rows `row_min..row_max`, whose vectors are taken back, wait for their owners anew.

    Leases on them are void: what a step of theirs has in hand may come of the old vectors.
    """

    def change(connection: Connection) -> None:
        table = batches_table.c
        for source in _WITHDRAWABLE:
            target = BATCH_TRANSITIONS[source, BatchEvent.OWNERS_WITHDRAWN]
            withdrawn = connection.execute(
                update(batches_table)
                .where(
                    table.run_id == run_id,
                    table.kind == "copies",
                    table.state == source.value,
                    table.owner_min <= row_max,
                    table.owner_max >= row_min,
                )
                .values(state=target.value, updated_at=now, next_at=now, **_NOTHING)
                .returning(table.id)
            ).scalars()
            for batch_id in withdrawn.all():
                record_event(
                    connection,
                    run_id=run_id,
                    batch_id=batch_id,
                    at=now,
                    kind=BatchEvent.OWNERS_WITHDRAWN,
                    source=source,
                    target=target,
                )

    return change


def _enter(connection: Connection, rows: Sequence[AuditedRow]) -> None:
    if not rows:
        return
    make = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement = make(audits_table)
    fields = ("key", "cosine", "passed", "at")
    statement = statement.on_conflict_do_update(
        index_elements=["run_id", "batch_id", "row"],
        set_={name: statement.excluded[name] for name in fields},
    )
    connection.execute(statement, [asdict(row) for row in rows])
