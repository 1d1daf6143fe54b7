"""Commands about this machine: which models it has, and whether all is well."""

from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from embatch.cli import figures, options
from embatch.cli.exits import ExitCode
from embatch.cli.session import Session
from embatch.errors import ConfigError

MARKS = {True: ("✓", "green"), False: ("✗", "red"), None: ("·", "dim")}


def models(context: typer.Context, as_json: options.Json = False) -> None:
    """List the models that run here without a download."""
    from embatch.local.models import DEFAULT_MODEL, installed_models

    session = Session.of(context, as_json=as_json)
    found = installed_models()
    if session.as_json:
        session.emit(
            {
                "models": [
                    {
                        "name": model.name,
                        "dims": model.dims,
                        "max_tokens": model.max_tokens,
                        "pooling": model.pooling,
                        "read_from": model.kind,
                        "size_bytes": _size(model.weights),
                        "prompts": sorted(model.prompts),
                        "path": str(model.path),
                        "default": model.name == DEFAULT_MODEL,
                    }
                    for model in found
                ]
            }
        )
        return
    if not found:
        session.say(_how_to_get(DEFAULT_MODEL))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model", no_wrap=True)
    table.add_column("dims", justify="right")
    table.add_column("max tokens", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("path", overflow="fold")
    for model in found:
        table.add_row(
            Text(model.name + (" (default)" if model.name == DEFAULT_MODEL else "")),
            str(model.dims),
            str(model.max_tokens),
            figures.size(_size(model.weights)),
            Text(str(model.path)),
        )
    session.out.print(table)
    session.say("Any folder of a sentence-transformers model of the BERT family: --model ./folder")


def doctor(
    context: typer.Context,
    provider: options.Provider = None,
    model: options.Model = None,
    dims: options.Dims = None,
    precision: options.Precision = "auto",
    staging: options.Staging = None,
    notify: options.Notify = None,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """Check what embatch needs here and at the provider; exits 1 if something is amiss.

    At a cloud one short text is embedded, for a few tokens, and on Vertex AI a small file is
    written to the staging folder and removed again. Each target of --notify is sent a test.
    """
    from embatch.cli.doctor import Examined, examine

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.busy("looking"):
        wanted = Examined(
            provider=provider,
            model=options.absolute_model(model),
            dims=dims,
            staging=staging,
            precision=precision,
            journal=journal,
            notify=notify or (),
        )
        findings = examine(wanted, session.hooks)
    well = all(finding.well for finding in findings)
    if session.as_json:
        session.emit(
            {
                "well": well,
                "findings": [
                    {"what": one.what, "well": one.well, "detail": one.detail} for one in findings
                ],
            }
        )
    for finding in findings:
        mark, style = MARKS[finding.well]
        line = Text.assemble((f"{mark} ", style), (f"{finding.what:<13}", "dim"), finding.detail)
        if not session.as_json:
            session.out.print(line, soft_wrap=True)
    if not well:
        raise typer.Exit(ExitCode.FAILED)


def _size(files: tuple[Path, ...]) -> int:
    return sum(file.stat().st_size for file in files)


def _how_to_get(name: str) -> str:
    from embatch.local.models import find_model

    try:
        return f"no model is listed, and yet {find_model(name).path} holds one"
    except ConfigError as error:
        return str(error)
