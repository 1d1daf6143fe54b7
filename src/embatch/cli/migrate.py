"""The command that moves an output to another model."""

from typing import TYPE_CHECKING, Annotated

import typer

from embatch.cli import figures, options
from embatch.cli.run import submit_and_leave, work_on
from embatch.cli.session import Session
from embatch.errors import InvalidRequestError

if TYPE_CHECKING:
    from embatch.environment import Environment
    from embatch.run_options import RunOptions
    from embatch.runs.migrate import Move
    from embatch.runs.quote import Quote


def migrate(
    context: typer.Context,
    old_out: Annotated[
        str,
        typer.Argument(metavar="OLD_OUT", help="Output to move: its folder or file; it stays."),
    ],
    out: options.Out,
    model: Annotated[
        str, typer.Option("--model", metavar="M", help="Name or folder of the model to move to.")
    ],
    provider: Annotated[
        str | None,
        typer.Option("--provider", help="Who embeds: local, gemini or vertex.  Default: as then."),
    ] = None,
    dims: options.Dims = None,
    task_type: Annotated[
        str | None,
        typer.Option(
            "--task-type",
            metavar="T",
            help="What the vectors are for; '' for nothing said.  Default: as then.",
        ),
    ] = None,
    precision: options.Precision = "auto",
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="INPUT",
            help="Where the texts are now; may be given often. OLD_OUT itself: those it keeps.",
        ),
    ] = None,
    max_batch_items: options.MaxBatchItems = None,
    max_batch_tokens: options.MaxBatchTokens = None,
    max_cost: options.MaxCost = None,
    audit: options.Audit = "8",
    poll_interval: options.PollInterval = None,
    timeout: options.Timeout = None,
    staging: options.Staging = None,
    settle: options.Settle = None,
    no_probe: options.NoProbe = False,
    notify: options.Notify = None,
    name: options.Name = None,
    tag: options.Tags = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Quote the move, and submit nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    journal: options.Journal = None,
    execution: options.Execution = "threads",
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    no_wait: options.NoWait = False,
    as_json: options.Json = False,
) -> None:
    """Embed the texts of an output with another model into OUT; the same again resumes it.

    Quotes the move and asks once, unless --yes or --json is given, or OUT is begun already.
    """
    from embatch.api import enter
    from embatch.datasets.output import OutputPaths
    from embatch.runs.migrate import plan_move
    from embatch.storage.places import named

    session = Session.of(context, journal=journal, as_json=as_json)
    move = plan_move(old_out, source or ())
    if provider is None:
        _require_own_model(move, model)
    wanted: RunOptions = {
        "provider": provider or move.space.provider,
        "model": options.absolute_model(model),
        "text": move.text,
        "key": move.key,
        "keep": move.keep,
        "dims": dims,
        "task_type": move.space.task_type if task_type is None else task_type or None,
        "precision": precision,
        "max_batch_items": max_batch_items,
        "max_batch_tokens": max_batch_tokens,
        "max_cost_usd": max_cost,
        "audit": options.parse_audit(audit),
        "poll_interval_s": poll_interval,
        "staging": staging,
        "settle_s": settle,
        "probe": not no_probe,
        "notify": notify,
        "execution": execution,
        "name": name,
        "tags": options.parse_tags(tag),
    }
    with session.environment() as environment:
        _require_another(environment, move, wanted, old_out, out)
        begun = OutputPaths.for_out(out).manifest.exists()
        if dry_run or not begun:
            _compare(session, move, old_out)
            quoted = _quote(session, move, wanted, out, shown=dry_run or not as_json)
            if dry_run:
                return
            if not (yes or as_json):
                _ask(quoted, old_out, out)
        inputs = [named(one) for one in move.inputs]
        handle = enter(inputs, out, **wanted | {"environment": environment})
        if no_wait:
            submit_and_leave(session, environment, handle, timeout=timeout)
        else:
            work_on(session, environment, handle, timeout=timeout)


def _require_own_model(move: "Move", model: str) -> None:
    """Refuses a cloud's model for an output of the local engine: which cloud is not said."""
    from embatch.types.models import MODELS, bare_model_name

    if move.space.provider == "local" and bare_model_name(model) in MODELS:
        raise InvalidRequestError(
            f"{model} is a model of the clouds: give --provider gemini or --provider vertex"
        )


def _require_another(
    environment: "Environment", move: "Move", wanted: "RunOptions", old_out: str, out: str
) -> None:
    from embatch.runs.config import RunConfig
    from embatch.runs.migrate import require_another

    config = RunConfig(
        inputs=move.inputs,
        out=out,
        provider=wanted["provider"] or "local",
        model=wanted["model"],
        dims=wanted["dims"],
        task_type=wanted["task_type"],
        precision=wanted["precision"],
        staging=wanted["staging"],
        settle_s=wanted["settle_s"],
    )
    require_another(move.space, environment.provider(config).space, old_out)


def _compare(session: Session, move: "Move", old_out: str) -> None:
    """Says how far other inputs hold the texts of the output that is moved."""
    from embatch.runs.migrate import count_shared

    if not move.elsewhere:
        return
    with session.busy("comparing the texts"):
        texts, shared = count_shared(move, old_out)
    if shared < texts:
        session.note(
            f"{old_out} embedded {figures.count(shared)} of these {figures.counted(texts, 'text')}",
            style="yellow",
        )


def _quote(
    session: Session, move: "Move", wanted: "RunOptions", out: str, *, shown: bool
) -> "Quote":
    from embatch.cli.quote import print_quote, quote_inputs, room_at

    quoted = quote_inputs(
        session,
        move.inputs,
        provider=wanted["provider"],
        model=wanted["model"],
        text=wanted["text"],
        key=wanted["key"],
        keep=wanted["keep"],
        dims=wanted["dims"],
        task_type=wanted["task_type"],
        precision=wanted["precision"],
        max_batch_items=wanted["max_batch_items"],
        max_batch_tokens=wanted["max_batch_tokens"],
        reuse=None,
        max_cost_usd=wanted["max_cost_usd"],
        audit=wanted["audit"],
        probe=wanted["probe"],
    )
    if shown:
        print_quote(session, quoted, free=room_at(out))
    if move.left_out:
        rows = figures.counted(move.left_out, "row")
        session.note(f"{rows} failed then and keep no text: they are not among these")
    return quoted


def _ask(quoted: "Quote", old_out: str, out: str) -> None:
    """Goes on after a yes; InvalidRequestError otherwise."""
    cost = (
        "an unknown cost" if quoted.cost_usd is None else f"about {figures.money(quoted.cost_usd)}"
    )
    rows = figures.counted(quoted.to_embed, "row")
    try:
        typer.confirm(f"Embed {rows} of {old_out} into {out} for {cost}?", abort=True, err=True)
    except typer.Abort:
        raise InvalidRequestError(
            f"nothing was sent and {out} was not begun: answer y, or give --yes"
        ) from None
