"""Two workers of the local engine, each on a core of its own, against one of them."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus import chunks
from benchmarks.measuring import Figures, Options, machine
from embatch import api
from embatch.config import Settings
from embatch.environment import Environment
from embatch.types.state import BatchState

DESCRIPTION = "two workers of the local engine on a core each against one, on PostgreSQL"
BATCH_ITEMS = 64
DEADLINE_S = 900.0
MOST_ROUNDS = 3
_TESTS = Path(__file__).parents[1] / "tests"


def measure(options: Options) -> Figures:
    """Texts a second between the first and the last published batch, with one worker and two."""
    sys.path.insert(0, str(_TESTS))
    from postgres import PostgresServer

    texts = list(dict.fromkeys(chunks(options.texts)))
    rates: dict[int, list[float]] = {1: [], 2: []}
    with PostgresServer() as server, tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.parquet"
        pq.write_table(pa.table({"text": texts}), source)
        for number in range(min(options.rounds, MOST_ROUNDS)):
            for workers, found in rates.items():
                place = Path(folder) / f"{number}-{workers}"
                place.mkdir()
                found.append(_rate(server.create_journal(), source, place, workers))
    one, two = (statistics.median(found) for found in rates.values())
    ratios = [second / first for first, second in zip(rates[1], rates[2], strict=True)]
    return {
        **machine(),
        "texts": len(texts),
        "batch_items": BATCH_ITEMS,
        "rounds": len(ratios),
        "one_worker_texts_per_s": round(one, 1),
        "two_workers_texts_per_s": round(two, 1),
        "two_over_one": round(statistics.median(ratios), 3),
        "two_over_one_least": round(min(ratios), 3),
    }


def table(figures: Figures) -> str:
    """The rates and their ratio."""
    return (
        f"one worker   {figures['one_worker_texts_per_s']:>8} texts/s\n"
        f"two workers  {figures['two_workers_texts_per_s']:>8} texts/s, "
        f"{figures['two_over_one']} times (least {figures['two_over_one_least']}) "
        f"in {figures['rounds']} rounds of {figures['texts']} texts"
    )


def _rate(url: str, source: Path, folder: Path, workers: int) -> float:
    """Starts every worker, lets them load, then hands them the run and counts."""
    cores = sorted(os.sched_getaffinity(0))[:workers]
    started = [_start(url, folder / f"machine-{core}", core) for core in cores]
    with Environment.open(Settings(home=folder / "home", journal=url)) as environment:
        try:
            _wait(lambda: sum(one.alive for one in environment.journal.workers.every()) == workers)
            run = api.enter(
                str(source),
                folder / "out",
                provider="local",
                precision="f32",
                max_batch_items=BATCH_ITEMS,
                execution="workers",
                environment=environment,
            )
            _wait(lambda: run.status().complete)
            ends = [
                (batch.finished_at or 0.0, batch.items)
                for batch in environment.journal.batches.walk(run.id, states=[BatchState.PUBLISHED])
            ]
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            for process in started:
                process.wait(60)
    # Engines load and plans are cut before a batch ends: what ends first starts the clock.
    ends.sort()
    begun = 2 * workers
    return sum(items for _, items in ends[begun:]) / (ends[-1][0] - ends[begun - 1][0])


def _start(url: str, home: Path, core: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "embatch", "worker", "--queues", "compute"],
        env={**os.environ, "EMBATCH_HOME": str(home), "EMBATCH_JOURNAL_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )


def _wait(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError("the workers did not come to an end")
        time.sleep(0.2)
