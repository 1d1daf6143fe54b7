"""kill -9 at every checkpoint and at random moments: every key once, every vector right."""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import forking
from embatch.testing.engine import FakeEngine

pytestmark = pytest.mark.timeout(1200)

KILLABLE = Path(__file__).with_name("killable.py")
DIMS = 16
POISON = "poison"
BATCH_ITEMS = 8
ROWS = 90
DEADLINE_S = 120
SEED = 20_261_123
WORDS = ("river", "engine", "winter", "market")


class Proof:
    """One output under test, in its own home."""

    def __init__(self, folder: Path, out: str = "out") -> None:
        self.home = folder / "home"
        self.out = folder / out
        self.trace = folder / "trace"
        self.input = folder / "texts.jsonl"
        self.texts: dict[str, str | None] = {}
        for row in range(ROWS):
            text: str | None = f"text number {row}"
            if row % 6 == 5:
                text = f"text number {row // 2}"  # stands elsewhere, before or after
            if row % 17 == 0:
                text = None if row % 2 else ""
            if row == 43:
                text = f"a {POISON} text"
            self.texts[f"key-{row}"] = text
        lines = [json.dumps({"id": key, "text": text}) for key, text in self.texts.items()]
        self.input.write_text("\n".join(lines) + "\n")

    def start(
        self, kill_at: str = "-", trace: str = "-", *, flags: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """`embatch run` on the input, with more `flags`."""
        arguments = ["run", str(self.input), "-o", str(self.out), "--key", "id", "--json"]
        arguments += ["--max-batch-items", str(BATCH_ITEMS), "--poll-interval", "0.02"]
        return self.type(*arguments, *flags, kill_at=kill_at, trace=trace)

    def type(
        self, *arguments: str, kill_at: str = "-", trace: str = "-", poison: str = POISON
    ) -> subprocess.Popen[bytes]:
        """Any command of `embatch`."""
        return forking.Popen(
            [sys.executable, str(KILLABLE), kill_at, trace, poison, "--", *arguments],
            env={"EMBATCH_HOME": str(self.home), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def killed(self, kill_at: str, *, flags: Sequence[str] = ()) -> None:
        """A start that dies at a checkpoint."""
        process = self.start(kill_at=kill_at, flags=flags)
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == -signal.SIGKILL, kill_at

    def finish(self, *, trace: str = "-", flags: Sequence[str] = ()) -> dict[str, object]:
        """Runs to the end; three failed rows make it exit 3."""
        process = self.start(trace=trace, flags=flags)
        output, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 3, errors.decode()
        status: dict[str, object] = json.loads(output)
        return status

    def wanted(self) -> dict[str, str]:
        return {key: text for key, text in self.texts.items() if text and POISON not in text}

    def check(self, *, mended: bool = False) -> None:
        """Every key once, every vector that of its text, every failure with its reason.

        `mended`: the poison was taken out and the row tried again.
        """
        wanted = (
            {key: text for key, text in self.texts.items() if text} if mended else self.wanted()
        )
        keys, found = self.written()
        assert sorted(keys) == sorted(wanted)
        truth = FakeEngine(dims=DIMS).expected([wanted[key] for key in keys])
        assert np.array_equal(found, truth)
        beside = self.out if self.out.is_dir() else self.out.with_suffix(".embatch")
        lines = (beside / "failures.jsonl").read_text().splitlines()
        failures = [json.loads(line) for line in lines]
        codes = {failure["key"]: failure["code"] for failure in failures}
        missing = self.texts.keys() - wanted.keys()
        assert codes.keys() == missing
        assert len(lines) == len(missing)
        for key in missing:
            assert (codes[key] == "empty_text") == (not self.texts[key])
        # A folder without a row, of a kill between the two, is swept when it is old.
        with closing(sqlite3.connect(self.home / "service" / "service.db")) as service:
            assert service.execute("SELECT count(*) FROM batches").fetchone() == (0,)
        assert not list(beside.rglob(".part*"))

    def written(self) -> tuple[list[str], NDArray[np.float32]]:
        """Keys and vectors of the output, whatever its form."""
        if self.out.suffix == ".npy":
            keys = pq.read_table(self.out.with_suffix(".keys.parquet"))["key"].to_pylist()
            return keys, np.load(self.out)
        paths = [self.out] if self.out.is_file() else sorted(self.out.glob("part-*.parquet"))
        tables = [pq.read_table(path) for path in paths]
        if self.out.is_file():
            rows = tables[0]["row"].to_pylist()
            assert rows == sorted(rows)
        vectors = [table["embedding"].combine_chunks().flatten().to_numpy() for table in tables]
        keys = [key for table in tables for key in table["key"].to_pylist()]
        return keys, np.concatenate(vectors).reshape(-1, DIMS)


def checkpoints(folder: Path) -> list[str]:
    """Every checkpoint that a whole run passes, in order of first passing."""
    folder = folder / "whole"
    folder.mkdir()
    proof = Proof(folder)
    process = proof.start(trace=str(proof.trace))
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 3, errors.decode()
    proof.check()
    return list(dict.fromkeys(proof.trace.read_text().split()))


EXPECTED = {
    "plan.digest",
    "plan.digested",
    "stage.written",
    "stage.journaled",
    "plan.staged",
    "copies.written",
    "copies.staged",
    "copies.journaled",
    "plan.done",
    "upload.intended",
    "upload.done",
    "submit.intended",
    "submit.done",
    "submit.journaled",
    "results.ready",
    "results.joined",
    "part.written",
    "part.journaled",
    "part.renamed",
    "part.published",
    "batch.cleared",
    "finish.failures",
    "finish.assembled",
    "finish.manifest",
    "finish.journaled",
}


def test_a_run_killed_at_every_checkpoint_ends_right(tmp_path: Path) -> None:
    """At the first passing of each checkpoint, and once more in the middle of the run."""
    passed = checkpoints(tmp_path)
    assert set(passed) >= EXPECTED
    for name in passed:
        for count in (1, 4) if name in REPEATED else (1,):
            folder = tmp_path / f"{name}-{count}"
            folder.mkdir()
            proof = Proof(folder)
            proof.killed(f"{name}:{count}")
            proof.finish()
            proof.check()


@pytest.mark.parametrize("out", ["out.npy", "out.parquet"])
def test_a_single_file_killed_while_it_is_finished_ends_right(tmp_path: Path, out: str) -> None:
    """One start after another dies a step later, on the same output."""
    proof = Proof(tmp_path, out)
    for name in ("failures", "assembled", "manifest", "journaled"):
        proof.killed(f"finish.{name}:1")
    proof.finish()
    proof.check()


def test_a_retry_killed_in_its_middle_ends_right(tmp_path: Path) -> None:
    """The rows that failed are entered once, whenever `retry` dies; the mended one is written."""
    for number, name in enumerate(
        ("retry.staged", "retry.journaled", "submit.done", "part.written")
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        proof = Proof(folder)
        run_id = str(proof.finish()["id"])
        died = proof.type("retry", run_id, "--json", kill_at=f"{name}:1", poison="nothing")
        died.communicate(timeout=DEADLINE_S)
        assert died.returncode == -signal.SIGKILL, name
        again = "retry" if name == "retry.staged" else "resume"
        process = proof.type(again, run_id, "--json", poison="nothing")
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 3, errors.decode()  # empty texts stay failures
        proof.check(mended=True)


def test_a_killed_run_that_reuses_vectors_ends_right(tmp_path: Path) -> None:
    """Reused rows and bought ones alike, each once; and only the new texts are bought."""
    old = Proof(tmp_path)
    old.finish()
    for number, name in enumerate(("copies.written", "copies.staged", "part.journaled")):
        proof = Proof(tmp_path, f"new-{number}")
        proof.texts |= {f"more-{row}": f"another text {row}" for row in range(20)}
        lines = [json.dumps({"id": key, "text": text}) for key, text in proof.texts.items()]
        proof.input = tmp_path / f"more-{number}.jsonl"
        proof.input.write_text("\n".join(lines) + "\n")
        flags = ("--reuse", str(old.out))
        proof.killed(f"{name}:1", flags=flags)
        status = proof.finish(flags=flags)
        distinct = set(old.wanted().values())
        assert int(str(status["reused"])) >= len(distinct)
        proof.check()


def test_an_output_whose_journal_is_gone_is_adopted_through_kills(tmp_path: Path) -> None:
    """Its parts are taken over after a look, whenever that dies, and nothing is bought again."""
    proof = Proof(tmp_path)
    proof.finish()
    shutil.rmtree(proof.home)
    for name in ("adopt.verified", "adopt.claimed", "plan.digested"):
        proof.killed(f"{name}:1")
    proof.finish(trace=str(proof.trace))
    proof.check()
    # The poison alone is tried again: its failure is not among the parts.
    assert proof.trace.read_text().split().count("submit.done") == 1


REPEATED = {"stage.journaled", "submit.done", "part.journaled", "part.renamed"}


def kill_at_random(folder: Path, moments: Sequence[float]) -> int:
    """Starts again and again, killed after each of `moments` seconds; then lets it end."""
    proof = Proof(folder)
    killed = 0
    for moment in moments:
        process = proof.start()
        time.sleep(moment)  # the moment of the kill is the point
        if process.poll() is None:
            process.kill()
            killed += 1
        process.communicate(timeout=DEADLINE_S)
    proof.finish()
    proof.check()
    return killed


def test_a_run_killed_at_twenty_random_moments_ends_right(tmp_path: Path) -> None:
    """Twenty kills, spread over fresh and resumed runs."""
    chance = random.Random(SEED)
    killed = 0
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed += kill_at_random(folder, [chance.uniform(0.3, 1.3) for _ in range(4)])
    assert killed >= 10


def test_two_processes_share_a_run(tmp_path: Path) -> None:
    """Both work on it, no batch is done twice, and both come to the same end."""
    proof = Proof(tmp_path)
    traces = [tmp_path / "trace-0", tmp_path / "trace-1"]
    # Slow enough that neither is done before the other has begun.
    slow = ("--poll-interval", "1.5")
    processes = [proof.start(trace=str(trace), flags=slow) for trace in traces]
    for process in processes:
        _, errors = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 3, errors.decode()
    proof.check()
    passed = [trace.read_text().split() for trace in traces]
    both = passed[0] + passed[1]
    distinct = {text for text in proof.texts.values() if text}
    assert both.count("submit.done") == -(-len(distinct) // BATCH_ITEMS)
    assert both.count("part.published") == len(list(proof.out.glob("part-*.parquet")))
    assert min(names.count("part.published") for names in passed) > 0


@pytest.mark.soak
def test_soak_kills_at_a_thousand_random_moments(tmp_path: Path) -> None:
    """The long form: 250 runs of four kills each."""
    chance = random.Random(SEED + 1)
    killed = 0
    for number in range(250):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed += kill_at_random(folder, [chance.uniform(0.2, 2.0) for _ in range(4)])
    print(f"\nkills that hit a living run: {killed} of 1000")


@pytest.mark.engine
def test_a_killed_run_of_the_real_engine_ends_right(tmp_path: Path) -> None:
    """Killed while it embeds, then let end: the vectors of an uninterrupted engine, by cosine."""
    from embatch.local.engine import Engine

    texts = [f"{word} number {n}: {'and on ' * (n % 40)}" for n in range(150) for word in WORDS]
    source = tmp_path / "texts.txt"
    source.write_text("\n".join(texts) + "\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "embatch", "run", str(source), "-o", str(out)]
    environ = {"EMBATCH_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"}
    database = tmp_path / "home" / "service" / "service.db"
    for _ in range(2):
        process = subprocess.Popen(
            [*command, "--max-batch-items", "128"], env=environ, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + DEADLINE_S
        before = len(list(out.glob("part-*.parquet")))
        while len(list(out.glob("part-*.parquet"))) == before and time.monotonic() < deadline:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)  # the next part is the moment of the kill
        process.kill()
        process.wait()
    assert database.exists()
    subprocess.run(command, env=environ, check=True, timeout=DEADLINE_S, capture_output=True)
    tables = [pq.read_table(path) for path in out.glob("part-*.parquet")]
    rows = [row for table in tables for row in table["row"].to_pylist()]
    assert sorted(rows) == list(range(len(texts)))
    found = np.concatenate(
        [t["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 384) for t in tables]
    )
    with Engine.open() as engine:
        truth = engine.embed([texts[row] for row in rows]).vectors
    assert float(np.einsum("ij,ij->i", found, truth).min()) >= 0.9999
