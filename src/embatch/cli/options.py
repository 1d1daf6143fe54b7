"""Arguments and options that several commands take, each said once."""

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from embatch.cli.logs import start_logging
from embatch.errors import InvalidRequestError

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT…",
        help="Parquet, Arrow, CSV, TSV, JSONL or text files, globs, or - for JSONL on stdin; "
        "here, or on s3://, gs:// or az://.",
        show_default=False,
    ),
]
RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Id, beginning of an id, name or output of a run."),
]
OptionalRunName = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        help="Id, beginning of an id, name or output of a run; the latest run if left out.",
        show_default=False,
    ),
]
Out = Annotated[
    str,
    typer.Option(
        "-o",
        "--out",
        metavar="OUT",
        help="Folder, or .parquet or .npy file, for the vectors; a path or s3://, gs://, az://.",
    ),
]
OptionalOut = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--out",
        metavar="OUT",
        help="Where the vectors would go: the disk to look at.  Default: this folder.",
    ),
]
OutArgument = Annotated[
    str, typer.Argument(metavar="OUT", help="Output of a run: its folder or file.")
]
Provider = Annotated[
    str | None,
    typer.Option(
        "--provider",
        help="Who embeds: local (the engine on this machine), gemini or vertex.  Default: local.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="M",
        help="Name or folder of the model.  Default: all-MiniLM-L6-v2, or gemini-embedding-001.",
    ),
]
Text = Annotated[
    str | None,
    typer.Option(
        "--text",
        metavar="COL",
        help="Column to embed.  Default: text, else the only string column.",
    ),
]
Key = Annotated[
    str | None,
    typer.Option("--key", metavar="COL", help="Column of unique keys.  Default: the row number."),
]
Keep = Annotated[
    str | None,
    typer.Option("--keep", metavar="COL,COL", help="Columns to carry into the output."),
]
Dims = Annotated[
    int | None,
    typer.Option(
        "--dims", metavar="N", min=1, help="Values of each vector.  Default: all of the model."
    ),
]
TaskType = Annotated[
    str | None,
    typer.Option("--task-type", metavar="T", help="What the vectors are for, as the model knows."),
]
Precision = Annotated[
    Literal["auto", "f32", "bf16", "int8"],
    typer.Option("--precision", help="Arithmetic of the local engine."),
]
MaxBatchItems = Annotated[
    int | None,
    typer.Option("--max-batch-items", metavar="N", min=1, help="Most rows in one batch."),
]
MaxBatchTokens = Annotated[
    int | None,
    typer.Option("--max-batch-tokens", metavar="N", min=1, help="Most tokens in one batch."),
]
PollInterval = Annotated[
    float | None,
    typer.Option(
        "--poll-interval",
        metavar="S",
        min=0.01,
        help="Seconds between two looks at a batch.  Default: by its size.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="S", min=0.0, help="Stop waiting after so many seconds (exit 5)."
    ),
]
Priority = Annotated[
    int | None,
    typer.Option("--priority", metavar="P", help="Higher is worked on first. Default: 0."),
]
Reuse = Annotated[
    str | None,
    typer.Option(
        "--reuse", metavar="OLD_OUT", help="Take vectors of equal texts from this earlier output."
    ),
]
TooLong = Annotated[
    Literal["send", "cut", "fail"],
    typer.Option(
        "--too-long",
        help="Texts over the model's limit: let it cut them, or fail the row (local only).",
    ),
]
Staging = Annotated[
    str | None,
    typer.Option(
        "--staging",
        metavar="URL",
        help="Vertex AI: gs://bucket/prefix for inputs and results.  Default: EMBATCH_STAGING.",
    ),
]
Settle = Annotated[
    float | None,
    typer.Option(
        "--settle",
        metavar="S",
        min=0.0,
        help="How long a batch whose creation is in doubt may still turn up.  Default: 600.",
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="USD", min=0.0, help="Never spend more than this (exit 4)."),
]
Audit = Annotated[
    str,
    typer.Option(
        "--audit",
        metavar="N|all|off",
        help="Rows of each batch to embed again and compare, where embedding is billed.",
    ),
]
Deadline = Annotated[
    str | None,
    typer.Option(
        "--deadline",
        metavar="T",
        help="When the vectors are needed, as 8h or 2026-12-24T18:00: what batches will not "
        "make goes through the interactive API.",
    ),
]
StuckAfter = Annotated[
    str,
    typer.Option(
        "--stuck-after", metavar="T", help="A batch that stands still so long is sent again."
    ),
]
NoProbe = Annotated[
    bool,
    typer.Option("--no-probe", help="Send everything at once, without a first small batch."),
]
KeepRemote = Annotated[
    bool,
    typer.Option("--keep-remote", help="Leave inputs and finished batches at the provider."),
]
AlertBelow = Annotated[
    float,
    typer.Option(
        "--alert-below", metavar="PCT", min=0.0, max=100.0, help="Warn, and exit 3, under this."
    ),
]
Execution = Annotated[
    Literal["threads", "workers"],
    typer.Option(
        "--execution",
        help="Who works: threads of this command, or the workers of a PostgreSQL journal.",
    ),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        "--notify",
        metavar="URL",
        help="Who hears of the run's end and troubles; may be given often: https://… is a signed"
        " webhook, all else apprise's (slack://…, mailto://…).  Default: EMBATCH_NOTIFY.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="A name to call the run by.")
]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="K=V", help="A tag; may be given often.")
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Submit, print how to go on, and return at once.")
]
Journal = Annotated[
    str | None,
    typer.Option(
        "--journal",
        metavar="URL",
        help="Database of runs: a file or URL.  Default: in EMBATCH_HOME.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
LogFormat = Annotated[
    Literal["text", "json"] | None,
    typer.Option(
        "--log-format",
        help="Write the log to standard error, as lines or as JSON.",
        callback=start_logging,
        show_default=False,
    ),
]


def split_columns(value: str | None) -> list[str]:
    """The columns that "a,b" names."""
    return [name.strip() for name in (value or "").split(",") if name.strip()]


def absolute_model(model: str | None) -> str | None:
    """A model's folder by its absolute path, so that other processes find it; a name as it is."""
    return str(Path(model).absolute()) if model and Path(model).is_dir() else model


def parse_tags(tags: Sequence[str] | None) -> dict[str, str]:
    """The tags that "k=v" words give. InvalidRequestError for a word without both."""
    parsed = {}
    for tag in tags or ():
        name, equals, value = tag.partition("=")
        if not (name and equals):
            raise InvalidRequestError(f"--tag {tag!r} is no tag: give --tag KEY=VALUE")
        parsed[name] = value
    return parsed


def parse_audit(value: str) -> int | Literal["all", "off"]:
    """How many rows of a batch "8", "all" or "off" asks to audit."""
    if value in ("all", "off"):
        return "all" if value == "all" else "off"
    if not value.isascii() or not value.isdigit():
        raise InvalidRequestError(f"--audit {value!r}: give a number of rows, all, or off")
    return int(value) or "off"


def parse_duration(value: str, flag: str) -> float:
    """Seconds of "90", "90s", "30m", "8h" or "2d". InvalidRequestError names the flag."""
    text, factor = value.strip().lower(), 1.0
    if text and text[-1] in _UNITS_S:
        text, factor = text[:-1], _UNITS_S[text[-1]]
    try:
        seconds = float(text) * factor
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise InvalidRequestError(f"{flag} {value!r} is no time: write it like 90s, 30m, 8h or 2d")
    return seconds


def parse_moment(value: str | None, flag: str, *, now: float) -> float | None:
    """Seconds since 1970 of "8h" from `now`, or of a date and time; without a zone it is local."""
    if value is None:
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        pass
    try:
        return now + parse_duration(value, flag)
    except InvalidRequestError:
        raise InvalidRequestError(
            f"{flag} {value!r} is no time: write it like 8h or 2026-12-24T18:00"
        ) from None
