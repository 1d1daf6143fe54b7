"""A hidden ceiling that moves, two runs in two processes under it: few creates are refused."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import forking
from embatch.config import journal_url
from embatch.journal.store import Journal
from embatch.runs.quota import Belief
from embatch.runs.status import read_status
from embatch.testing.cloud import CloudProcess, Fault, expected_vectors
from embatch.vectors import normalize

pytestmark = pytest.mark.timeout(600)

HURRIED = Path(__file__).with_name("hurried.py")
FACTOR = 60
"""A second of the service is a minute of the runs."""
JOB_S = 6.0
ROWS = 1_000
BATCH_ITEMS = 10
DIMS = 128
CEILINGS = (8_000, 2_400, 16_000)
"""Tokens; batches have some 600."""
PHASE_S = 15.0
DEADLINE_S = 300
SCOPE = "gemini/"


def text_of(name: str, row: int) -> str:
    """A text of 60 to 400 bytes that stands nowhere else."""
    return f"{name} {row} " + "and on " * random.Random(row).randint(8, 55)


@dataclass
class Runs:
    """Two runs that share a journal and a key."""

    folder: Path
    cloud: CloudProcess
    since: float
    factor: float = FACTOR

    def write(self, name: str) -> None:
        """Input of a run."""
        rows = [json.dumps({"id": row, "text": text_of(name, row)}) for row in range(ROWS)]
        (self.folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

    def command(self, *arguments: str) -> list[str]:
        """A command line in a hurry."""
        return [sys.executable, str(HURRIED), str(self.factor), str(self.since), "--", *arguments]

    def environ(self) -> dict[str, str]:
        """What leads to the cloud, and nothing else."""
        return {
            "EMBATCH_HOME": str(self.folder / "home"),
            "PATH": "/usr/bin:/bin",
            "GOOGLE_API_KEY": self.cloud.api_key,
            "GOOGLE_GEMINI_BASE_URL": self.cloud.gemini_url,
        }

    def start(self, name: str, *more: str) -> subprocess.Popen[str]:
        """A run of its own process."""
        flags = ["--provider", "gemini", "--key", "id", "--dims", str(DIMS), "--no-probe"]
        flags += ["--task-type", "retrieval_document", "--audit", "off"]
        flags += ["--max-batch-items", str(BATCH_ITEMS), "--poll-interval", "30", "--json"]
        return forking.Popen(
            self.command("run", f"{name}.jsonl", "-o", name, *flags, *more),
            env=self.environ(),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def status(self) -> dict[str, Any]:
        """The only run, as its status has it; a state of `unknown` before there is one."""
        if not list(self.folder.glob("*/manifest.json")):
            return {"state": "unknown", "written": 0}
        journal = Journal.open(journal_url(str(self.folder / "home" / "journal.db")))
        try:
            now = self.since + (time.time() - self.since) * self.factor
            found = [read_status(journal, run.id, now=now) for run in journal.list_runs()]
        finally:
            journal.close()
        return found[0].to_json() if found else {"state": "unknown", "written": 0}

    def check(self, name: str) -> None:
        """Every row of a run once, each with its own vector."""
        tables = [pq.read_table(path) for path in (self.folder / name).glob("part-*.parquet")]
        rows = [row for table in tables for row in table["row"].to_pylist()]
        assert sorted(rows) == list(range(ROWS))
        found = np.concatenate(
            [
                table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS)
                for table in tables
            ]
        )
        texts = [text_of(name, row) for row in rows]
        truth = normalize(expected_vectors(texts, dims=DIMS, task_type="retrieval_document"))
        assert np.array_equal(found, truth)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """A cloud that takes jobs of seconds, and nothing sent yet."""
    with CloudProcess(state=tmp_path / "cloud", job_duration_s=JOB_S) as cloud:
        yield Runs(folder=tmp_path, cloud=cloud, since=time.time())
        assert cloud.crashes() == []


def test_two_runs_learn_one_ceiling_that_moves(runs: Runs) -> None:
    """8 k, then 2.4 k, then 16 k tokens: fewer than one create in ten is refused."""
    first, *later = CEILINGS
    steps = [[PHASE_S * (n + 1), tokens] for n, tokens in enumerate(later)]
    for name in ("one", "two"):
        runs.write(name)
    runs.cloud.add_fault(Fault("token_ceiling", args={"tokens": first, "steps": steps}))
    working = [runs.start(name) for name in ("one", "two")]
    for process in working:
        out, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, err[-3000:]
        assert json.loads(out)["written"] == ROWS
    for name in ("one", "two"):
        runs.check(name)
    bill = runs.cloud.bill()
    creates, refused = bill.requests["batches.create"], bill.refused["batches.create"]
    print(f"\n{creates} creates, {refused} refused ({refused / creates:.1%})")
    assert (bill.rows_billed_twice, bill.duplicate_jobs) == (0, {})
    assert 0 < refused < creates / 10
    journal = Journal.open(journal_url(str(runs.folder / "home" / "journal.db")))
    (scope,) = {scope for run in journal.list_runs() for scope in journal.quotas.scopes_of(run.id)}
    belief = Belief.from_json(journal.quotas.believed(scope))
    journal.close()
    assert scope.startswith(SCOPE)
    assert (belief.accepted, belief.refused) == (creates - refused, refused)
    assert belief.tokens.most is not None
    assert belief.tokens.most > 2_400


def test_the_quota_of_a_day_parks_a_run_until_it_turns(runs: Runs) -> None:
    """What is under way is written meanwhile; at the time it said, the run goes on by itself."""
    runs.write("one")
    day = {"hints": "misleading", "retry_delay_s": 43.0}
    runs.cloud.add_fault(
        Fault("rate_limited", {"route": "batches.create"}, after=5, id="day", args=day)
    )
    runs.cloud.add_fault(Fault("job_duration", args={"seconds": 0.5}))
    process = runs.start("one")
    deadline = time.monotonic() + DEADLINE_S
    while (status := runs.status())["state"] != "parked" or status["written"] < 5 * BATCH_ITEMS:
        assert process.poll() is None
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 143
    assert status["written"] == 5 * BATCH_ITEMS
    assert "waiting for quota until" in status["waiting"]
    assert status["quota"]["waits_for"] == "day"
    assert runs.cloud.bill().refused["batches.create"] == 1
    runs.cloud.clear_faults("rate_limited")
    runs.since -= 24 * 3600.0 / FACTOR  # a day later
    process = runs.start("one")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err[-3000:]
    runs.check("one")
    assert runs.cloud.bill().rows_billed_twice == 0


def test_no_wait_submits_what_the_quota_allows(runs: Runs) -> None:
    """The command returns when the ceiling is met; a later one goes on."""
    runs.factor = 1
    runs.write("one")
    runs.cloud.add_fault(Fault("token_ceiling", args={"tokens": 3_000}))
    runs.cloud.add_fault(Fault("job_stuck"))
    process = runs.start("one", "--no-wait")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err[-3000:]
    status = json.loads(out)
    assert status["state"] == "running"
    assert 3 <= status["batches"]["submitted"] == len(runs.cloud.jobs()) <= 10
    assert status["quota"]["ceiling_tokens"] <= 3_000 * 1.1
