"""Runs as users write them: checked by mypy --strict and pyright, never run."""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import pyarrow as pa

import embatch
from embatch import Run, RunStatus
from embatch.types.results import Matrix


def embed(texts: list[str]) -> str:
    status = embatch.run(texts, "vectors", provider="gemini", dims=768, max_cost_usd=5.0, audit=8)
    assert_type(status, RunStatus)
    assert_type(status.cost_usd, float | None)
    with embatch.submit(
        Path("in.parquet"), "out", key="id", keep=["text"], name="nightly", tags={"team": "a"}
    ) as run:
        assert_type(run, Run)
        return run.id


def look(out: Path) -> Iterator[tuple[pa.RecordBatch, Matrix]]:
    with embatch.get_run(out, journal="runs.db") as run:
        assert_type(run.wait(60.0), RunStatus)
        yield from run.read()


def mistaken() -> None:
    embatch.submit("in.jsonl", "out", dims="768")  # type: ignore[arg-type] # a number is wanted
    embatch.run("in.jsonl", "out", batch_size=5)  # type: ignore[call-arg] # no such option
