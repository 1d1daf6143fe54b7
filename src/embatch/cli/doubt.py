"""Commands for what embatch cannot decide by itself: jobs in doubt, and jobs nobody waits for."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from embatch.cli import figures, options
from embatch.cli.session import Session, find_run
from embatch.errors import InvalidRequestError

WORDS = {
    "forgotten": "its run is forgotten here",
    "late": "its batch has gone on without it",
    "foreign": "made by another journal",
}


def resolve(
    context: typer.Context,
    run: options.RunName,
    batch: Annotated[int, typer.Argument(metavar="BATCH", help="The batch's number.", min=0)],
    adopt: Annotated[
        str | None,
        typer.Option("--adopt", metavar="NAME", help="Its job is the one of this name."),
    ] = None,
    absent: Annotated[
        bool, typer.Option("--absent", help="Its job is surely gone: its rows are bought again.")
    ] = False,
    timeout: options.Timeout = None,
    no_wait: options.NoWait = False,
    journal: options.Journal = None,
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    as_json: options.Json = False,
) -> None:
    """Decide about a batch whose job is in doubt, and go on with the run."""
    from embatch.api import Run
    from embatch.cli.run import work_on

    if (adopt is None) == (not absent):
        raise InvalidRequestError(
            f"say what became of batch {batch}: --adopt NAME when its job is there, or --absent"
        )
    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        handle = Run(environment, find_run(environment, run).id)
        handle.resolve(batch, adopt=adopt)
        words = f"goes on with {adopt}" if adopt else "is sent again"
        session.note(f"batch {batch} of run {handle.id} {words}")
        if not no_wait:
            work_on(session, environment, handle, timeout=timeout)
        status = handle.status()
    if session.as_json:
        session.emit(status.to_json() | {"exit_code": 0})
    session.say(f"go on with: embatch resume {status.id}")


def orphans(
    context: typer.Context,
    provider: options.Provider = None,
    staging: options.Staging = None,
    cancel: Annotated[
        str | None,
        typer.Option(
            "--cancel", metavar="NAME", help="Stop this job; once it has ended, remove it."
        ),
    ] = None,
    adopt: Annotated[
        str | None,
        typer.Option("--adopt", metavar="NAME", help="Have its batch go on with this job."),
    ] = None,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="The job to cancel may be another journal's.")
    ] = False,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """List the jobs at a provider that embatch made and no run waits for; cancel or adopt one."""
    session = Session.of(context, journal=journal, as_json=as_json)
    if cancel is not None and adopt is not None:
        raise InvalidRequestError("a job is either cancelled or adopted: give one of the two")
    if adopt is not None:
        _adopt(session, adopt, provider=provider, staging=staging)
    elif cancel is not None:
        _cancel(session, cancel, provider=provider, staging=staging, foreign=foreign)
    else:
        _list(session, provider=provider, staging=staging)


def _list(session: Session, *, provider: str | None, staging: str | None) -> None:
    from embatch.runs.orphans import find_orphans

    with session.environment() as environment, session.busy("reading the provider's list"):
        service = environment.service(provider, staging=staging)
        found = list(find_orphans(environment.journal, service))
    if session.as_json:
        session.emit({"orphans": [orphan.to_json() for orphan in found]})
        return
    if not found:
        session.say("no orphans: every job of embatch at the provider belongs to a run")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("job", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    for column in ("made", "run", "why"):
        table.add_column(column, overflow="fold")
    for orphan in found:
        table.add_row(
            Text(orphan.name),
            Text(orphan.state),
            "?" if orphan.rows is None else figures.count(orphan.rows),
            "?" if orphan.created_at is None else figures.moment(orphan.created_at),
            f"{orphan.run_id}, batch {orphan.batch}",
            WORDS[orphan.standing],
        )
    session.out.print(table)
    session.say("stop and remove one: embatch orphans --cancel NAME")


def _cancel(
    session: Session, name: str, *, provider: str | None, staging: str | None, foreign: bool
) -> None:
    from embatch.runs.orphans import remove_orphan

    with session.environment() as environment:
        gone = remove_orphan(
            environment.journal,
            environment.service(provider, staging=staging),
            name,
            foreign=foreign,
            now=environment.now(),
        )
    if session.as_json:
        session.emit({"name": name, "removed": gone})
    if gone:
        session.say(f"{name} is removed")
    else:
        session.say(f"{name} is asked to stop; the same command again removes it once it has ended")


def _adopt(session: Session, name: str, *, provider: str | None, staging: str | None) -> None:
    from embatch.api import Run
    from embatch.runs.orphans import batch_of_orphan

    with session.environment() as environment:
        service = environment.service(provider, staging=staging)
        run_id, number = batch_of_orphan(environment.journal, service, name)
        Run(environment, run_id).resolve(number, adopt=name)
    if session.as_json:
        session.emit({"name": name, "run": run_id, "batch": number})
    session.say(f"batch {number} goes on with {name}; work on it with: embatch resume {run_id}")
