"""Commands about vectors that may stand on the wrong texts."""

import secrets
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from embatch.cli import figures, options
from embatch.cli.exits import ExitCode
from embatch.cli.session import Session

if TYPE_CHECKING:
    from embatch.environment import Environment
    from embatch.journal.audits import AuditedRow
    from embatch.journal.records import BatchRecord
    from embatch.providers.base import Provider
    from embatch.runs.recheck import Recheck, SampleCost
    from embatch.types.embedding import Space

SHOWN_ROWS = 20
"""Mismatches that are listed; `--json` has them all."""


def audit(
    context: typer.Context,
    out: options.OutArgument,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=1, help="Rows to embed again.")
    ] = 200,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="INPUT",
            help="Where the texts are, in the order of the run; may be given often.  "
            "Default: where the manifest says.",
        ),
    ] = None,
    max_cost: options.MaxCost = None,
    as_json: options.Json = False,
) -> None:
    """Embed a random sample of an output again and compare; exits 1 if a vector is wrong."""
    from embatch.datasets.output import OutputPaths
    from embatch.runs.outputs import load_manifest
    from embatch.runs.recheck import draw_sample, recheck, require_affordable, sample_cost

    session = Session.of(context, as_json=as_json)
    paths = OutputPaths.for_out(out)
    space = load_manifest(paths).space
    with session.busy("reading the output and its source"):
        drawn = draw_sample(paths, sample, source=source or (), seed=secrets.randbits(64))
    with session.busy("opening the model"):
        provider = _open(session, space, str(paths.out))
    try:
        cost = sample_cost(drawn, provider)
        require_affordable(cost, max_cost)
        session.note(_foreseen(cost))
        with session.busy("embedding the sample again"):
            found = recheck(drawn, provider)
    finally:
        provider.close()
    code = ExitCode.DONE if found.sound else ExitCode.FAILED
    if session.as_json:
        session.emit(found.to_json() | {"exit_code": int(code)})
    else:
        _print(session, found)
    raise typer.Exit(code)


def _open(session: Session, space: "Space", out: str) -> "Provider":
    """The provider of the output's space; refuses one that gives another space."""
    from embatch.config import load_settings
    from embatch.environment import require_space
    from embatch.hooks import Hooks
    from embatch.providers.opening import open_provider

    settings, hooks = load_settings(), session.hooks or Hooks()
    provider = open_provider(
        space.provider,
        model=space.model,
        precision=space.precision or "auto",
        dims=space.dims,
        task_type=space.task_type,
        folder=settings.home / "service",
        open_engine=hooks.open_engine,
        checkpoint=hooks.checkpoint,
    )
    try:
        require_space(provider.space, space, out)
    except BaseException:
        provider.close()
        raise
    return provider


def _foreseen(cost: "SampleCost") -> str:
    rows = figures.counted(cost.rows, "row")
    if cost.usd is None or cost.usd_bound is None:
        return f"embedding {rows} again: about {cost.tokens:,} tokens, at a price nobody knows"
    if not cost.usd_bound:
        return f"embedding {rows} again, on this machine"
    most = figures.money(cost.usd_bound)
    return (
        f"embedding {rows} again: about {cost.tokens:,} tokens at the interactive price, "
        f"{figures.money(cost.usd)}, {most} at most"
    )


def _print(session: Session, found: "Recheck") -> None:
    if found.compared and found.least is not None and found.mean is not None:
        session.say(
            f"{figures.counted(found.compared, 'row')} of {found.output_rows:,} compared: "
            f"least cosine {found.least:.6f}, mean {found.mean:.6f}"
        )
    if found.refused:
        session.say(
            f"{figures.counted(len(found.refused), 'row')} could not be compared: the service "
            "does not take the text through the interactive API",
            style="yellow",
        )
    if found.cost_usd:
        about = "about " if found.tokens_estimated else ""
        session.say(f"it cost {about}{figures.money(found.cost_usd)}, {found.tokens:,} tokens")
    if found.mismatches:
        wrong = figures.counted(len(found.mismatches), "row")
        session.say(f"{wrong} with the vector of another text:", style="red")
        for row in found.mismatches[:SHOWN_ROWS]:
            session.say(f"  row {row.row}  key {row.key}  cosine {row.cosine:.4f}", style="red")
        if len(found.mismatches) > SHOWN_ROWS:
            session.say(f"  and {len(found.mismatches) - SHOWN_ROWS} more: --json has them all")
    elif found.compared:
        session.say("every vector is that of its text", style="green")


def show_quarantined(session: Session, environment: "Environment", run_id: str) -> None:
    """The quarantined batches of a run and their evidence: rows, keys and cosines, no texts."""
    from embatch.runs.audit import QUARANTINE_CODES

    journal = environment.journal
    evidence: dict[int, list[AuditedRow]] = {}
    for row in journal.audits.of_run(run_id):
        evidence.setdefault(row.batch_id, []).append(row)
    batches = [
        batch for batch in journal.batches.walk(run_id) if batch.error_code in QUARANTINE_CODES
    ]
    if session.as_json:
        session.emit(
            {
                "run": run_id,
                "quarantined": [_batch_json(one, evidence.get(one.id, [])) for one in batches],
            }
        )
        return
    if not batches:
        session.say(f"run {run_id} has no quarantined batches")
        return
    for batch in batches:
        session.say(f"batch {batch.number} ({_fate(batch)}): {batch.error}", style="yellow")
        rows = sorted(evidence.get(batch.id, []), key=lambda row: row.cosine)
        if rows:
            session.out.print(_evidence_table(rows[:SHOWN_ROWS]))
        if len(rows) > SHOWN_ROWS:
            session.say(f"and {len(rows) - SHOWN_ROWS} rows more: --json has them all")


def _fate(batch: "BatchRecord") -> str:
    from embatch.types.state import BatchState

    rows = figures.counted(batch.items, "row")
    return f"{rows}, bought again" if batch.state is BatchState.SPLIT else f"{rows}, {batch.state}"


def _batch_json(batch: "BatchRecord", rows: "list[AuditedRow]") -> dict[str, Any]:
    return {
        "batch": batch.number,
        "state": batch.state.value,
        "code": batch.error_code,
        "error": batch.error,
        "rows": batch.items,
        "audited": [
            {"row": row.row, "key": row.key, "cosine": row.cosine, "passed": row.passed}
            for row in rows
        ],
    }


def _evidence_table(rows: "list[AuditedRow]") -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("row", justify="right", no_wrap=True)
    table.add_column("key", overflow="fold")
    table.add_column("cosine", justify="right", no_wrap=True)
    for row in rows:
        style = None if row.passed else "red"
        table.add_row(str(row.row), Text(row.key), Text(f"{row.cosine:.4f}", style=style or ""))
    return table
