"""`--max-cost` on both clouds, as processes: the service's own bill never passes it."""

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import forking
from embatch.testing.cloud import CloudProcess, Fault, expected_vectors
from embatch.vectors import normalize

pytestmark = pytest.mark.timeout(600)

KILLABLE = Path(__file__).with_name("killable.py")
ROWS = 600
DIMS = 128
DEADLINE_S = 240
SHARE = 0.37
STAGING = "gs://bucket/staged"
USD_A_MILLION = {"batch": 0.075, "interactive": 0.15}
OVER_BUDGET = 4


def text_of(row: int) -> str:
    """A text that stands nowhere else."""
    return f"text number {row} of the catalogue {'and on ' * (row % 5)}"


@cache
def private_key() -> str:
    """Of the service account that the fake cloud gives tokens to."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@dataclass
class Shopper:
    """One run with money to spend, in a home of its own."""

    folder: Path
    on: str
    cloud: CloudProcess
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out = self.folder / "out"
        lines = [json.dumps({"id": f"key-{row}", "text": text_of(row)}) for row in range(ROWS)]
        (self.folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
        account = {
            "type": "service_account",
            "project_id": "a-project",
            "private_key_id": "1",
            "private_key": private_key(),
            "client_email": "robot@a-project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": self.cloud.token_url,
        }
        (self.folder / "account.json").write_text(json.dumps(account))

    def environ(self) -> dict[str, str]:
        """What leads to the cloud, and nothing else."""
        variables = {"EMBATCH_HOME": str(self.folder / "home"), "PATH": "/usr/bin:/bin"}
        if self.on == "gemini":
            return variables | {
                "GOOGLE_API_KEY": self.cloud.api_key,
                "GOOGLE_GEMINI_BASE_URL": self.cloud.gemini_url,
            }
        return variables | {
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.folder / "account.json"),
            "GOOGLE_CLOUD_PROJECT": "a-project",
            "GOOGLE_CLOUD_LOCATION": "us-central1",
            "GOOGLE_VERTEX_BASE_URL": self.cloud.vertex_url,
            "STORAGE_EMULATOR_HOST": self.cloud.storage_url,
        }

    def type(self, *arguments: str, kill_at: str = "-") -> subprocess.CompletedProcess[str]:
        """A command, run to its end or to its kill."""
        return forking.run(
            [sys.executable, str(KILLABLE), kill_at, "-", "-", "--", *arguments],
            env=self.environ(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def asked(self, command: str, *more: str) -> list[str]:
        """`run` or `plan` on the texts."""
        staging = ["--staging", STAGING] if self.on == "vertex" else []
        space = ["--dims", str(DIMS), "--task-type", "retrieval_document", *staging]
        return [command, "texts.jsonl", "--provider", self.on, "--key", "id", *space, *more]

    def quote(self) -> float:
        """What `plan` says that the run costs, in dollars."""
        planned = self.type(*self.asked("plan", "--json"))
        assert planned.returncode == 0, planned.stderr
        usd: float = json.loads(planned.stdout)["cost_usd"]
        return usd

    def run(
        self, cap: float, *, more: Sequence[str] = (), **killing: str
    ) -> subprocess.CompletedProcess[str]:
        """The run under a cap, begun or taken up again."""
        pace = ["--poll-interval", "0.1", "--settle", "2", "--max-cost", f"{cap:.9f}"]
        return self.type(*self.asked("run", "-o", "out", *pace, *more, "--json"), **killing)

    def billed(self) -> float:
        """What the service charged, in dollars."""
        bill = self.cloud.bill()
        return (
            bill.tokens * USD_A_MILLION["batch"]
            + bill.interactive_tokens * USD_A_MILLION["interactive"]
        ) / 1e6

    def fault(self, kind: str, times: int | None = None, **args: Any) -> None:
        """Puts a fault in force."""
        match, after = args.pop("match", {}), args.pop("after_matches", 0)
        self.cloud.add_fault(Fault(kind, match, times=times, after=after, args=args))

    def check_whole(self) -> None:
        """Every key once, every vector that of its text, each row charged once."""
        keys: list[str] = []
        found: list[np.ndarray] = []
        for path in sorted(self.out.glob("part-*.parquet")):
            table = pq.read_table(path)
            keys += table["key"].to_pylist()
            found.append(table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS))
        assert sorted(keys) == sorted(f"key-{row}" for row in range(ROWS))
        texts = [text_of(int(key.removeprefix("key-"))) for key in keys]
        wanted = expected_vectors(texts, dims=DIMS, task_type="retrieval_document")
        assert np.allclose(np.concatenate(found), normalize(wanted), atol=1e-6)
        assert self.cloud.bill().rows_billed_twice == 0


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Shopper]]:
    """Starts a cloud, and a run's folder beside it; crashes of the cloud fail the test."""
    clouds: list[CloudProcess] = []

    def start(on: str = "gemini", **settings: Any) -> Shopper:
        folder = tmp_path / str(len(clouds))
        folder.mkdir()
        cloud = CloudProcess(state=folder / "cloud", job_duration_s=0.1, **settings)
        cloud.start()
        clouds.append(cloud)
        return Shopper(folder=folder, on=on, cloud=cloud)

    yield start
    for cloud in clouds:
        crashed = cloud.crashes()
        cloud.stop()
        assert crashed == []


def stopped(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The status of a run that ended at its budget."""
    assert done.returncode == OVER_BUDGET, done.stderr[-3000:]
    status: dict[str, Any] = json.loads(done.stdout)
    assert status["state"] == "over_budget"
    return status


def check_accounts(shopper: Shopper, cost: dict[str, Any]) -> None:
    """The ledger tells what the service's bill does, to the token."""
    bill = shopper.cloud.bill()
    assert (cost["bought"]["rows"], cost["bought"]["tokens"]) == (bill.rows, bill.tokens)
    audits = (cost["audits"]["rows"], cost["audits"]["tokens"])
    assert audits == (bill.interactive_rows, bill.interactive_tokens)
    assert cost["estimated_usd"] == 0.0
    assert shopper.billed() == pytest.approx(cost["spent_usd"])
    assert cost["spent_usd"] <= cost["cap_usd"]


def higher(status: dict[str, Any]) -> list[str]:
    """The command that the message of a stopped run names."""
    found = re.search(r"embatch (resume \S+ --max-cost \S+)", status["error"])
    assert found, status["error"]
    return [*shlex.split(found[1]), "--json"]


@pytest.mark.parametrize("on", ["gemini", "vertex"])
def test_a_cap_stops_the_run_under_it_and_a_higher_one_goes_on(begin: Any, on: str) -> None:
    """37 % of the quote: exit 4, most of it used, the bill under it and equal to the ledger; the
    command in the message ends the run."""
    shopper = begin(on)
    cap = SHARE * shopper.quote()
    status = stopped(shopper.run(cap))
    assert 0.7 * cap < shopper.billed() <= cap
    cost = status["cost"]
    check_accounts(shopper, cost)
    assert (cost["open_usd"], cost["rows_again"], cost["rows_failed"]) == (0, 0, 0)
    assert 0 < status["written"] < ROWS
    again = shopper.run(cap)
    assert again.returncode == OVER_BUDGET
    assert shopper.billed() <= cap
    done = shopper.type(*higher(status))
    assert done.returncode == 0, done.stderr[-3000:]
    shopper.check_whole()
    ended = json.loads(done.stdout)["cost"]
    check_accounts(shopper, ended)
    manifest = json.loads((shopper.out / "manifest.json").read_text())
    assert manifest["cost"]["spent_usd"] == ended["spent_usd"]


@pytest.mark.parametrize("on", ["gemini", "vertex"])
def test_a_cap_holds_though_no_answer_counts_tokens(begin: Any, on: str) -> None:
    """What the service does not count is estimated, marked so, and counts at its most against the
    cap: the bill stays under it where every byte is a token, four times the estimate. The command
    in the message ends the run."""
    shopper = begin(on, bytes_per_token=1)
    shopper.fault("usage_missing")
    cap = SHARE * shopper.quote()
    status = stopped(shopper.run(cap))
    assert 0.7 * cap < shopper.billed() <= cap
    cost = status["cost"]
    assert cost["estimated_usd"] == pytest.approx(cost["spent_usd"])
    assert cost["spent_usd"] < 0.5 * shopper.billed() <= cost["spent_usd"] + cost["kept_usd"] <= cap
    again = shopper.run(cap)
    assert again.returncode == OVER_BUDGET
    assert shopper.billed() <= cap
    done = shopper.type(*higher(status))
    assert done.returncode == 0, done.stderr[-3000:]
    shopper.check_whole()
    assert shopper.billed() <= json.loads(done.stdout)["cost"]["cap_usd"]


def test_kills_leave_the_cap_whole(begin: Any) -> None:
    """kill -9 around every purchase: the bill stays under the cap, and nothing is bought twice."""
    shopper = begin()
    cap = SHARE * shopper.quote()
    for place in ("upload.intended:2", "submit.done:2", "results.joined:2", "part.journaled:1"):
        killed = shopper.run(cap, kill_at=place)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
        assert shopper.billed() <= cap
    status = stopped(shopper.run(cap))
    assert shopper.billed() <= cap
    done = shopper.type(*higher(status))
    assert done.returncode == 0, done.stderr[-3000:]
    shopper.check_whole()


def test_a_run_that_is_only_submitted_sends_what_the_cap_bears(begin: Any) -> None:
    """--no-wait comes back while jobs hold the money; the run goes on when they have ended."""
    shopper = begin()
    cap = SHARE * shopper.quote()
    shopper.fault("job_stuck")
    sent = shopper.run(cap, more=["--no-wait", "--no-probe"])
    assert sent.returncode == 0, sent.stderr[-3000:]
    status = json.loads(sent.stdout)
    assert status["batches"]["submitted"] > 1
    assert 0.5 * cap < status["cost"]["open_usd"] <= cap
    shopper.cloud.clear_faults()
    stopped(shopper.run(cap))
    assert 0.6 * cap < shopper.billed() <= cap


def test_what_costs_nothing_is_written_before_a_run_stops(begin: Any) -> None:
    """Vectors of an earlier output are there though no money is; a cap of nothing buys nothing."""
    shopper = begin()
    half = ROWS // 2
    lines = (shopper.folder / "texts.jsonl").read_text().splitlines()
    (shopper.folder / "half.jsonl").write_text("\n".join(lines[:half]) + "\n")
    first = shopper.asked("run", "-o", "old", "--poll-interval", "0.1", "--audit", "off")
    first[1] = "half.jsonl"
    assert shopper.type(*first).returncode == 0
    before = shopper.billed()
    status = stopped(shopper.run(0.0, more=["--reuse", "old"]))
    assert (status["written"], status["cost"]["spent_usd"]) == (half, 0.0)
    assert shopper.billed() == before


def test_a_bad_day_does_not_pass_the_cap(begin: Any) -> None:
    """Answers lost after they were billed, at once and at creates, rows that never come, jobs that
    fail, and a kill: what is on the books is never less than the bill."""
    shopper = begin()
    cap = SHARE * shopper.quote()
    at_once = {"route": "models.*mbed*"}
    shopper.fault("reset_after", times=2, match=at_once, after_matches=2)
    shopper.fault("server_error", times=2, after=True, match=at_once, after_matches=6)
    shopper.fault("reset_after", times=2, match={"route": "batches.create"})
    shopper.fault("missing_rows", times=2, count=2)
    shopper.fault("job_failed", times=2)
    killed = shopper.run(cap, kill_at="submit.done:3")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    status = stopped(shopper.run(cap))
    assert shopper.billed() <= status["cost"]["spent_usd"] + status["cost"]["open_usd"] <= cap


def test_repurchases_count_against_the_cap(begin: Any) -> None:
    """Rows that were served and not given are bought again, counted, and under the cap."""
    shopper = begin()
    shopper.fault("missing_rows", times=3, count=4)
    cap = 2.0 * shopper.quote()
    done = shopper.run(cap)
    assert done.returncode == 0, done.stderr[-3000:]
    assert shopper.billed() <= cap
    cost = json.loads(done.stdout)["cost"]
    assert cost["rows_again"] == shopper.cloud.bill().rows_billed_twice == 12
    assert cost["again_why"] == {"missing": 12}
    assert cost["rows_failed"] == 12


def test_a_price_that_nobody_knows_is_said_and_takes_no_cap(begin: Any) -> None:
    """plan says so; --max-cost is refused before anything is sent, and leaves nothing."""
    shopper = begin()
    model = ["--model", "sentence-vectors-9"]
    planned = shopper.type(*shopper.asked("plan", *model))
    assert planned.returncode == 0, planned.stderr
    assert "price of sentence-vectors-9 is not known" in planned.stdout
    refused = shopper.type(*shopper.asked("run", "-o", "out", *model, "--max-cost", "1"))
    assert refused.returncode == 2
    assert "--max-cost" in refused.stderr
    assert not shopper.out.exists()
    assert shopper.cloud.bill().requests == {}
