"""The command that works for others, and the one that shows who does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from embatch.cli import figures, options
from embatch.cli.session import Session
from embatch.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from embatch.environment import Environment
    from embatch.journal.workers import Queue, WorkerRecord
    from embatch.runs.status import RunStatus

THREADS = 3
"""Of a worker on a SQLite journal, as of a run."""
AT_ONCE = 4
"""Jobs that a worker on a PostgreSQL journal takes at once: most of them wait for a service."""
BEGIN_S = 60.0
"""How long a worker that begins waits for a database that is away, before it gives up."""
_STYLES = {"alive": "green", "dead": "red", "stopped": "dim"}


def worker(
    context: typer.Context,
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency",
            metavar="N",
            min=1,
            help="Steps to take at once.  Default: 3, on a PostgreSQL journal 4.",
        ),
    ] = None,
    queues: Annotated[
        str | None,
        typer.Option(
            "--queues",
            metavar="Q,Q",
            help="What to take from a PostgreSQL journal: io (clouds), compute (local embedding)."
            "  Default: both.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="End when no run is left to work on.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve metrics for Prometheus here; 0 takes a free port.  Default: none.",
            show_default=False,
        ),
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            "--metrics-host",
            metavar="HOST",
            help="Address of --metrics-port. Whoever reaches it reads counts and names of models.",
        ),
    ] = "127.0.0.1",
    journal: options.Journal = None,
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    as_json: options.Json = False,
) -> None:
    """Work every run of a SQLite journal, or be one of the workers of a PostgreSQL journal."""
    from embatch.cli.working import work_all, work_for_all

    session = Session.of(context, journal=journal, as_json=as_json)
    wanted = _parse_queues("io,compute" if queues is None else queues)
    with (
        session.environment(wait_s=BEGIN_S) as environment,
        _metrics(session, environment, metrics_host, metrics_port),
    ):
        if environment.settings.journal.startswith("sqlite"):
            if queues is not None:
                raise InvalidRequestError(
                    "--queues is for a journal on PostgreSQL: this one is a file, of which one "
                    "machine works every run; leave it out, or name another with --journal"
                )
            code = work_all(session, environment, once=once, threads=concurrency or THREADS)
        else:
            code = work_for_all(
                session, environment, once=once, queues=wanted, concurrency=concurrency or AT_ONCE
            )
    raise typer.Exit(code)


@contextmanager
def _metrics(
    session: Session, environment: "Environment", host: str, port: int | None
) -> Iterator[None]:
    """Serves metrics meanwhile, where a port was given."""
    if port is None:
        yield
        return
    from embatch.runs.measures import read_figures

    try:
        from embatch.observe.metrics import serve
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'embatch[serve]'") from None
    journal, now = environment.journal, environment.now
    with serve(lambda: read_figures(journal, now=now()), host=host, port=port) as bound:
        session.note(f"metrics: http://{host}:{bound}/metrics")
        yield


def workers(
    context: typer.Context,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """Show which processes work on the journal's runs, where, and on what."""
    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        found, now = environment.journal.workers.every(), environment.now()
    if session.as_json:
        shown = [{**asdict(one), "state": one.state} for one in found]
        session.emit({"workers": shown})
        return
    if not found:
        session.say("no process works on this journal: embatch worker starts one")
        return
    session.out.print(_table(found, now=now))


def leave_to_workers(session: Session, environment: "Environment", status: "RunStatus") -> None:
    """Says of a run that was handed over how to look at it, and when nobody works on it."""
    warn_without_workers(session, environment, status.id)
    if session.as_json:
        session.emit(status.to_json() | {"exit_code": 0})
    session.say(f"run {status.id} is handed to the workers; look: embatch watch {status.id}")


def warn_without_workers(session: Session, environment: "Environment", run_id: str) -> None:
    """Says that nothing will happen to a run for workers while none is alive for its queue."""
    from embatch.journal.workers import queue_of
    from embatch.runs.attendance import WORKING_STATES

    run = environment.journal.get_run(run_id)
    if run.config.get("execution") != "workers" or run.state not in WORKING_STATES:
        return
    queue = queue_of(run)
    table = environment.journal.workers
    if table.serves(queue, run.id):
        return
    hindrances = table.hindrances(queue, run.id)
    if hindrances:
        said = "; ".join(f"{host}: {what}" for host, what in sorted(hindrances.items()))
        session.note(f"warning: no worker can work the run: {said}", style="yellow")
    else:
        session.note(
            f"warning: no worker alive for the queue {queue}: start one, on any machine, with: "
            f"embatch worker --journal URL --queues {queue}",
            style="yellow",
        )


def _parse_queues(value: str) -> "list[Queue]":
    from embatch.execution.jobs import QUEUES

    names = options.split_columns(value)
    if not names or not set(names) <= set(QUEUES):
        raise InvalidRequestError(
            f"--queues {value!r} names no queues: give io, compute, or both as io,compute"
        )
    return [queue for queue in QUEUES if queue in names]


def _table(found: "list[WorkerRecord]", *, now: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("worker", "state", "host", "pid", "takes", "since", "seen"):
        table.add_column(name, no_wrap=name != "host", overflow="fold")
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("on", overflow="fold")
    for one in found:
        doing = [f"cannot work {trouble.run_id}: {trouble.what}" for trouble in one.troubles]
        doing += [
            f"{step.run_id} {step.step}" + ("" if step.batch is None else f" of batch {step.batch}")
            for step in one.doing
        ]
        table.add_row(
            one.id,
            Text(one.state, style=_STYLES[one.state]),
            Text(one.host),
            str(one.pid),
            ",".join(one.queues) or "threads",
            figures.moment(one.started_at),
            f"{figures.duration(max(0.0, now - one.seen_at))} ago",
            figures.count(one.steps),
            Text(", ".join(doing)),
        )
    return table
