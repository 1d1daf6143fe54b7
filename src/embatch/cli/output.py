"""Commands that read what a run wrote."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from embatch.cli import figures, options
from embatch.cli.exits import ExitCode
from embatch.cli.session import Session
from embatch.errors import InvalidRequestError

if TYPE_CHECKING:
    from embatch.datasets.output import OutputPaths
    from embatch.runs.outputs import Hit

KEPT_CHARS = 200
"""Of a kept value, as many characters are shown."""


def verify(
    context: typer.Context,
    out: options.OutArgument,
    journal: options.Journal = None,
    as_json: options.Json = False,
) -> None:
    """Check an output: files, keys, vectors and counts; exits 1 if anything is wrong."""
    from embatch.datasets.output import OutputPaths
    from embatch.runs.check import check_output

    session = Session.of(context, journal=journal, as_json=as_json)
    with session.environment() as environment:
        verdict = check_output(OutputPaths.for_out(out), environment.journal)
    if session.as_json:
        session.emit(verdict.to_json())
    for problem in verdict.problems:
        session.say(problem, style="red")
    files, rows = figures.counted(verdict.files, "file"), figures.counted(verdict.rows, "row")
    if not verdict.sound:
        session.say(f"{figures.counted(verdict.problem_count, 'problem')} in {files}", style="red")
        raise typer.Exit(ExitCode.FAILED)
    failed = f", {figures.counted(verdict.failed, 'row')} failed" if verdict.failed else ""
    session.say(f"sound: {rows} in {files}{failed}", style="green")
    if not verdict.finished:
        session.say("the run is not finished: what is published so far was checked")


def search(
    context: typer.Context,
    out: options.OutArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    k: Annotated[int, typer.Option("-k", metavar="K", min=1, help="How many rows to show.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Find the rows nearest to a query, by exact cosine in the output's own space."""
    from embatch.datasets.output import OutputPaths

    session = Session.of(context, as_json=as_json)
    if not query.strip():
        raise InvalidRequestError("the query is empty: say what to look for, as in 'red shoes'")
    with session.busy("opening the model"):
        hits = find_hits(session, OutputPaths.for_out(out), [query], k)[0]
    if session.as_json:
        session.emit({"query": query, "hits": [hit_json(hit) for hit in hits]})
        return
    if not hits:
        session.say(f"{out} holds no vectors yet")
        return
    session.out.print(hit_table(hits, session.out.width))


def find_hits(
    session: Session, paths: "OutputPaths", queries: list[str], k: int
) -> list[list["Hit"]]:
    """The hits of each query. Opens the model of the output's space, and refuses another one."""
    from embatch.config import load_settings
    from embatch.environment import require_space
    from embatch.hooks import Hooks
    from embatch.providers.opening import open_provider
    from embatch.runs.outputs import load_manifest, search_output

    space = load_manifest(paths).space
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
        require_space(provider.space, space, str(paths.out))
        wanted = provider.embed(queries, query=True).vectors
        return [search_output(paths, wanted[n : n + 1], k) for n in range(len(queries))]
    finally:
        provider.close()


def hit_json(hit: "Hit") -> dict[str, Any]:
    """A hit as `--json` prints it."""
    return {"score": round(hit.score, 6), "key": hit.key, "row": hit.row, "kept": hit.kept}


def hit_table(hits: list["Hit"], width: int) -> Table:
    """Score, key and the first line of each kept value; keys get at most half of `width`."""
    kept = list(hits[0].kept)
    longest = max(len(hit.key) for hit in hits)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("score", justify="right", style="green", width=6)
    table.add_column("key", overflow="fold", width=min(max(longest, 3), width // 2))
    for name in kept:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for hit in hits:
        values = [Text(_first_line(hit.kept[name]), style="dim") for name in kept]
        table.add_row(f"{hit.score:.3f}", Text(hit.key), *values)
    return table


def _first_line(value: object) -> str:
    lines = str("" if value is None else value).strip().splitlines()
    return lines[0][:KEPT_CHARS] if lines else ""
