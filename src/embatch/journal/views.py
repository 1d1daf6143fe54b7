"""What the dashboard asks of the journal: pages of runs, batches and events, each by an index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    and_,
    case,
    cast,
    func,
    or_,
    select,
)

from embatch.journal.audits import AuditedRow
from embatch.journal.database import Database
from embatch.journal.overview import RunSums, spark_runs, sum_runs
from embatch.journal.purchases import LedgerLine
from embatch.journal.records import BatchRecord, EventRecord, Failure, RunRecord
from embatch.journal.rows import batch_record, run_record
from embatch.journal.schema import (
    audits_table,
    batches_table,
    events_table,
    failures_table,
    ledger_table,
    runs_table,
)
from embatch.types.state import FINAL_BATCH_STATES, BatchState

LATEST: Final = 60
"""Published batches by which the pace of late is told."""
MOST_CODES: Final = 20
"""Reasons of failures that are told apart."""
MOST_BILLS: Final = 200
"""Purchases of a batch that are shown."""
_ACTIVE: Final = tuple(
    state.value
    for state in BatchState
    if state not in FINAL_BATCH_STATES and state is not BatchState.PLANNED
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsFound:
    """One page of runs, and how many there are."""

    runs: Sequence[RunRecord]
    matching: int
    total: int
    states: Mapping[str, int]
    """All runs by state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """Rows that came to a state or left it, by step of time."""

    entered: Mapping[int, int]
    """Rows of batches that were planned in each step."""
    moved: Sequence[tuple[int, str, str, int, int]]
    """Step, source, target, the rows that left the one and those that came to the other.

    What is published holds fewer where rows failed: they ended there, or went on in child batches.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedEvent:
    """An event, and the number of its batch."""

    event: EventRecord
    number: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailuresOfCode:
    """Failed rows of one reason."""

    code: str
    rows: int
    kept: int
    examples: Sequence[Failure]


class ViewTable:
    """Readings of all tables for those who watch. Nothing here changes anything."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_runs(
        self,
        *,
        state: str | None = None,
        tag: tuple[str, str] | None = None,
        search: str | None = None,
        offset: int,
        limit: int,
    ) -> RunsFound:
        """Runs, newest first: those in `state`, with this tag, and with `search` in their name,
        id or output, whatever the case."""
        table = runs_table.c
        wanted: list[ColumnElement[bool]] = []
        if state is not None:
            wanted.append(table.state == state)
        if tag is not None:
            wanted.append(table.tags[tag[0]].as_string() == tag[1])
        if search:
            named = [table.name, table.id, table.out]
            wanted.append(or_(*(column.icontains(search, autoescape=True) for column in named)))
        with self._database.read() as connection:
            states = {
                str(name): int(count)
                for name, count in connection.execute(
                    select(table.state, func.count()).group_by(table.state)
                )
            }
            total = sum(states.values())
            matching = total
            if wanted:
                matching = connection.execute(
                    select(func.count()).select_from(runs_table).where(*wanted)
                ).scalar_one()
            rows = connection.execute(
                select(runs_table)
                .where(*wanted)
                .order_by(table.created_at.desc(), table.id)
                .offset(offset)
                .limit(limit)
            ).all()
        runs = [run_record(row) for row in rows]
        return RunsFound(runs=runs, matching=int(matching), total=total, states=states)

    def sums(self, run_ids: Sequence[str]) -> dict[str, RunSums]:
        """The sums of some runs, each as `counts` and `ledger.sums` give them."""
        with self._database.read() as connection:
            return sum_runs(connection, run_ids)

    def sparks(self, run_ids: Sequence[str], *, steps: int, now: float) -> dict[str, list[int]]:
        """Rows that each of some runs wrote in `steps` equal spans of its time."""
        with self._database.read() as connection:
            return spark_runs(connection, run_ids, steps, now)

    def published_last(self, run_id: str, *, limit: int = LATEST) -> list[tuple[int, float]]:
        """Rows and end of the batches that were published last, the latest first."""
        table = batches_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(table.part_rows, table.finished_at)
                .where(
                    table.run_id == run_id,
                    table.state == BatchState.PUBLISHED.value,
                    table.finished_at.is_not(None),
                )
                .order_by(table.next_at.desc())
                .limit(limit)
            ).all()
        return [(int(count or 0), float(at)) for count, at in rows]

    def moves(self, run_id: str, *, start: float, step_s: float) -> Moves:
        """How rows went from state to state since `start`, from the run's events."""
        event, batch = events_table.c, batches_table.c

        # The same element in both places: PostgreSQL does not group by what only looks the same.
        begun = cast(func.floor((batch.created_at - start) / step_s), Integer)
        at_step = cast(func.floor((event.at - start) / step_s), Integer)
        written = func.coalesce(batch.part_rows, batch["items"])
        published = BatchState.PUBLISHED.value
        left = case((event.source == published, written), else_=batch["items"])
        came = case((event.target == published, written), else_=batch["items"])
        with self._database.read() as connection:
            entered = connection.execute(
                select(begun, func.sum(batch["items"]))
                .where(batch.run_id == run_id)
                .group_by(begun)
            ).all()
            adopted = connection.execute(
                select(begun, func.sum(written))
                .where(
                    batch.run_id == run_id,
                    batch.state == published,
                    batch.stage.is_(None),
                    batch.attempt == 0,
                    batch.submitted_at.is_(None),
                    batch.created_at == batch.finished_at,
                )
                .group_by(begun)
            ).all()
            moved = connection.execute(
                select(at_step, event.source, event.target, func.sum(left), func.sum(came))
                .select_from(events_table.join(batches_table, batch.id == event.batch_id))
                .where(
                    event.run_id == run_id,
                    batch.run_id == run_id,  # it is: without it PostgreSQL reads all batches
                    event.source.is_not(None),
                )
                .group_by(at_step, event.source, event.target)
            ).all()
        found = [
            (int(at), str(one), str(other), int(gone), int(here))
            for at, one, other, gone, here in moved
        ]
        planned = BatchState.PLANNED.value
        found += [(int(at), planned, published, int(many), int(many)) for at, many in adopted]
        return Moves(entered={int(at): int(many) for at, many in entered}, moved=sorted(found))

    def spent(self, run_id: str, *, start: float, step_s: float) -> dict[int, float]:
        """Dollars settled in each step of time since `start`."""
        table = ledger_table.c
        step = cast(func.floor((table.settled_at - start) / step_s), Integer)
        with self._database.read() as connection:
            rows = connection.execute(
                select(step, func.sum(table.usd))
                .where(table.run_id == run_id, table.state == "settled", table.usd.is_not(None))
                .group_by(step)
            ).all()
        return {int(at): float(usd) for at, usd in rows if at is not None}

    def states(self, run_id: str) -> list[tuple[int, str, bool]]:
        """Number and state of every batch by number, and whether it waits for something."""
        table = batches_table.c
        held = and_(
            table.blocked_reason.is_not(None),
            table.blocked_reason != "owners",
            table.state.not_in([state.value for state in FINAL_BATCH_STATES]),
        )
        with self._database.read() as connection:
            rows = connection.execute(
                select(table.number, table.state, held)
                .where(table.run_id == run_id)
                .order_by(table.number)
            ).all()
        return [(int(number), str(state), bool(blocked)) for number, state, blocked in rows]

    def history(
        self, run_id: str, *, before: int | None, limit: int, batch_id: int | None = None
    ) -> list[NumberedEvent]:
        """Events of a run, or of a batch alone, the newest first; those before `before`."""
        event = events_table.c
        wanted = [event.run_id == run_id] if batch_id is None else [event.batch_id == batch_id]
        if before is not None:
            wanted.append(event.id < before)
        with self._database.read() as connection:
            rows = connection.execute(
                select(events_table, batches_table.c.number.label("number"))
                .select_from(
                    events_table.outerjoin(batches_table, batches_table.c.id == event.batch_id)
                )
                .where(*wanted)
                .order_by(event.id.desc())
                .limit(limit)
            ).mappings()
            return [
                NumberedEvent(
                    event=EventRecord(**{k: v for k, v in row.items() if k != "number"}),
                    number=row["number"],
                )
                for row in rows
            ]

    def failures_by_code(
        self, run_id: str, *, examples: int, batch_id: int | None = None
    ) -> list[FailuresOfCode]:
        """Failed rows by reason, the most frequent first, each with the first few."""
        table = failures_table.c
        mine = [table.run_id == run_id]
        if batch_id is not None:
            mine.append(table.batch_id == batch_id)
        kept = func.sum(case((table.kept_in.is_not(None), 1), else_=0))
        with self._database.read() as connection:
            groups = connection.execute(
                select(table.code, func.count(), kept)
                .where(*mine)
                .group_by(table.code)
                .order_by(func.count().desc(), table.code)
                .limit(MOST_CODES)
            ).all()
            return [
                FailuresOfCode(
                    code=str(code),
                    rows=int(count),
                    kept=int(with_text),
                    examples=_examples(connection, [*mine, table.code == code], examples),
                )
                for code, count, with_text in groups
            ]

    def next_steps(self, run_id: str, *, limit: int) -> list[BatchRecord]:
        """The batches under way whose steps are due the soonest."""
        table = batches_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(batches_table)
                .where(
                    table.run_id == run_id,
                    table.state.in_(_ACTIVE),
                    or_(table.blocked_reason.is_(None), table.blocked_reason != "person"),
                )
                .order_by(table.next_at, table.number)
                .limit(limit)
            ).all()
        return [batch_record(row) for row in rows]

    def children(self, run_id: str, batch_id: int, *, limit: int = 50) -> list[int]:
        """Numbers of the batches that a batch was split into."""
        table = batches_table.c
        with self._database.read() as connection:
            return list(
                connection.execute(
                    select(table.number)
                    .where(table.run_id == run_id, table.parent_id == batch_id)
                    .order_by(table.number)
                    .limit(limit)
                ).scalars()
            )

    def neighbours(self, run_id: str, number: int) -> tuple[int | None, int | None]:
        """The numbers before and after one."""
        table = batches_table.c
        mine = table.run_id == run_id
        before = select(func.max(table.number)).where(mine, table.number < number)
        after = select(func.min(table.number)).where(mine, table.number > number)
        with self._database.read() as connection:
            return connection.execute(before).scalar(), connection.execute(after).scalar()

    def bills(self, batch_id: int) -> list[LedgerLine]:
        """Every purchase for a batch, oldest first."""
        table = ledger_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(ledger_table)
                .where(table.batch_id == batch_id)
                .order_by(table.at, table.ref)
                .limit(MOST_BILLS)
            ).mappings()
            return [LedgerLine(**row) for row in rows]

    def audited(self, run_id: str, batch_id: int, *, limit: int = 200) -> list[AuditedRow]:
        """Rows of a batch that were embedded again, the smallest cosine first."""
        table = audits_table.c
        with self._database.read() as connection:
            rows = connection.execute(
                select(audits_table)
                .where(table.run_id == run_id, table.batch_id == batch_id)
                .order_by(table.cosine)
                .limit(limit)
            ).mappings()
            return [AuditedRow(**row) for row in rows]


def _examples(connection: Connection, where: Sequence[Any], limit: int) -> list[Failure]:
    rows = connection.execute(
        select(failures_table).where(*where).order_by(failures_table.c.row).limit(limit)
    ).mappings()
    return [Failure(**{k: v for k, v in row.items() if k != "run_id"}) for row in rows]
