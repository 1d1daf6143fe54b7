"""`embatch demo`: real texts found on the machine, embedded, saved and searched."""

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embatch.cli import options
from embatch.cli.exits import ExitCode
from embatch.cli.session import Session

if TYPE_CHECKING:
    from embatch.runs.outputs import Hit

QUERIES = (
    "read a file line by line",
    "copy a folder with everything in it",
    "measure how long code takes to run",
)
HITS = 3
TEXTS_FILE = "docs.jsonl"
VECTORS_FOLDER = "vectors"


def demo(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="OUT", help="Folder for texts and vectors.")
    ] = Path("embatch-demo"),
    journal: options.Journal = None,
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    as_json: options.Json = False,
) -> None:
    """Embed the documentation of Python on this machine, and search it."""
    from embatch.api import submit
    from embatch.cli.output import find_hits, hit_json
    from embatch.cli.work import report, wait_for
    from embatch.datasets.output import OutputPaths

    session = Session.of(context, journal=journal, as_json=as_json)
    texts, vectors = out / TEXTS_FILE, out / VECTORS_FOLDER
    with session.busy("gathering the documentation of Python"):
        count = write_texts(texts)
    session.note(f"{count:,} docstrings of Python's standard library in {texts}")
    with session.environment() as environment:
        handle = submit(
            texts, vectors, key="name", keep=["text"], name="demo", environment=environment
        )
        status, interrupted = wait_for(session, handle, timeout=None)
    if interrupted is not None or not status.finished or status.error:
        raise typer.Exit(report(session, status, interrupted))
    found = find_hits(session, OutputPaths.for_out(str(vectors)), list(QUERIES), HITS)
    if session.as_json:
        searches = [
            {"query": query, "hits": [hit_json(hit) for hit in hits]}
            for query, hits in zip(QUERIES, found, strict=True)
        ]
        session.emit(status.to_json() | {"searches": searches, "exit_code": 0})
        return
    report(session, status, None)
    for query, hits in zip(QUERIES, found, strict=True):
        _show_hits(session, query, hits)
    _show_next(session, texts, vectors)
    raise typer.Exit(ExitCode.DONE)


def write_texts(path: Path) -> int:
    """Writes the demo's texts as JSONL and gives their number; equal ones are left untouched."""
    import orjson

    from embatch.cli.docstrings import library_docstrings
    from embatch.datasets.durable import write_bytes_whole
    from embatch.errors import ConfigError

    lines = [
        orjson.dumps({"name": name, "text": text}, option=orjson.OPT_APPEND_NEWLINE)
        for name, text in library_docstrings()
    ]
    if not lines:
        raise ConfigError(
            "the sources of Python's standard library are not on this machine: "
            "embed a file of your own with embatch run"
        )
    content = b"".join(lines)
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_whole(path, content)
    return len(lines)


def _show_hits(session: Session, query: str, hits: "list[Hit]") -> None:
    from embatch.cli.output import hit_table

    session.say("")
    session.say(f"“{query}”", style="bold")
    session.out.print(hit_table(hits, session.out.width))


def _show_next(session: Session, texts: Path, vectors: Path) -> None:
    session.say("")
    session.say("Go on with:", style="dim")
    for command in (
        f'search {vectors} "parse a date"',
        f"verify {vectors}",
        "runs",
        f"run {texts} -o my-vectors --key name --keep text",
    ):
        session.say(f"  {_executable()} {command}")


def _executable() -> str:
    """What to type for `embatch` here: its path where the shell does not find it."""
    own = Path(sys.executable).with_name("embatch")
    if shutil.which("embatch") is not None or not own.exists():
        return "embatch"
    here = Path.cwd()
    return str(own.relative_to(here) if own.is_relative_to(here) else own)
