"""A worker: this process takes the steps of every run in the journal."""

from typing import TYPE_CHECKING

from embatch.cli.exits import ExitCode, code_of_run
from embatch.cli.session import Session
from embatch.cli.work import Interrupts

if TYPE_CHECKING:
    from embatch.environment import Environment
    from embatch.runs.status import RunStatus


def work_all(session: Session, environment: "Environment", *, once: bool) -> ExitCode:
    """Works until it is told to stop, or with `once` until no run is left that can be worked.

    Gives the worst of what became of the runs: failed, then failed rows, then done.
    """
    from embatch.cli.panel import PlainLines
    from embatch.execution.steps import WORKING_STATES
    from embatch.execution.threads import ThreadExecutor
    from embatch.runs.status import read_status

    journal = environment.journal
    views: dict[str, PlainLines] = {}
    statuses: dict[str, RunStatus] = {}

    def look() -> None:
        working = {run.id for run in journal.list_runs(states=WORKING_STATES)}
        open_before = {name for name, status in statuses.items() if not status.finished}
        for name in sorted(working | open_before):
            status = statuses[name] = read_status(
                journal, name, now=environment.now(), works_here=True
            )
            every_s = None if session.as_json else LINE_EVERY_S
            views.setdefault(name, PlainLines(session.err, every_s=every_s)).show(status)

    def over() -> bool:
        look()
        idle = not any(status.state in WORKING_STATES for status in statuses.values())
        return interrupts.signal is not None or (once and idle)

    session.note(f"working every run of {environment.settings.journal}; Ctrl-C stops")
    with Interrupts(session.err) as interrupts:
        executor = ThreadExecutor(
            journal,
            environment.context,
            close_context=environment.release,
            clock=environment.hooks.clock,
        )
        with environment.courier() as courier:
            executor.work(until=over, poll_s=LOOK_EVERY_S)
            if interrupts.signal is None:
                courier.linger()
        environment.close_providers()
    look()
    if interrupts.signal is not None:
        code = interrupts.code
    else:
        code = _worst([code_of_run(status) for status in statuses.values()])
    if session.as_json:
        session.emit(
            {"runs": [status.to_json() for status in statuses.values()], "exit_code": int(code)}
        )
    return code


LINE_EVERY_S = 10.0
"""Seconds between two lines about a run."""
LOOK_EVERY_S = 0.5


def _worst(codes: list[ExitCode]) -> ExitCode:
    if any(code in (ExitCode.FAILED, ExitCode.USAGE) for code in codes):
        return ExitCode.FAILED
    order = (ExitCode.BUDGET, ExitCode.UNFINISHED, ExitCode.FAILED_ROWS)
    return next((code for code in order if code in codes), ExitCode.DONE)
