"""The command line: every command by its name. Each imports what it needs when it runs."""

from typing import Annotated

import typer

from embatch import __version__
from embatch.cli import (
    audit,
    dashboard,
    demo,
    doubt,
    inspect,
    machine,
    migrate,
    output,
    run,
    serve,
    workers,
)

app = typer.Typer(
    help="Embed millions of texts: never lose a vector, never pay twice, never mix them up.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"embatch {__version__}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback has done the work
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where an error came from, without texts.")
    ] = False,
) -> None:
    """Embed millions of texts: never lose a vector, never pay twice, never mix them up."""
    context.obj.show_traceback = traceback


RUNNING = "Embed"
LOOKING = "Look"
MACHINE = "This machine"

app.command("run", rich_help_panel=RUNNING)(run.run)
app.command("plan", rich_help_panel=RUNNING)(run.plan)
app.command("migrate", rich_help_panel=RUNNING)(migrate.migrate)
app.command("resume", rich_help_panel=RUNNING)(run.resume)
app.command("retry", rich_help_panel=RUNNING)(run.retry)
app.command("cancel", rich_help_panel=RUNNING)(run.cancel)
app.command("resolve", rich_help_panel=RUNNING)(doubt.resolve)
app.command("orphans", rich_help_panel=LOOKING)(doubt.orphans)
app.command("worker", rich_help_panel=RUNNING)(workers.worker)
app.command("workers", rich_help_panel=LOOKING)(workers.workers)
app.command("runs", rich_help_panel=LOOKING)(inspect.runs)
app.command("status", rich_help_panel=LOOKING)(inspect.status)
app.command("watch", rich_help_panel=LOOKING)(inspect.watch)
app.command("dashboard", rich_help_panel=LOOKING)(dashboard.dashboard)
app.command("failures", rich_help_panel=LOOKING)(inspect.failures)
app.command("forget", rich_help_panel=LOOKING)(inspect.forget)
app.command("verify", rich_help_panel=LOOKING)(output.verify)
app.command("audit", rich_help_panel=LOOKING)(audit.audit)
app.command("search", rich_help_panel=LOOKING)(output.search)
app.command("demo", rich_help_panel=MACHINE)(demo.demo)
app.command("models", rich_help_panel=MACHINE)(machine.models)
app.command("doctor", rich_help_panel=MACHINE)(machine.doctor)
app.command("serve", rich_help_panel=MACHINE)(serve.serve)
