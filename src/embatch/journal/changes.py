"""What has changed in the journal since the last look: which runs, in a few small queries."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select

from embatch.journal.database import Database
from embatch.journal.schema import batches_table, events_table, runs_table, workers_table
from embatch.types.state import BatchState, RunState

WINDOW: Final = 500
"""Events of so many last ids are looked at again: of two transactions the one with the smaller id
may be seen later."""
MOST: Final = 5_000
"""Events read in one look; when there are more, everything counts as changed."""
_OPEN_RUNS: Final = (RunState.PLANNING.value, RunState.RUNNING.value, RunState.PARKED.value)
_UNDER_WAY: Final = (
    BatchState.UPLOADING.value,
    BatchState.UPLOADED.value,
    BatchState.SUBMITTING.value,
    BatchState.SUBMITTED.value,
    BatchState.READY.value,
    BatchState.COLLECTED.value,
)


class ChangeWatch:
    """Looks again and again. For one thread at a time; it holds a few thousand numbers at most."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._newest: int | None = None
        self._seen: set[int] = set()
        self._marks: dict[str, tuple[object, ...]] = {}
        self._workers: object = None
        self._runs: tuple[object, ...] | None = None
        self._known: set[str] = set()

    @property
    def open_runs(self) -> list[str]:
        """Runs that have not ended, as of the last look."""
        return list(self._marks)

    def look(self) -> tuple[set[str], bool, bool]:
        """Runs that changed or were forgotten since the last look, whether more did than can be
        told, and whether workers did. The first look finds nothing changed."""
        first = self._newest is None
        runs, overflow = self._new_events()
        runs |= self._new_marks() | self._forgotten()
        workers = self._workers_changed()
        return (set(), False, False) if first else (runs, overflow, workers)

    def _new_events(self) -> tuple[set[str], bool]:
        """An event's id tells that its run has moved."""
        table = events_table.c
        with self._database.read() as connection:
            newest = int(connection.execute(select(func.max(table.id))).scalar() or 0)
            if self._newest is None:
                self._newest = newest
            after = max(0, self._newest - WINDOW)
            found: Sequence[tuple[int, str]] = []
            if newest > after:
                rows = connection.execute(
                    select(table.id, table.run_id).where(table.id > after).limit(MOST)
                ).all()
                found = [(int(number), str(run_id)) for number, run_id in rows]
        changed = {run_id for number, run_id in found if number not in self._seen}
        self._newest = max(newest, self._newest)
        self._seen = {number for number, _ in found if number > self._newest - WINDOW}
        return changed, len(found) == MOST

    def _new_marks(self) -> set[str]:
        """Looks at jobs leave no event: counts and times of what is under way tell of them."""
        run, batch = runs_table.c, batches_table.c
        with self._database.read() as connection:
            runs = connection.execute(
                select(run.id, run.updated_at, run.lease_expires_at).where(
                    run.state.in_(_OPEN_RUNS)
                )
            ).all()
            marks: dict[str, tuple[object, ...]] = {
                str(run_id): (updated, lease) for run_id, updated, lease in runs
            }
            rows = connection.execute(
                select(
                    batch.run_id,
                    func.count(),
                    func.max(batch.next_at),
                    func.sum(batch.next_at),
                    func.sum(batch.succeeded),
                    func.count(batch.lease_token),
                )
                .where(batch.run_id.in_(list(marks)), batch.state.in_(_UNDER_WAY))
                .group_by(batch.run_id)
            ).all()
        for row in rows:
            marks[str(row[0])] += tuple(row[1:])
        changed = {name for name, mark in marks.items() if self._marks.get(name) != mark}
        self._marks = marks
        return changed

    def _forgotten(self) -> set[str]:
        """Runs that are gone, with all that told of them."""
        run = runs_table.c
        with self._database.read() as connection:
            mark = tuple(connection.execute(select(func.count(), func.sum(run.created_at))).one())
            if mark == self._runs:
                return set()
            ids = {str(run_id) for run_id in connection.execute(select(run.id)).scalars()}
        gone, self._known, self._runs = self._known - ids, ids, mark
        return gone

    def _workers_changed(self) -> bool:
        table = workers_table.c
        with self._database.read() as connection:
            mark: object = tuple(
                connection.execute(
                    select(func.count(), func.max(table.seen_at), func.max(table.stopped_at))
                ).one()
            )
        before, self._workers = self._workers, mark
        return mark != before
