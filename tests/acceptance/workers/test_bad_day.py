"""Many workers on a cloud's bad day, killed again and again, their database restarted once.

The cloud's bill is the judge: no row is bought twice. The output is that of one process.
"""

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crew import Crew, eventually, text_of

from embatch.errors import JournalError
from embatch.testing.cloud import CloudProcess, Fault, expected_vectors
from embatch.types.state import FINAL_RUN_STATES, BatchState
from embatch.vectors import normalize
from postgres import PostgresServer

pytestmark = pytest.mark.timeout(1800)

DIMS = 128
BATCH_ITEMS = 20
WORKERS = 4
FLAGS = (
    *("--provider", "gemini", "--dims", str(DIMS), "--max-batch-items", str(BATCH_ITEMS)),
    *("--poll-interval", "0.3", "--settle", "4", "--no-probe", "--audit", "off"),
)
CREATE = {"route": "batches.create"}


def bad_day(seed: int, hint_s: float | None) -> list[Fault]:
    """Answers lost before and after the effect, lists that lag, refusals, short reads.

    A full quota says when to return, after `hint_s`, or says nothing.
    """
    hints = {} if hint_s is None else {"hints": "minute", "retry_delay_s": hint_s}
    return [
        Fault("job_duration", args={"seconds": 1.0}, id=f"slow-{seed}"),
        Fault("listing_delay", args={"seconds": 1.0}, id=f"lag-{seed}"),
        Fault("reset_after", CREATE, probability=0.15, id=f"lost-{seed}"),
        Fault("reset_before", CREATE, probability=0.1, id=f"gone-{seed}"),
        Fault("rate_limited", CREATE, times=4, after=6, args=hints, id=f"full-{seed}"),
        Fault("server_error", probability=0.02, args={"code": 503}, id=f"down-{seed}"),
        Fault("truncate", {"route": "files.download"}, probability=0.1, id=f"short-{seed}"),
    ]


def output(out: Path) -> pa.Table:
    """Rows of an output in their order."""
    parts = [pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))]
    return pa.concat_tables(parts).select(["key", "row", "text_sha256", "embedding"]).sort_by("row")


def check_right(out: Path, rows: int) -> None:
    """Every key once, every vector that of its text, to the bit."""
    table = output(out)
    assert table["row"].to_pylist() == list(range(rows))
    assert table["key"].to_pylist() == [f"key-{row}" for row in range(rows)]
    found = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS)
    wanted = normalize(expected_vectors([text_of(row) for row in range(rows)], dims=DIMS))
    assert np.array_equal(found, wanted)
    assert (out / "failures.jsonl").read_text() == ""


def live_through(
    folder: Path,
    server: PostgresServer,
    *,
    batches: int,
    seed: int,
    kills: int,
    every_s: float,
    hint_s: float | None = None,
) -> dict[str, Any]:
    """The bad day. Gives what happened."""
    chance = random.Random(seed)
    rows = batches * BATCH_ITEMS
    with CloudProcess(seed=seed, faults=bad_day(seed, hint_s)) as cloud:
        variables = {
            "GOOGLE_API_KEY": cloud.api_key,
            "GOOGLE_GEMINI_BASE_URL": cloud.gemini_url,
        }
        with Crew(folder, server.create_empty(), variables) as crew:
            crew.write_texts(rows)
            run_id = crew.submit(*FLAGS)
            for _ in range(WORKERS):
                crew.worker("--concurrency", "3")
            journal = crew.journal()

            def ended() -> bool:
                return journal.get_run(run_id).state in FINAL_RUN_STATES

            def published() -> int:
                return journal.batches.counts(run_id).batches.get(BatchState.PUBLISHED, 0)

            eventually(lambda: published() > 0, "a first part" + crew.said())
            killed, restarted = 0, False
            while killed < kills and not ended():
                pause(chance.uniform(0.5, 1.5) * every_s)
                if killed >= kills // 2 and not restarted:
                    server.restart()
                    restarted = True
                crew.replace(chance.choice(crew.workers), "--concurrency", "3")
                killed += 1
            if not restarted:
                server.restart()
            try:
                eventually(lambda: patient(ended), "the run's end", deadline_s=240 + 3.0 * batches)
            except AssertionError:
                raise AssertionError(crew.said()) from None
            run = journal.get_run(run_id)
            journal.close()
            assert run.state == "completed", f"{run.error}\n{crew.said()}"
            check_right(folder / "out", rows)
            bill = cloud.bill()
            assert bill.texts == rows
            assert bill.rows_billed_twice == 0
            assert bill.duplicate_jobs == {}
            assert crew.type("verify", "out", "--json").returncode == 0
            said = crew.said()
            assert "Traceback" not in said
            assert PostgresServer.password not in said
            assert cloud.api_key not in said
            return {"batches": batches, "kills": killed, "jobs": len(bill.jobs_created)}


def patient(ask: Any) -> bool:
    """Asks a journal that may be away."""
    try:
        return bool(ask())
    except JournalError as error:
        if not error.transient:
            raise
        return False


def pause(seconds: float) -> None:
    """A moment in which the workers do what they do."""
    subprocess.run(["sleep", f"{seconds:.3f}"], check=True)


def test_workers_that_are_killed_bring_every_row_once(tmp_path: Path) -> None:
    """Twelve batches, four workers, four kills, one restart of PostgreSQL."""
    with PostgresServer() as server:
        happened = live_through(
            tmp_path, server, batches=12, seed=7, kills=4, every_s=1.0, hint_s=2.0
        )
    assert happened["kills"] >= 1


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2])
def test_two_hundred_batches_on_a_bad_day(tmp_path: Path, seed: int) -> None:
    """The whole of it, beside the same run by one process, whose output is the same."""
    with PostgresServer() as server:
        happened = live_through(tmp_path, server, batches=200, seed=seed, kills=40, every_s=4.0)
    print(json.dumps(happened))
    with CloudProcess(seed=seed) as cloud:
        variables = {
            "GOOGLE_API_KEY": cloud.api_key,
            "GOOGLE_GEMINI_BASE_URL": cloud.gemini_url,
        }
        with Crew(tmp_path, str(tmp_path / "alone.db"), variables) as alone:
            alone.type("run", "texts.jsonl", "-o", "alone", "--key", "id", *FLAGS)
    assert output(tmp_path / "out").equals(output(tmp_path / "alone"))
