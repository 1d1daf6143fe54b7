"""Waits for a run with a view of it, and hears the person who interrupts."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from embatch.cli import figures
from embatch.cli.exits import ExitCode, code_of_run
from embatch.cli.session import Session
from embatch.types.state import RunState

if TYPE_CHECKING:
    from rich.console import Console

    from embatch.api import Run
    from embatch.cli.panel import Below
    from embatch.runs.status import RunStatus


WORKING_STATES = (RunState.PLANNING, RunState.RUNNING, RunState.PARKED)
SHARE = 4.0
"""Between two looks at a journal passes so many times what the first has taken."""


class Interrupts:
    """The first SIGINT or SIGTERM is remembered, the second ends the process at once.

    Ending at once is safe at any moment: the journal and the output bear it.
    """

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._former: dict[int, Any] = {}
        self.signal: int | None = None
        """The signal that came, None before."""

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @property
    def code(self) -> ExitCode:
        """The exit code that the signal asks for."""
        return ExitCode.TERMINATED if self.signal == signal.SIGTERM else ExitCode.INTERRUPTED

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            if self._console.is_terminal:
                os.write(2, b"\x1b[?25h\n")  # the live panel hides the cursor
            os._exit(128 + number)
        self.signal = number


def wait_for(
    session: Session,
    run: "Run",
    *,
    timeout: float | None,
    enough: "Callable[[RunStatus], bool] | None" = None,
) -> tuple["RunStatus", ExitCode | None]:
    """Works on the run until it ends, with a view of it.

    Gives its last status, and the exit code of a signal that ended the waiting, None without
    one. `enough` ends the waiting early.
    """
    from embatch.cli.panel import open_view

    quiet = session.as_json
    words = "stopping after the step in hand; once more stops at once"
    if run.by_workers:
        words = "this command stops watching; the workers go on"
    with Interrupts(session.err) as interrupts, open_view(session.err, quiet=quiet) as view:

        def stop() -> bool:
            if interrupts.signal is not None:
                view.note(words)
                return True
            return enough is not None and enough(run.status())

        shown = None if quiet else view.show  # each status costs a dozen queries
        status = run.wait(timeout, on_progress=shown, stop=stop)
    return status, interrupts.code if interrupts.signal and not status.finished else None


def follow(
    session: Session,
    read: "Callable[[], RunStatus]",
    *,
    timeout: float | None,
    below: "Below | None" = None,
) -> tuple["RunStatus", ExitCode | None]:
    """Watches a run that others work, without a hand in it, until it ends or must wait.

    On a terminal `below` is drawn below the panel. A journal that answers slowly is asked less.
    """
    from embatch.api import PROGRESS_S, STOPPED_STATES
    from embatch.cli.panel import open_view

    deadline = None if timeout is None else time.monotonic() + timeout
    quiet = session.as_json
    with (
        Interrupts(session.err) as interrupts,
        open_view(session.err, quiet=quiet, below=below) as view,
    ):
        while True:
            began = time.monotonic()
            status = read()
            view.show(status)
            late = deadline is not None and time.monotonic() >= deadline
            if status.state in STOPPED_STATES or late or interrupts.signal is not None:
                break
            time.sleep(max(PROGRESS_S, SHARE * (time.monotonic() - began)))
    return status, interrupts.code if interrupts.signal and not status.finished else None


def report(
    session: Session,
    status: "RunStatus",
    interrupted: ExitCode | None,
    *,
    stood: bool = False,
    by_workers: bool = False,
) -> ExitCode:
    """Prints how a run stands at the end of a command, and gives the command's exit code.

    `stood`: the run was complete before the command began. `by_workers`: it goes on without it.
    """
    code = interrupted or code_of_run(status)
    if session.as_json:
        session.emit(status.to_json() | {"exit_code": int(code)})
        return code
    match status.state:
        case RunState.COMPLETED | RunState.COMPLETED_WITH_FAILURES:
            _report_complete(session, status, stood=stood)
        case RunState.FAILED:
            session.note(f"run {status.id} failed: {status.error}", style="red")
            session.note(f"what is written stays; go on with: embatch resume {status.id}")
        case RunState.OVER_BUDGET:
            session.note(f"run {status.id} stopped at its budget: {status.error}", style="yellow")
        case RunState.CANCELLED:
            session.note(f"run {status.id} was cancelled; go on with: embatch resume {status.id}")
        case _:
            _report_unfinished(session, status, interrupted, by_workers=by_workers)
    return code


def _report_complete(session: Session, status: "RunStatus", *, stood: bool) -> None:
    took = figures.duration((status.finished_at or status.created_at) - status.created_at)
    vectors = figures.counted(status.written, "vector")
    written = f"{vectors} of {status.dims} dims in {status.out}"
    if stood:
        session.say(f"run {status.id} is complete already: {written}; nothing to do", style="green")
    else:
        session.say(f"{written}, {took}", style="green")
    if status.truncated:
        session.say(
            f"{figures.counted(status.truncated, 'text')} longer than the model reads: "
            "cut at its limit"
        )
    if status.failed:
        rows = figures.counted(status.failed, "row")
        session.say(f"{rows} failed, see: embatch failures {status.id}", style="yellow")
    if status.success_pct < status.alert_below_pct:
        session.note(
            f"warning: {status.success_pct:.1f} % of the rows have a vector, "
            f"under the {status.alert_below_pct:g} % of --alert-below",
            style="yellow",
        )


def _report_unfinished(
    session: Session, status: "RunStatus", interrupted: ExitCode | None, *, by_workers: bool
) -> None:
    parked = status.state is RunState.PARKED
    told = status.waiting and (status.worked or parked) and interrupted is None
    reason = f": {status.waiting}" if told else ""
    session.note(f"run {status.id} is not finished{reason}")
    if by_workers and status.state in WORKING_STATES:
        session.note(
            f"the workers go on without this command; look: embatch watch {status.id}; "
            f"stop it: embatch cancel {status.id}"
        )
        return
    session.note(f"nothing is lost; go on with: embatch resume {status.id}")
