"""Commands that look at runs, and the one that forgets them."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from embatch.cli import figures, options
from embatch.cli.session import Session, find_run
from embatch.errors import InvalidRequestError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from embatch.journal.records import Failure
    from embatch.runs.status import RunStatus

SHOWN_FAILURES = 20
ROOMY_WIDTH = 110
"""From so many characters on, the list of runs shows outputs too."""


def runs(
    context: typer.Context,
    tag: options.Tags = None,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """List the runs of the journal, newest first."""
    from embatch.runs.status import read_status

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        records = environment.journal.list_runs(tags=options.parse_tags(tag))
        statuses = [
            read_status(environment.journal, record.id, now=environment.now()) for record in records
        ]
    if session.as_json:
        session.emit({"runs": [status.to_json() for status in statuses]})
        return
    if not statuses:
        session.say("no runs: embatch run INPUT -o OUT starts one")
        return
    session.out.print(run_table(statuses, session.out.width))


def run_table(statuses: "Sequence[RunStatus]", width: int) -> Table:
    """A line a run, within `width` characters: outputs are left out where there is no room."""
    from embatch.cli.panel import share, state_style

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("run", no_wrap=True)
    table.add_column("name", overflow="fold", min_width=8)
    table.add_column("state", overflow="fold", min_width=10)
    table.add_column("done", justify="right", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("failed", justify="right", no_wrap=True)
    table.add_column("begun", no_wrap=True)
    roomy = width >= ROOMY_WIDTH
    if roomy:
        table.add_column("out", overflow="fold")
    for status in statuses:
        cells: list[str | Text] = [
            status.id,
            Text(status.name or Path(status.out).name),
            Text("completed" if status.complete else status.words, style=state_style(status)),
            "" if not status.rows else f"{share(status):.0%}",
            "?" if status.rows is None else figures.count(status.rows),
            figures.count(status.failed),
            figures.moment(status.created_at),
        ]
        table.add_row(*cells, *([Text(status.out)] if roomy else []))
    return table


def status(
    context: typer.Context,
    run: options.OptionalRunName = None,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """Show how a run stands, the latest one if none is named."""
    from embatch.runs.status import read_status

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        record = find_run(environment, run)
        now = environment.now()
        found = read_status(environment.journal, record.id, now=now)
    if session.as_json:
        session.emit(found.to_json())
        return
    from embatch.cli.panel import MAX_WIDTH, draw_panel

    session.out.print(draw_panel(found, now=now, width=min(session.out.width, MAX_WIDTH)))
    session.say(f"output  {found.out}")
    for words in list(found.blocked.values())[1:]:
        session.say(f"waits   {words}", style="yellow")
    if found.twins:
        jobs = figures.counted(found.twins, "job")
        session.say(f"twins   {jobs} turned up that had been held absent")
    for name, value in found.tags.items():
        session.say(f"tag     {name}={value}")


def watch(
    context: typer.Context,
    run: options.OptionalRunName = None,
    timeout: options.Timeout = None,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """Follow a run that other processes work on until it ends; exits as run does."""
    from embatch.cli.history import draw_history
    from embatch.cli.work import follow, report
    from embatch.runs.status import read_status

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        run_id = find_run(environment, run).id

        def below(width: int) -> "RenderableType":
            return draw_history(environment.journal, run_id, now=environment.now(), width=width)

        found, interrupted = follow(
            session,
            lambda: read_status(environment.journal, run_id, now=environment.now()),
            timeout=timeout,
            below=below,
        )
    raise typer.Exit(report(session, found, interrupted))


def failures(
    context: typer.Context,
    run: options.RunName,
    every: Annotated[
        bool, typer.Option("--all", help=f"Show every row, not the first {SHOWN_FAILURES} alone.")
    ] = False,
    quarantined: Annotated[
        bool,
        typer.Option(
            "--quarantined", help="Show the batches that were put aside, and what showed it."
        ),
    ] = False,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """List the rows that have no vector, and why."""
    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        record = find_run(environment, run)
        if quarantined:
            from embatch.cli.audit import show_quarantined

            show_quarantined(session, environment, record.id)
            return
        counts: Counter[str] = Counter()
        shown: list[Failure] = []
        kept = 0
        for failure in environment.journal.failures(record.id):
            counts[failure.code] += 1
            kept += failure.kept
            if every or as_json or len(shown) < SHOWN_FAILURES:
                shown.append(failure)
    if session.as_json:
        rows = [
            {
                "key": failure.key,
                "row": failure.row,
                "code": failure.code,
                "message": failure.message,
                "attempts": failure.attempts,
                "kept": failure.kept,
            }
            for failure in shown
        ]
        session.emit({"run": record.id, "counts": dict(counts), "kept": kept, "failures": rows})
        return
    if not counts:
        session.say(f"run {record.id} has no failed rows")
        return
    groups = ", ".join(f"{figures.count(number)} {code}" for code, number in counts.most_common())
    session.say(f"{figures.counted(counts.total(), 'row')} failed: {groups}", style="yellow")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("key", overflow="fold")
    table.add_column("code", no_wrap=True)
    table.add_column("tries", justify="right")
    table.add_column("message", overflow="fold")
    for failure in shown:
        table.add_row(
            str(failure.row),
            Text(failure.key),
            failure.code,
            str(failure.attempts),
            Text(failure.message),
        )
    session.out.print(table)
    if counts.total() > len(shown):
        rest = figures.count(counts.total() - len(shown))
        session.say(f"and {rest} more: embatch failures {record.id} --all")
    if kept:
        session.say(f"{figures.counted(kept, 'text')} kept: embatch retry {record.id}")


def forget(
    context: typer.Context,
    run: options.RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """Remove a run from the journal with the texts kept for retry; its output stays."""
    from embatch.api import Run

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        record = find_run(environment, run)
        if not yes:
            try:
                typer.confirm(
                    f"Forget run {record.id}, its history and the texts kept for retry? "
                    f"The vectors in {record.out} stay.",
                    abort=True,
                    err=True,
                )
            except typer.Abort:
                raise InvalidRequestError(
                    f"run {record.id} is not forgotten: answer y, or type it with --yes"
                ) from None
        Run(environment, record.id).forget()
    if session.as_json:
        session.emit({"forgotten": record.id, "out": record.out})
    session.say(f"run {record.id} is forgotten; its vectors stay in {record.out}")
