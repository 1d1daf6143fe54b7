"""Processes that read results: right, bounded by their run's life, and no loss when one dies."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from embatch.runs.gathered import IN_MEMORY_BYTES
from embatch.runs.readers import WORTH_VALUES
from embatch.testing.cloud import CloudProcess, Fault, expected_vectors

pytestmark = pytest.mark.timeout(300)

DIMS = 3072
ROWS = WORTH_VALUES // DIMS + 40
BATCH_ITEMS = 900
DEADLINE_S = 120
T = TypeVar("T")


def text_of(row: int) -> str:
    """A text that stands nowhere else."""
    return f"text number {row}"


@dataclass
class Job:
    """One run that is large enough for reading processes."""

    folder: Path
    cloud: CloudProcess

    def start(self, items: int = BATCH_ITEMS) -> subprocess.Popen[str]:
        """The run, begun or taken up again."""
        variables = {
            "EMBATCH_HOME": str(self.folder / "home"),
            "PATH": "/usr/bin:/bin",
            "GOOGLE_API_KEY": self.cloud.api_key,
            "GOOGLE_GEMINI_BASE_URL": self.cloud.gemini_url,
        }
        flags = ["--provider", "gemini", "--dims", str(DIMS), "--key", "id", "--audit", "off"]
        sizes = ["--max-batch-items", str(items), "--no-probe", "--poll-interval", "0.2"]
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "embatch", "run", "texts.jsonl", "-o", "out"),
                *(*flags, *sizes, "--json", "--log-format", "text"),
            ],
            cwd=self.folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, command: subprocess.Popen[str]) -> None:
        """Waits for the run's end and looks at everything that it wrote."""
        out, err = command.communicate(timeout=DEADLINE_S)
        assert command.returncode == 0, err[-3000:]
        assert json.loads(out)["written"] == ROWS
        keys: list[str] = []
        for path in sorted((self.folder / "out").glob("part-*.parquet")):
            table = pq.read_table(path, columns=["key", "embedding"])
            own = table["key"].to_pylist()
            found = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS)
            texts = [text_of(int(key.removeprefix("key-"))) for key in own]
            assert np.abs(found - expected_vectors(texts, dims=DIMS)).max() < 1e-6
            keys += own
        assert sorted(keys) == sorted(f"key-{row}" for row in range(ROWS))
        bill = self.cloud.bill()
        assert (bill.texts, bill.rows_billed_twice, bill.duplicate_jobs) == (ROWS, 0, {})


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """A source of distinct texts and a cloud, whose downloads take a while."""
    lines = (json.dumps({"id": f"key-{row}", "text": text_of(row)}) for row in range(ROWS))
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    with CloudProcess(state=tmp_path / "cloud") as cloud:
        slow = {"bytes": 1 << 20, "pause_s": 0.02}
        cloud.add_fault(Fault("trickle", {"route": "files.download"}, args=slow))
        yield Job(tmp_path, cloud)


def soon(look: Callable[[], T | None]) -> T:
    """What `look` gives once it gives anything."""
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def lives(process: psutil.Process) -> bool:
    """It has not ended."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def readers_of(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that a run has started and that live."""
    assert command.poll() is None, "the run has ended"
    return [process for process in psutil.Process(command.pid).children() if lives(process)]


def test_results_read_in_processes_stand_at_their_texts(job: Job) -> None:
    """More than one reads, and none is left."""
    command = job.start()
    readers = soon(lambda: found if len(found := readers_of(command)) > 1 else None)
    job.finish(command)
    assert not any(map(lives, readers))


def test_a_batch_that_is_too_large_for_memory_comes_through_a_file(job: Job) -> None:
    """All rows in one batch; the file is gone in the end."""
    assert ROWS * DIMS * 4 > IN_MEMORY_BYTES
    command = job.start(items=ROWS)
    soon(lambda: [*job.folder.rglob(".vectors-*.f32")])
    job.finish(command)
    assert not [*job.folder.rglob(".vectors-*.f32")]


def test_a_killed_reader_costs_a_reading_and_nothing_else(job: Job) -> None:
    """kill -9 of each of the first two: their batches are read again, none is bought again."""
    command = job.start()
    for _ in range(2):
        reader = soon(lambda: readers_of(command) or None)[0]
        reader.send_signal(signal.SIGKILL)
        soon(lambda reader=reader: not lives(reader))
    job.finish(command)


def test_readers_end_with_their_run_however_that_ends(job: Job) -> None:
    """kill -9 of the run, and its next start goes on."""
    command = job.start()
    readers = soon(lambda: readers_of(command) or None)
    command.kill()
    command.communicate()
    soon(lambda: not any(map(lives, readers)))
    job.finish(job.start())
