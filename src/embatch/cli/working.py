"""A worker: this process takes the steps of every run in the journal, or some of them."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from embatch.cli import figures
from embatch.cli.exits import ExitCode, code_of_run
from embatch.cli.session import Session
from embatch.cli.work import Interrupts

if TYPE_CHECKING:
    from embatch.cli.panel import PlainLines
    from embatch.environment import Environment
    from embatch.journal.records import RunRecord
    from embatch.journal.workers import Queue, Trouble
    from embatch.runs.status import RunStatus

LINE_EVERY_S = 10.0
"""Seconds between two lines about a run."""
LOOK_EVERY_S = 0.5
LOOK_AT_ALL_EVERY_S = 2.0
"""Where many processes look, and each look costs the shared database something."""


def work_all(session: Session, environment: "Environment", *, once: bool, threads: int) -> ExitCode:
    """Works until it is told to stop, or with `once` until no run is left that can be worked.

    Gives the worst of what became of the runs: failed, then failed rows, then done.
    """
    from embatch.execution.threads import ThreadExecutor

    executor = ThreadExecutor(
        environment.journal,
        environment.context,
        close_context=environment.release,
        threads=threads,
        clock=environment.hooks.clock,
    )
    watch = _Watch(
        session, environment, lambda _: True, hindered=executor.troubles, status_every_s=0.0
    )
    session.note(f"working every run of {environment.settings.journal}; Ctrl-C stops")
    return _work(
        session,
        environment,
        watch,
        lambda over: executor.work(until=over, poll_s=LOOK_EVERY_S),
        once=once,
    )


def work_for_all(
    session: Session,
    environment: "Environment",
    *,
    once: bool,
    queues: "Sequence[Queue]",
    concurrency: int,
) -> ExitCode:
    """As `work_all`, as one of the workers of a PostgreSQL journal: of the runs for workers, those
    whose jobs wait in `queues`."""
    from embatch.execution.workers import WorkerExecutor
    from embatch.journal.workers import queue_of

    executor = WorkerExecutor(
        environment.journal,
        environment.settings.journal,
        environment.context,
        close_context=environment.release,
        concurrency=concurrency,
        queues=queues,
        clock=environment.hooks.clock,
    )

    def is_ours(run: "RunRecord") -> bool:
        return run.config.get("execution") == "workers" and queue_of(run) in queues

    watch = _Watch(
        session, environment, is_ours, hindered=executor.troubles, status_every_s=LINE_EVERY_S
    )
    session.note(f"taking jobs from {' and '.join(queues)}; Ctrl-C stops after the steps in hand")
    return _work(
        session,
        environment,
        watch,
        lambda over: executor.work(until=over, poll_s=LOOK_AT_ALL_EVERY_S),
        once=once,
    )


class _Watch:
    """What a worker sees, and says, of the runs that are its own."""

    def __init__(
        self,
        session: Session,
        environment: "Environment",
        is_ours: "Callable[[RunRecord], bool]",
        *,
        hindered: "Callable[[], Sequence[Trouble]]",
        status_every_s: float,
    ) -> None:
        self._session = session
        self._environment = environment
        self._is_ours = is_ours
        self._hindered = hindered
        self._status_every_s = status_every_s
        self._next_status_at = 0.0
        self._views: dict[str, PlainLines] = {}
        self.statuses: dict[str, RunStatus] = {}
        """The last that was seen of each run."""
        self.left: dict[str, str] = {}
        """Its own runs that this machine cannot work, each with the reason."""
        self.foreign = 0
        """Runs that want to be worked, and are not its own."""

    def look(self) -> bool:
        """Looks at the runs. Gives whether one is left that can be worked here."""
        from embatch.cli.panel import PlainLines
        from embatch.execution.steps import WORKING_STATES
        from embatch.runs.status import read_status

        journal, now = self._environment.journal, self._environment.now()
        runs = journal.list_runs(states=WORKING_STATES)
        working = {run.id for run in runs if self._is_ours(run)}
        moved = {name for name, status in self.statuses.items() if not status.finished} - working
        if time.monotonic() >= self._next_status_at:
            self._next_status_at = time.monotonic() + self._status_every_s
            moved |= working
        for name in sorted(moved | (working - self.statuses.keys())):
            status = read_status(journal, name, now=now, works_here=True)
            self.statuses[name] = status
            every_s = None if self._session.as_json else LINE_EVERY_S
            view = PlainLines(self._session.err, every_s=every_s)
            self._views.setdefault(name, view).show(status)
        self.left = {one.run_id: one.what for one in self._hindered() if one.run_id in working}
        self.foreign = len(runs) - len(working)
        return not working <= self.left.keys()

    def tell_what_is_left(self) -> None:
        """Says what `--once` leaves undone."""
        for name, why in self.left.items():
            self._session.note(
                f"run {name} is left undone, this machine cannot work it: {why}", style="yellow"
            )
        if self.foreign:
            runs = figures.counted(self.foreign, "run")
            self._session.note(f"{runs} of other queues, or of no worker, left undone")


def _work(
    session: Session,
    environment: "Environment",
    watch: _Watch,
    work: "Callable[[Callable[[], bool]], None]",
    *,
    once: bool,
) -> ExitCode:
    with Interrupts(session.err) as interrupts:

        def over() -> bool:
            if interrupts.signal is not None:
                return True  # also while the journal is away
            wanted = watch.look()
            return once and not wanted

        with environment.courier() as courier:
            work(over)
            if interrupts.signal is None:
                courier.linger()
        environment.close_providers()
    statuses = watch.statuses
    if interrupts.signal is not None:
        code = interrupts.code
    else:
        watch.look()
        watch.tell_what_is_left()
        code = _worst([code_of_run(status) for status in statuses.values()])
    if session.as_json:
        session.emit(
            {"runs": [status.to_json() for status in statuses.values()], "exit_code": int(code)}
        )
    return code


def _worst(codes: list[ExitCode]) -> ExitCode:
    if any(code in (ExitCode.FAILED, ExitCode.USAGE) for code in codes):
        return ExitCode.FAILED
    order = (ExitCode.BUDGET, ExitCode.UNFINISHED, ExitCode.FAILED_ROWS)
    return next((code for code in order if code in codes), ExitCode.DONE)
