"""A worker: one of any number of processes that take jobs from the queues of a journal."""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
from procrastinate import App
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.jobs import Status
from procrastinate.worker import Worker

from embatch.errors import JournalError
from embatch.execution.contexts import Contexts
from embatch.execution.jobs import QUEUES, Job, Task
from embatch.execution.keeper import LeaseKeeper
from embatch.execution.patience import FIRST_WAIT_S, LONGEST_WAIT_S, Patience
from embatch.execution.presence import Presence
from embatch.execution.procrastinate import (
    STALLED_S,
    JobQueue,
    away,
    open_app,
    prepare,
    queue_name,
)
from embatch.execution.steps import LEASE_S
from embatch.execution.turns import Turn, Turns
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.journal.workers import Queue, Trouble
from embatch.runs.context import RunContext

log = logging.getLogger("embatch.execution")

COMPUTE_AT_ONCE: Final = 2
"""Batches of the local engine that a worker has in hand: one is embedded while another is read
and written. More would keep them from machines that are idle."""
POLL_S: Final = 1.0
"""How often a worker looks for jobs whose time has come; new ones are heard of at once."""
RESCUE_CRON: Final = "* * * * * */15"
"""Every 15 s, by one worker for all."""
PREPARE_AGAIN_S: Final = 1.0
"""Seconds between two tries to reach a database that is away when a worker begins."""
_LOOK_S: Final = 0.1
_TASKS: Final[tuple[Task, ...]] = ("dispatch", "step", "plan", "finish", "watch")
_AWAY: Final = (ConnectorException, psycopg.Error, OSError, TimeoutError)

_Given = TypeVar("_Given")


class WorkerExecutor:
    """Takes jobs until `stop` is called. One worker is as good as any other of its queues."""

    def __init__(
        self,
        journal: Journal,
        url: str,
        open_context: Callable[[RunRecord], RunContext],
        *,
        close_context: Callable[[str], None] = lambda _: None,
        concurrency: int = 4,
        queues: Sequence[Queue] = QUEUES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`url` is the journal's, which must be on PostgreSQL; else ConfigError."""
        self._url = url
        self._queues = queues
        self._clock = clock
        self._slots = {
            queue: min(concurrency, COMPUTE_AT_ONCE) if queue == "compute" else concurrency
            for queue in queues
        }
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._failure: BaseException | None = None
        self._patience = Patience(self._stopping)
        self._keeper = LeaseKeeper(journal.leases, lease_s=LEASE_S)
        self._contexts = Contexts(open_context, close_context, clock)
        self._presence = Presence(
            journal.workers,
            execution="workers",
            concurrency=concurrency,
            queues=queues,
            troubles=self._contexts.troubles,
            clock=clock,
        )
        self._turns = Turns(
            journal,
            self._contexts,
            keeper=self._keeper,
            presence=self._presence,
            stopping=self._stopping,
            clock=clock,
            patience=self._patience,
        )
        self._threads = ThreadPoolExecutor(sum(self._slots.values()) + 1, "embatch-job")

    def troubles(self) -> list[Trouble]:
        """The runs that this machine leaves to others, each with what is wrong here."""
        return self._contexts.troubles()

    def stop(self) -> None:
        """Asks the worker to end after the steps in hand. Safe in a signal handler's thread."""
        self._stopping.set()
        self._news.set()

    def work(
        self, *, until: Callable[[], bool], poll_s: float = 0.5, timeout_s: float | None = None
    ) -> None:
        """Takes jobs until `until()` holds or `stop` is called, or for `timeout_s`.

        While the database is away it waits, and goes on when it is back. Another error that
        belongs to no run is raised here.
        """
        if not self._prepare(until):
            return
        _quieten()
        loop = threading.Thread(target=self._run, name="embatch-worker")
        self._keeper.start()
        self._presence.start()
        loop.start()
        try:
            ends_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
            while not self._stopping.is_set() and (left := ends_at - time.monotonic()) > 0:
                if self._is_over(until):
                    break
                self._news.wait(min(poll_s, left))
        finally:
            self.stop()
            loop.join()
            self._threads.shutdown()
            self._keeper.stop()
            self._presence.stop()
        if self._failure is not None:
            raise self._failure

    def _prepare(self, until: Callable[[], bool]) -> bool:
        """Makes the tables of jobs. False when it is over before the database takes them."""
        while True:
            try:
                prepare(self._url)
            except JournalError as error:
                if not self._patience.bears(error):
                    raise
                if self._is_over(until) or self._stopping.wait(PREPARE_AGAIN_S):
                    return False
            else:
                self._patience.relax()
                return True

    def _is_over(self, until: Callable[[], bool]) -> bool:
        try:
            return until()
        except JournalError as error:
            if not self._patience.bears(error):
                raise
            return False

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - a thread's outer edge: `work` raises it
            self._failure = error
            self.stop()

    async def _serve(self) -> None:
        """Works, and begins anew whenever the connection to the database was lost."""
        asyncio.get_running_loop().set_exception_handler(_note_lost_job)
        wait_s = FIRST_WAIT_S
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                app = self._open_app()
                async with app.open_async():
                    await self._take_jobs(app)
            except _AWAY as error:
                trouble = away(error, "the queues of jobs are away")
                if not self._patience.bears(trouble):
                    log.warning("%s: tried again", trouble)
            if time.monotonic() - began > LONGEST_WAIT_S:
                wait_s = FIRST_WAIT_S
            await self._sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, wait_s * 2)

    async def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping.is_set() and time.monotonic() < until:
            await asyncio.sleep(_LOOK_S)

    async def _take_jobs(self, app: App) -> None:
        """Runs a Procrastinate worker for each queue until one of them ends, or it is time."""
        workers = [
            Worker(
                app,
                queues=[queue_name(queue)],
                name=f"embatch-{queue}",
                concurrency=slots,
                fetch_job_polling_interval=POLL_S,
                delete_jobs="always",
                install_signal_handlers=False,
                stalled_worker_timeout=STALLED_S,
            )
            for queue, slots in self._slots.items()
        ]
        for queue in self._queues:
            await _rescue_now(app, queue)
        running = [asyncio.create_task(_run(worker)) for worker in workers]
        self._patience.relax()
        while not self._stopping.is_set() and not any(task.done() for task in running):
            await asyncio.sleep(_LOOK_S)
        while not all(task.done() for task in running):
            for worker in workers:
                worker.stop()  # type: ignore[no-untyped-call] # untyped there
            await asyncio.wait(running, timeout=_LOOK_S)
        ends = await asyncio.gather(*running, return_exceptions=True)
        error = next((end for end in ends if isinstance(end, BaseException)), None)
        if error is not None:
            raise error

    # Jobs

    def _open_app(self) -> App:
        app = open_app(self._url, connections=min(8, sum(self._slots.values()) + 2))
        queue = JobQueue(app)
        for name in _TASKS:
            app.task(name=f"embatch.{name}")(_job(partial(self._do, queue, name)))
        for one in QUEUES:
            task = app.task(name=f"embatch.rescue.{one}")(_rescue(partial(self._rescue, app, one)))
            app.periodic(
                cron=RESCUE_CRON,
                periodic_id=one,
                queue=queue_name(one),
                queueing_lock=f"embatch:rescue:{one}",
            )(task)
        return app

    async def _do(self, queue: JobQueue, task: Task, run_id: str, batch_id: int | None) -> None:
        """One job. One that breaks is named in the log, and the next rescue makes it anew."""
        try:
            turn: Turn = await self._in_thread(lambda: self._turns.take(task, run_id, batch_id))
            await self._put(queue, turn.jobs)
            if turn.work is not None:
                await self._put(queue, await self._in_thread(turn.work))
        except JournalError as error:
            log.warning("run %s: a job (%s) is given up, and made anew: %s", run_id, task, error)
        except Exception as error:  # noqa: BLE001 - a job's outer edge: the worker goes on
            log.error("run %s: a job (%s) broke: %s", run_id, task, type(error).__name__)

    async def _rescue(self, app: App, queue: Queue) -> None:
        name = queue_name(queue)
        await app.job_manager.prune_stalled_workers(2 * STALLED_S)
        for job in await app.job_manager.get_stalled_jobs(
            queue=name, seconds_since_heartbeat=STALLED_S
        ):
            await app.job_manager.finish_job(job, status=Status.FAILED, delete_job=True)
        await app.job_manager.delete_old_jobs(
            nb_hours=1,
            queue=name,
            include_failed=True,
            include_cancelled=True,
            include_aborted=True,
        )
        jobs = await self._in_thread(lambda: self._turns.rescue(queue))
        await self._put(JobQueue(app), jobs)

    async def _in_thread(self, call: Callable[[], _Given]) -> _Given:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def _put(self, queue: JobQueue, jobs: Sequence[Job]) -> None:
        """Puts jobs into the queues, however long the database is away; not when it is time."""
        wait_s = FIRST_WAIT_S
        while jobs:
            try:
                await queue.put(jobs, now=self._clock())
                return
            except _AWAY as error:
                if self._stopping.is_set():
                    raise away(error, "the queues of jobs are away") from error
                await self._sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)


def _job(do: Callable[[str, int | None], Any]) -> Callable[..., Any]:
    async def job(run_id: str, batch_id: int | None = None) -> None:
        await do(run_id, batch_id)

    return job


def _rescue(do: Callable[[], Any]) -> Callable[..., Any]:
    async def rescue(timestamp: int) -> None:  # noqa: ARG001 - Procrastinate's signature
        try:
            await do()
        except Exception as error:  # noqa: BLE001 - a job's outer edge: the next one looks again
            log.warning("what lost its job is looked for again later: %s", type(error).__name__)

    return rescue


async def _run(worker: Worker) -> None:
    await worker.run()  # type: ignore[no-untyped-call] # Procrastinate leaves it untyped


async def _rescue_now(app: App, queue: Queue) -> None:
    """A worker that begins looks at once for what has no job."""
    try:
        await app.configure_task(
            f"embatch.rescue.{queue}",
            queue=queue_name(queue),
            queueing_lock=f"embatch:rescue:{queue}",
        ).defer_async(timestamp=0)
    except AlreadyEnqueued:
        log.debug("a rescue waits already")


def _note_lost_job(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A job whose end could not be written: it is made anew, or was given up while it ran."""
    log.info("a job's end was not written: %s", type(context.get("exception")).__name__)


def _quieten() -> None:
    """What Procrastinate and its pool log is told in our own words; their lines quote arguments."""
    for name in ("procrastinate", "psycopg.pool", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
