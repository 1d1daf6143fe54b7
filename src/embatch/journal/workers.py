"""Which processes take steps, where, on what, and when they were last seen."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from sqlalchemy import RowMapping, delete, insert, or_, select, update

from embatch.journal.database import Database
from embatch.journal.records import RunRecord
from embatch.journal.schema import workers_table

Queue = Literal["io", "compute"]
"""Where jobs of workers wait: `io` for the clouds, `compute` for the local engine."""
DEAD_AFTER_S: Final = 60.0
"""A process that has not been seen for so long is held to be dead."""
FORGET_AFTER_S: Final = 7 * 24 * 3600.0
"""Processes that ended, or were last seen, so long ago are shown no more."""


def queue_of(run: RunRecord) -> Queue:
    """Where the jobs of a run wait: remote work and local embedding ask for other machines."""
    return "compute" if run.space["provider"] == "local" else "io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """A step that a process has in hand."""

    run_id: str
    batch: int | None
    """The batch's number; None for what concerns the whole run."""
    step: str
    """The batch's state at its beginning, or "plan", "finish", "watch"."""
    since: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a process leaves a run to others: what is wrong where it works."""

    run_id: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A process that takes steps, or took them. Times are seconds since 1970."""

    id: str
    host: str
    pid: int
    version: str
    execution: str
    """"threads" or "workers"."""
    queues: tuple[str, ...]
    """What it takes from the queues of workers; a process of threads has none."""
    concurrency: int
    started_at: float
    seen_at: float
    stopped_at: float | None
    """When it said goodbye; None while it works, and of one that was killed."""
    steps: int
    """Taken since it began."""
    doing: tuple[Doing, ...]
    troubles: tuple[Trouble, ...]
    """Runs that it cannot work, each with what is wrong there."""
    alive: bool
    """It has not said goodbye and was seen a moment ago."""

    @property
    def state(self) -> str:
        """One word: alive, stopped or dead."""
        if self.alive:
            return "alive"
        return "dead" if self.stopped_at is None else "stopped"


class WorkerTable:
    """Who works. The database's clock counts: machines may disagree about the time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(
        self,
        *,
        host: str,
        pid: int,
        version: str,
        execution: str,
        queues: Sequence[str],
        concurrency: int,
    ) -> str:
        """Enters a process that begins to work. Gives its id."""
        worker_id = f"w{secrets.token_hex(5)}"
        with self._database.write() as connection:
            now = self._database.lease_now(connection)
            connection.execute(
                insert(workers_table).values(
                    id=worker_id,
                    host=host,
                    pid=pid,
                    version=version,
                    execution=execution,
                    queues=list(queues),
                    concurrency=concurrency,
                    started_at=now,
                    seen_at=now,
                    steps=0,
                    doing=[],
                    troubles=[],
                )
            )
        return worker_id

    def beat(
        self,
        worker_id: str,
        *,
        steps: int,
        doing: Iterable[Doing],
        troubles: Iterable[Trouble] = (),
    ) -> bool:
        """Says that the process lives, on what it works, and what it cannot work. False when it is
        not entered."""
        with self._database.write() as connection:
            changed = connection.execute(
                update(workers_table)
                .where(workers_table.c.id == worker_id)
                .values(
                    seen_at=self._database.lease_now(connection),
                    stopped_at=None,
                    steps=steps,
                    doing=[asdict(one) for one in doing],
                    troubles=[asdict(one) for one in troubles],
                )
            )
            return changed.rowcount == 1

    def leave(self, worker_id: str, *, steps: int) -> None:
        """The process has ended its work."""
        with self._database.write() as connection:
            now = self._database.lease_now(connection)
            connection.execute(
                update(workers_table)
                .where(workers_table.c.id == worker_id)
                .values(seen_at=now, stopped_at=now, steps=steps, doing=[], troubles=[])
            )

    def every(self) -> list[WorkerRecord]:
        """Every process of the last days, the living first, each kind in the order of its start."""
        with self._database.read() as connection:
            now = self._database.lease_now(connection)
            rows = connection.execute(select(workers_table)).mappings().all()
        records = [_record(row, now) for row in rows]
        return sorted(records, key=lambda one: (not one.alive, one.started_at, one.id))

    def serves(self, queue: Queue, run_id: str | None = None) -> bool:
        """A worker that takes from `queue` is alive, and can work this run as far as it knows."""
        return any(
            all(one.run_id != run_id for one in worker.troubles) for worker in self._serving(queue)
        )

    def hindrances(self, queue: Queue, run_id: str) -> dict[str, str]:
        """What keeps the workers alive that take from `queue` from working the run, by host."""
        return {
            worker.host: one.what
            for worker in self._serving(queue)
            for one in worker.troubles
            if one.run_id == run_id
        }

    def _serving(self, queue: Queue) -> list[WorkerRecord]:
        table = workers_table.c
        with self._database.read() as connection:
            now = self._database.lease_now(connection)
            rows = connection.execute(
                select(workers_table).where(
                    table.seen_at >= now - DEAD_AFTER_S,
                    table.stopped_at.is_(None),
                    table.execution == "workers",
                )
            ).mappings()
            return [one for row in rows if queue in (one := _record(row, now)).queues]

    def prune(self) -> int:
        """Forgets those that ended, or were last seen, long ago. Gives how many."""
        table = workers_table.c
        with self._database.write() as connection:
            before = self._database.lease_now(connection) - FORGET_AFTER_S
            gone = delete(workers_table).where(
                or_(table.seen_at < before, table.stopped_at < before)
            )
            return connection.execute(gone).rowcount


def _record(row: RowMapping, now: float) -> WorkerRecord:
    values = dict(row)
    values["queues"] = tuple(values["queues"])
    values["troubles"] = tuple(Trouble(**one) for one in values["troubles"])
    values["doing"] = tuple(Doing(**one) for one in values["doing"])
    alive = values["stopped_at"] is None and values["seen_at"] >= now - DEAD_AFTER_S
    return WorkerRecord(**values, alive=alive)
