"""A job's answer on disk."""

from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from embatch.testing.cloud.core import Core
from embatch.testing.cloud.faults import Fault, FaultKind
from embatch.testing.cloud.outcomes import Outcome
from embatch.testing.cloud.results import ResultWriter, Tally
from embatch.testing.cloud.rows import lines_of
from embatch.testing.cloud.spoil import Spoiler
from embatch.testing.cloud.store import Doc
from embatch.testing.cloud.words import dialect_of

_K = FaultKind


def write_output(core: Core, job: Doc, outcome: Outcome) -> tuple[Tally, list[str], Spoiler]:
    """Writes a job's answer into files: what came of its rows, where it stands, what spoiled it."""
    folder = core.store.folder / "jobs" / job["id"]
    spoiler = Spoiler(
        [Fault(**values) for values in job["plan"]],
        rows=job["rows"],
        seed=core.settings.seed,
        job=job["name"],
        store=core.store,
    )
    dims_ignored = spoiler.has(_K.DIMS_IGNORED)
    sharded = spoiler.plain.get(_K.OUTPUT_SHARDS)
    shards = int(sharded.arg("count")) if sharded and job["api"] == "vertex" else 1
    writer = ResultWriter(
        source=folder / "input.jsonl",
        model=job["model"],
        rows=job["rows"],
        dialect=dialect_of(job),
        spoiler=spoiler,
        foreign_keys=lambda count: _keys_of_others(core, job, count),
        served=int(job["rows"] * outcome.share),
        stopping=core.stopping,
        bytes_per_token=core.settings.bytes_per_token,
        cancelled_rows=outcome.cancelled_rows,
        dims_ignored=dims_ignored,
    )
    paths = [folder / f"output-{number}.jsonl" for number in range(shards)]
    files = [path.open("wb", buffering=1 << 20) for path in paths]
    try:
        with (folder / "digests").open("wb", buffering=1 << 20) as digests:
            tally = writer.write(list(files), digests)
    finally:
        for file in files:
            file.close()
    if job["extra"].get("inline"):
        _drop_last_comma(paths[0])
    return tally, [str(path.relative_to(core.store.folder)) for path in paths], spoiler


def _keys_of_others(core: Core, job: Doc, count: int) -> list[Any]:
    for other in reversed(core.jobs.all()):
        source = core.store.folder / "jobs" / other["id"] / "input.jsonl"
        if other["name"] == job["name"] or not source.exists():
            continue
        rows = [orjson.loads(line) for _, line in islice(lines_of(source), count)]
        keys = [row.get("key", row.get("metadata")) for row in rows]
        if all(key is not None for key in keys):
            return keys
    return [f"0123456789ab:{n}" for n in range(count)]


def _drop_last_comma(path: Path) -> None:
    size = path.stat().st_size
    if size:
        with path.open("r+b") as file:
            file.truncate(size - 1)
