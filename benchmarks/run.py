"""The whole of `embatch run` against the bare engine on the same texts."""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.corpus import chunks
from benchmarks.measuring import Figures, Options, machine
from embatch import api
from embatch.config import Settings
from embatch.environment import Environment
from embatch.hooks import Hooks
from embatch.local.engine import Engine
from embatch.types.results import TextEngine

DESCRIPTION = "reading, staging, journal and Parquet against the bare engine"
Clocks = NDArray[np.float64]
"""Seconds by the clock, and seconds of processor time over all threads of this process."""


class _Shared:
    """The one loaded engine, lent to each round's run: loading is no part of the comparison."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Stays open for the next round."""


def measure(options: Options) -> Figures:
    """Whole runs over a Parquet file of distinct texts in turn with calls of the engine.

    Whichever was first in one round is second in the next: a machine that slows down and recovers
    favours neither. Processor time, over all threads, moves less than the clock does.
    """
    texts = list(dict.fromkeys(chunks(options.texts)))
    bare: list[Clocks] = []
    whole: list[Clocks] = []
    with Engine.open() as engine, tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.parquet"
        pq.write_table(pa.table({"text": texts}), source)
        engine.embed(texts[:64])
        turns: list[Callable[[], None]] = [
            lambda: bare.append(_embed(engine, texts)),
            lambda: whole.append(_run(engine, source, Path(folder) / str(len(whole)))),
        ]
        for number in range(options.rounds):
            for turn in turns if number % 2 == 0 else reversed(turns):
                turn()
        precision = engine.precision
    bare_s, whole_s = np.median(bare, axis=0)[0], np.median(whole, axis=0)[0]
    ratios = np.array(whole) / np.array(bare)
    return {
        **machine(),
        "texts": len(texts),
        "rounds": options.rounds,
        "precision": precision,
        "bare_texts_per_s": round(len(texts) / float(bare_s), 1),
        "run_texts_per_s": round(len(texts) / float(whole_s), 1),
        "run_over_bare": round(float(np.median(ratios[:, 0])), 3),
        "run_over_bare_least": round(float(ratios[:, 0].min()), 3),
        "run_over_bare_cpu": round(float(np.median(ratios[:, 1])), 3),
    }


def _clocks() -> Clocks:
    return np.array([time.perf_counter(), time.process_time()])


def _embed(engine: Engine, texts: list[str]) -> Clocks:
    start = _clocks()
    engine.embed(texts)
    return _clocks() - start


def _run(engine: Engine, source: Path, folder: Path) -> Clocks:
    def lend(_model: str | None, *, precision: str = "auto") -> TextEngine:
        _ = precision
        return _Shared(engine)  # type: ignore[return-value]

    settings = Settings(home=folder / "home", journal=f"sqlite:///{folder / 'journal.db'}")
    with Environment.open(settings, hooks=Hooks(open_engine=lend)) as environment:
        start = _clocks()
        status = api.submit(source, folder / "out", environment=environment).wait()
        taken = _clocks() - start
    if status.written != status.rows:
        raise SystemExit(f"the run wrote {status.written} of {status.rows} rows: {status.error}")
    shutil.rmtree(folder)
    return taken


def table(figures: Figures) -> str:
    """The figures as people read them."""
    return (
        f"{figures['texts']} texts, {figures['precision']}, medians of {figures['rounds']} rounds: "
        f"bare engine {figures['bare_texts_per_s']} texts/s, whole run "
        f"{figures['run_texts_per_s']} texts/s, time ratio {figures['run_over_bare']} "
        f"(least {figures['run_over_bare_least']}), processor time ratio "
        f"{figures['run_over_bare_cpu']}"
    )
