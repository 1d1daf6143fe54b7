"""The whole of `embatch run` against the bare engine on the same texts."""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus import chunks
from benchmarks.measuring import Figures, Options, machine
from embatch import api
from embatch.config import Settings
from embatch.environment import Environment
from embatch.hooks import Hooks
from embatch.local.engine import Engine
from embatch.types.results import TextEngine

DESCRIPTION = "reading, staging, journal and Parquet against the bare engine"


class _Shared:
    """The one loaded engine, lent to each round's run: loading is no part of the comparison."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Stays open for the next round."""


def measure(options: Options) -> Figures:
    """Interleaves a run over a Parquet file of distinct texts with one call of the engine."""
    texts = list(dict.fromkeys(chunks(options.texts)))
    bare: list[float] = []
    whole: list[float] = []
    with Engine.open() as engine, tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.parquet"
        pq.write_table(pa.table({"text": texts}), source)
        engine.embed(texts[:64])
        for number in range(options.rounds):
            start = time.perf_counter()
            engine.embed(texts)
            bare.append(time.perf_counter() - start)
            whole.append(_run(engine, source, Path(folder) / str(number)))
        precision = engine.precision
    ratios = [one / other for one, other in zip(whole, bare, strict=True)]
    return {
        **machine(),
        "texts": len(texts),
        "rounds": options.rounds,
        "precision": precision,
        "bare_texts_per_s": round(len(texts) / statistics.median(bare), 1),
        "run_texts_per_s": round(len(texts) / statistics.median(whole), 1),
        "run_over_bare": round(statistics.median(ratios), 3),
        "run_over_bare_least": round(min(ratios), 3),
    }


def _run(engine: Engine, source: Path, folder: Path) -> float:
    def lend(_model: str | None, *, precision: str = "auto") -> TextEngine:
        _ = precision
        return _Shared(engine)  # type: ignore[return-value]

    settings = Settings(home=folder / "home", journal=f"sqlite:///{folder / 'journal.db'}")
    with Environment.open(settings, hooks=Hooks(open_engine=lend)) as environment:
        start = time.perf_counter()
        status = api.submit(source, folder / "out", environment=environment).wait()
        seconds = time.perf_counter() - start
    if status.written != status.rows:
        raise SystemExit(f"the run wrote {status.written} of {status.rows} rows: {status.error}")
    shutil.rmtree(folder)
    return seconds


def table(figures: Figures) -> str:
    """The figures as people read them."""
    return (
        f"{figures['texts']} texts, {figures['precision']}, medians of {figures['rounds']} rounds: "
        f"bare engine {figures['bare_texts_per_s']} texts/s, whole run "
        f"{figures['run_texts_per_s']} texts/s, time ratio {figures['run_over_bare']} "
        f"(least {figures['run_over_bare_least']})"
    )
