"""Vectors on the wrong texts, as processes against the fake cloud: found, bought again, told."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import forking
from embatch.testing.cloud import CloudProcess, Fault, expected_vectors
from embatch.vectors import normalize

pytestmark = pytest.mark.timeout(600)

KILLABLE = Path(__file__).with_name("killable.py")
DIMS = 128
DEADLINE_S = 120
INTERACTIVE = {"route": "models.batchEmbedContents"}
SHARES = (0.02, 0.1, 0.6, 1.0)
KILLS = (
    "batch.quarantined",
    "part.withdrawing",
    "batch.quarantined",
    "part.withdrawn",
    "batch.rebought",
)
"""On the way of a batch that is found out, and of one that is taken back because of it."""


@cache
def truth(text: str) -> np.ndarray:
    """The vector that a run must write for a text."""
    vector: np.ndarray = normalize(expected_vectors([text], dims=DIMS))[0]
    return vector


@dataclass
class Work:
    """One run in a home of its own."""

    folder: Path
    cloud: CloudProcess
    texts: list[str]

    def __post_init__(self) -> None:
        self.folder.mkdir()
        lines = [json.dumps({"id": f"key-{n}", "text": one}) for n, one in enumerate(self.texts)]
        (self.folder / "texts.jsonl").write_text("\n".join(lines) + "\n")

    def type(self, *arguments: str, kill_at: str = "-") -> subprocess.CompletedProcess[str]:
        """A command, run to its end or to its kill."""
        return forking.run(
            [sys.executable, str(KILLABLE), kill_at, "-", "-", "--", *arguments],
            env={
                "EMBATCH_HOME": str(self.folder / "home"),
                "PATH": "/usr/bin:/bin",
                "GOOGLE_API_KEY": self.cloud.api_key,
                "GOOGLE_GEMINI_BASE_URL": self.cloud.gemini_url,
            },
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def run(
        self, *flags: str, items: int = 20, kill_at: str = "-", out: str = "out"
    ) -> subprocess.CompletedProcess[str]:
        """The run, begun or taken up again."""
        return self.type(
            *("run", "texts.jsonl", "-o", out, "--provider", "gemini", "--key", "id"),
            *("--dims", str(DIMS), "--max-batch-items", str(items)),
            *("--poll-interval", "0.1", "--settle", "2", "--json", *flags),
            kill_at=kill_at,
        )

    def wrong_rows(self) -> int:
        """Rows of published parts whose vector is not that of their text."""
        wrong = 0
        for path in (self.folder / "out").glob("part-*.parquet"):
            table = pq.read_table(path)
            matrix = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS)
            for row, vector in zip(table["row"].to_pylist(), matrix, strict=True):
                wrong += not np.array_equal(vector, truth(self.texts[row]))
        return wrong

    def check(self) -> None:
        """Every key once, every vector that of its text."""
        parts = sorted((self.folder / "out").glob("part-*.parquet"))
        keys = [key for path in parts for key in pq.read_table(path)["key"].to_pylist()]
        assert sorted(keys) == sorted(f"key-{n}" for n in range(len(self.texts)))
        assert self.wrong_rows() == 0
        assert (self.folder / "out" / "failures.jsonl").read_text() == ""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    """One cloud for all; crashes of it fail the last test."""
    with CloudProcess(state=tmp_path_factory.mktemp("cloud"), job_duration_s=0.05) as process:
        yield process
        assert process.crashes() == []


@pytest.fixture
def work(cloud: CloudProcess, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes runs with texts that no other test has."""
    cloud.clear_faults()

    def make(rows: int, name: str = "work", *, again: int = 0) -> Work:
        """`again` texts stand twice."""
        texts = [f"text {n} of {request.node.name} {name}" for n in range(rows)]
        return Work(tmp_path / name, cloud, texts + texts[:again])

    yield make
    cloud.clear_faults()


def never_wrong(work: Any, share: float, seed: int) -> tuple[int, int]:
    """A run of which the first jobs are spoiled, all rows audited. Gives rows bought twice."""
    job: Work = work(60, f"{share}-{seed}")
    before = job.cloud.bill().rows_billed_twice
    # One that is wholly wrong waits for a person only until another has passed: spoil all three.
    spoiled = 3 if share == 1.0 else 1 + seed % 3
    job.cloud.add_fault(
        Fault("swap_values", times=spoiled, args={"fraction": share}, id=f"{share}-{seed}")
    )
    done = job.run("--audit", "all", "--no-probe")
    assert job.wrong_rows() == 0
    if share == 1.0:  # nothing is right: a person is asked, who buys it again
        assert done.returncode == 5, done.stderr[-3000:]
        while done.returncode == 5:
            done = job.type("resume", "out", "--json")
            assert job.wrong_rows() == 0
    assert done.returncode == 0, done.stderr[-3000:]
    job.check()
    return job.cloud.bill().rows_billed_twice - before, spoiled * 20


@pytest.mark.parametrize(("share", "seed"), list(zip(SHARES, range(4), strict=True)))
def test_with_every_row_audited_no_wrong_vector_reaches_a_part(
    work: Any, share: float, seed: int
) -> None:
    """Whatever share of a batch stands under one another's keys; only those are bought twice."""
    twice, spoiled = never_wrong(work, share, seed)
    assert 0 < twice <= spoiled


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_with_every_row_audited_no_wrong_vector_reaches_a_part_over_many_seeds(work: Any) -> None:
    """The same for forty seeds of every share."""
    for share in SHARES:
        for seed in range(40):
            twice, spoiled = never_wrong(work, share, seed)
            assert 0 < twice <= spoiled
        print(f"--audit all, {share:.0%} misaligned: 40 runs, 0 wrong vectors written")


def test_a_misaligned_batch_is_told_without_its_texts(work: Any) -> None:
    """What was put aside is listed with keys and cosines, and counted as bought again."""
    job: Work = work(100)
    job.cloud.add_fault(Fault("swap_values", times=1, after=1, args={"fraction": 0.6}))
    before = job.cloud.bill()
    done = job.run("--audit", "all", "--no-probe")
    assert done.returncode == 0, done.stderr[-3000:]
    job.check()
    bill, cost = job.cloud.bill(), json.loads(done.stdout)["cost"]
    assert cost["again_why"] == {"misaligned": bill.rows_billed_twice - before.rows_billed_twice}
    assert cost["audits"]["rows"] == bill.interactive_rows - before.interactive_rows
    spent = (bill.tokens - before.tokens) * 0.075e-6
    spent += (bill.interactive_tokens - before.interactive_tokens) * 0.15e-6
    assert cost["spent_usd"] == pytest.approx(spent)
    shown = job.type("failures", "out", "--quarantined", "--json")
    (batch,) = json.loads(shown.stdout)["quarantined"]
    assert (batch["state"], batch["code"]) == ("split", "misaligned")
    wrong = [row for row in batch["audited"] if not row["passed"]]
    assert wrong
    assert all(row["key"] == f"key-{row['row']}" and row["cosine"] < 0.99 for row in wrong)
    plain = job.type("failures", "out", "--quarantined")
    assert f"key-{wrong[0]['row']}" in plain.stdout
    assert "bought again" in plain.stdout
    assert not any(text in plain.stdout + shown.stdout for text in job.texts)


def test_kills_amid_a_quarantine_lose_and_double_nothing(work: Any) -> None:
    """A batch that slipped through a small sample is taken back, with copies of its vectors.

    Samples are drawn at random: four times in five the first batch slips through.
    """
    for name in range(8):
        job: Work = work(60, f"take {name}", again=10)
        job.cloud.clear_faults()
        first, second = ({"display_name": f"embatch:*:*:{number}:1:*"} for number in (0, 1))
        job.cloud.add_fault(Fault("swap_values", first, args={"indices": [2, 5]}))
        job.cloud.add_fault(Fault("swap_values", second, args={"fraction": 1.0}))
        job.cloud.add_fault(Fault("job_duration", second, args={"seconds": 3.0}))
        codes = [job.run("--no-probe", kill_at=f"{one}:1").returncode for one in KILLS]
        done = job.run("--no-probe")
        assert done.returncode == 0, done.stderr[-3000:]
        job.check()
        if set(codes) == {-signal.SIGKILL}:
            break
    assert set(codes) == {-signal.SIGKILL}
    verified = job.type("verify", "out", "--json")
    assert json.loads(verified.stdout)["sound"] is True


def test_audits_that_the_service_puts_off_are_made_later(work: Any) -> None:
    """429 and 503 of the interactive API: no row is bought again, no audit is left out."""
    job: Work = work(60)
    before = job.cloud.bill()
    job.cloud.add_fault(Fault("rate_limited", INTERACTIVE, times=6))
    job.cloud.add_fault(Fault("server_error", INTERACTIVE, times=6, args={"code": 503}))
    done = job.run("--no-probe")
    assert done.returncode == 0, done.stderr[-3000:]
    job.check()
    after = job.cloud.bill()
    assert after.rows_billed_twice == before.rows_billed_twice
    assert after.interactive_rows - before.interactive_rows == 6


def test_keys_that_nobody_sent_cost_an_audit_and_no_purchase(work: Any) -> None:
    """The own keys are all there, and right."""
    job: Work = work(60)
    before = job.cloud.bill().rows_billed_twice
    job.cloud.add_fault(Fault("unknown_rows", args={"count": 3}))
    done = job.run("--no-probe")
    assert done.returncode == 0, done.stderr[-3000:]
    job.check()
    assert job.cloud.bill().rows_billed_twice == before


def test_keys_of_another_batch_are_bought_again(work: Any) -> None:
    """Which file this is cannot be known."""
    job: Work = work(60)
    before = job.cloud.bill().rows_billed_twice
    job.cloud.add_fault(Fault("foreign_rows", times=1, args={"count": 1}))
    done = job.run("--no-probe")
    assert done.returncode == 0, done.stderr[-3000:]
    job.check()
    assert job.cloud.bill().rows_billed_twice - before == 20


def test_the_probe_goes_alone(work: Any) -> None:
    """Twenty rows, and nothing else before their vectors are written."""
    job: Work = work(300)
    seen = {one.name for one in job.cloud.bill().jobs}
    job.cloud.add_fault(Fault("job_stuck"))
    begun = job.run("--no-wait", items=100)
    assert begun.returncode == 0, begun.stderr[-3000:]
    (probe,) = [one for one in job.cloud.jobs() if one["name"] not in seen]
    said = job.type(
        *("run", "texts.jsonl", "-o", "out", "--provider", "gemini", "--key", "id"),
        *("--dims", str(DIMS), "--max-batch-items", "100", "--no-wait"),
    )
    assert "has sent its probe" in said.stdout
    job.cloud.clear_faults()
    done = job.run(items=100)
    assert done.returncode == 0, done.stderr[-3000:]
    job.check()
    rows = {one.name: one.rows for one in job.cloud.bill().jobs}
    assert rows[probe["name"]] == 20
    assert sorted(one for name, one in rows.items() if name not in seen) == [20, 80, 100, 100]


def test_an_old_output_is_audited(work: Any) -> None:
    """Sound, then with two vectors exchanged, then against a source that changed."""
    job: Work = work(80)
    assert job.run("--audit", "off", items=50).returncode == 0
    sound = job.type("audit", "out", "--sample", "50", "--json")
    assert sound.returncode == 0, sound.stderr
    found = json.loads(sound.stdout)
    assert (found["compared"], found["output_rows"], found["mismatches"]) == (50, 80, [])
    assert found["least"] > 0.9999
    assert found["cost_usd"] == pytest.approx(found["tokens"] * 0.15e-6)
    said = job.type("audit", "out", "--sample", "10")
    assert "about" in said.stderr
    assert "every vector is that of its text" in said.stdout
    capped = job.type("audit", "out", "--sample", "80", "--max-cost", "0.0000001")
    assert capped.returncode == 4
    assert "--sample" in capped.stderr

    (part, *_) = sorted((job.folder / "out").glob("part-*.parquet"))
    exchange(part, 3, 4)
    bad = job.type("audit", "out", "--sample", "80", "--json")
    assert bad.returncode == 1
    assert [row["key"] for row in json.loads(bad.stdout)["mismatches"]] == ["key-3", "key-4"]

    source = job.folder / "texts.jsonl"
    moved = source.rename(job.folder / "moved.jsonl")
    gone = job.type("audit", "out")
    assert gone.returncode == 2
    assert "--source" in gone.stderr
    again = job.type("audit", "out", "--sample", "80", "--source", str(moved))
    assert again.returncode == 1
    source.write_text(moved.read_text().replace("text 7 of", "changed 7 of"))
    changed = job.type("audit", "out", "--sample", "80")
    assert changed.returncode == 1
    assert "row 7 (key 'key-7')" in changed.stderr
    assert not any(text in changed.stderr for text in job.texts)


def test_an_old_matrix_is_audited(work: Any) -> None:
    """`-o x.npy`, its keys beside it."""
    job: Work = work(40)
    assert job.run("--audit", "off", out="x.npy").returncode == 0
    found = json.loads(job.type("audit", "x.npy", "--sample", "40", "--json").stdout)
    assert (found["compared"], found["sound"]) == (40, True)


def exchange(part: Path, one: int, other: int) -> None:
    """Puts two vectors of a part in one another's place."""
    table = pq.read_table(part)
    order = list(range(table.num_rows))
    order[one], order[other] = other, one
    column = table["embedding"].combine_chunks().take(pa.array(order))
    at = table.schema.get_field_index("embedding")
    pq.write_table(table.set_column(at, table.schema.field(at), column), part)
