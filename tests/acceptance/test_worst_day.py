"""The worst days of a cloud, as processes: late twins, jobs that stand still, and a person's word.

The cloud's bill is the judge: what was computed twice is what the run says it was.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
ROWS = 60
BATCH_ITEMS = 20
DIMS = 128
COMMAND_S = 200
HOUR_S = 3600.0


def text_of(row: int) -> str:
    return f"text number {row} of the worst day"


@cache
def truth() -> np.ndarray:
    """The vector of every row."""
    made = expected_vectors([text_of(row) for row in range(ROWS)], dims=DIMS)
    matrix: np.ndarray = normalize(made)
    return matrix


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
class Day:
    """One run of three batches on one cloud."""

    folder: Path
    on: str
    cloud: CloudProcess
    home: str = "home"

    def __post_init__(self) -> None:
        lines = [json.dumps({"id": f"key-{row}", "text": text_of(row)}) for row in range(ROWS)]
        if not (self.folder / "texts.jsonl").exists():
            (self.folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
        account = {
            "type": "service_account",
            "project_id": "a-project",
            "private_key_id": "1",
            "private_key": private_key() if self.on == "vertex" else "",
            "client_email": "robot@a-project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": self.cloud.token_url,
        }
        (self.folder / "account.json").write_text(json.dumps(account))

    def environ(self) -> dict[str, str]:
        """What leads to the cloud, and nothing else."""
        variables = {"EMBATCH_HOME": str(self.folder / self.home), "PATH": "/usr/bin:/bin"}
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
            "EMBATCH_STAGING": "gs://bucket/staged",
        }

    def type(self, *arguments: str, kill_at: str = "-") -> subprocess.CompletedProcess[str]:
        """A command, run to its end or to its kill."""
        return forking.run(
            [sys.executable, str(KILLABLE), kill_at, "-", "-", "--", *arguments],
            env=self.environ(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def run(
        self, *flags: str, out: str = "out", **killing: str
    ) -> subprocess.CompletedProcess[str]:
        """The run, begun or taken up again."""
        return self.type(
            *("run", "texts.jsonl", "-o", out, "--provider", self.on, "--key", "id"),
            *("--dims", str(DIMS), "--max-batch-items", str(BATCH_ITEMS), "--audit", "off"),
            *("--poll-interval", "0.1", "--settle", "1", "--log-format", "text", "--json", *flags),
            **killing,
        )

    def die_at(self, name: str, *flags: str) -> None:
        """Runs to a checkpoint, and dies there."""
        killed = self.run(*flags, kill_at=name)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]

    def finish(self, *flags: str) -> dict[str, Any]:
        """Runs to the end; the status."""
        done = self.run(*flags)
        assert done.returncode == 0, done.stderr[-3000:]
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def said(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """What a command prints with --json."""
        done = self.type(*arguments, "--json")
        assert done.returncode == code, done.stderr[-3000:]
        values: dict[str, Any] = json.loads(done.stdout)
        return values

    def fault(self, kind: str, times: int | None = None, **args: Any) -> None:
        """Puts a fault in force."""
        match = args.pop("match", {})
        self.cloud.add_fault(Fault(kind, match, times=times, args=args))

    def call(self, what: str) -> dict[str, str]:
        """Matches calls that `create` or `list` batches."""
        route = f"batches.{what}" if self.on == "gemini" else f"vertex.jobs.{what}"
        return {"route": route}

    def lose_a_create(self, *, after: bool = True) -> None:
        """One create is not answered; with `after` it took effect."""
        kind = "reset_after" if after else "reset_before"
        self.fault(kind, times=1, match=self.call("create"))

    def check_output(self) -> None:
        """Every key once, every vector that of its text."""
        keys: list[str] = []
        found: list[np.ndarray] = []
        for path in sorted((self.folder / "out").glob("part-*.parquet")):
            table = pq.read_table(path)
            keys += table["key"].to_pylist()
            found.append(table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS))
        assert sorted(keys) == sorted(f"key-{row}" for row in range(ROWS))
        rows = [int(key.removeprefix("key-")) for key in keys]
        assert np.array_equal(np.concatenate(found), truth()[rows])

    def check_bill(self, *, twice: int = 0, jobs: int = 3) -> None:
        """So many jobs were made, each label once, and so many rows were charged twice."""
        bill = self.cloud.bill()
        assert bill.rows_billed_twice == twice
        assert bill.duplicate_jobs == {}
        assert len(bill.jobs_created) == jobs


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[str], Day]]:
    """Starts a cloud, and a run's folder beside it; crashes of the cloud fail the test."""
    clouds: list[CloudProcess] = []

    def start(on: str = "gemini") -> Day:
        cloud = CloudProcess(state=tmp_path / "cloud", job_duration_s=0.05)
        cloud.start()
        clouds.append(cloud)
        return Day(folder=tmp_path, on=on, cloud=cloud)

    yield start
    for cloud in clouds:
        crashed = cloud.crashes()
        cloud.stop()
        assert crashed == []


BOTH = pytest.mark.parametrize("on", ["gemini", "vertex"])


@BOTH
def test_a_twin_that_turns_up_after_its_batch_was_sent_again(begin: Any, on: str) -> None:
    """Beyond the settle window: it is counted as bought twice, and removed, before the run ends;
    a kill as it is found changes nothing."""
    day = begin(on)
    day.fault("listing_delay", times=1, seconds=HOUR_S)
    day.lose_a_create()
    day.die_at("finish.failures:1")
    day.check_bill(twice=BATCH_ITEMS, jobs=4)
    day.cloud.advance(2 * HOUR_S)
    day.die_at("twin.found:1")
    status = day.finish()
    assert status["twins"] == 1
    day.check_output()
    day.check_bill(twice=BATCH_ITEMS, jobs=4)
    assert status["cost"]["again_why"] == {"late_twin": BATCH_ITEMS}
    assert day.cloud.jobs() == []


@BOTH
def test_a_twin_that_turns_up_in_time_is_taken_over(begin: Any, on: str) -> None:
    """Held absent, and about to be sent again: one more look finds it, and nothing is bought
    twice."""
    day = begin(on)
    day.fault("listing_delay", times=1, seconds=HOUR_S)
    day.lose_a_create()
    day.die_at("upload.done:4")
    day.cloud.advance(2 * HOUR_S)
    day.die_at("twin.adopted:1")
    status = day.finish()
    assert status["twins"] == 1
    day.check_output()
    day.check_bill()
    assert day.cloud.jobs() == []


@BOTH
def test_a_job_that_stands_still_is_stopped_and_sent_again_smaller(begin: Any, on: str) -> None:
    """Nothing of it is charged, and its rows come in two halves."""
    day = begin(on)
    day.fault("job_stuck", times=1)
    day.die_at("cancel.asked:1", "--stuck-after", "2s")
    day.finish("--stuck-after", "2s")
    day.check_output()
    day.check_bill(jobs=5)
    assert day.cloud.jobs() == []


def test_what_a_stopped_job_holds_is_kept(begin: Any) -> None:
    """Half of its rows come, and are not charged again."""
    day = begin()
    day.fault("job_stuck", times=1)
    day.fault("cancel_partial", share=0.5)
    day.finish("--stuck-after", "2s")
    day.check_output()
    day.check_bill(jobs=5)
    assert day.cloud.jobs() == []


def test_expired_and_out_of_quota(begin: Any) -> None:
    """One job expires, one fails for quota: no row is lost, and none is charged twice."""
    day = begin()
    day.fault("job_expired", times=1)
    day.fault("job_failed", times=1, code=8)
    day.finish()
    day.check_output()
    day.check_bill(jobs=6)
    assert day.cloud.jobs() == []


def test_a_job_that_will_not_stop_is_left_behind_and_found_again(begin: Any) -> None:
    """Its rows are sent again; it stays an orphan that is removed by name when it has ended."""
    day = begin()
    day.fault("job_stuck", times=1)
    day.fault("cancel_ignored")
    done = day.run("--stuck-after", "2s")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "embatch orphans" in done.stderr
    day.check_output()
    day.check_bill(jobs=5)
    (orphan,) = day.said("orphans", "--provider", "gemini")["orphans"]
    assert (orphan["standing"], orphan["done"], orphan["rows"]) == ("late", False, BATCH_ITEMS)
    asked = day.said("orphans", "--provider", "gemini", "--cancel", orphan["name"])
    assert asked["removed"] is False
    day.cloud.clear_faults()
    day.cloud.finish(orphan["name"])
    gone = day.said("orphans", "--provider", "gemini", "--cancel", orphan["name"])
    assert gone["removed"] is True
    assert day.cloud.jobs() == []
    assert day.said("orphans", "--provider", "gemini")["orphans"] == []


def test_results_that_come_late_are_waited_for(begin: Any) -> None:
    """The job has ended, its file is not there yet: nothing is bought again."""
    day = begin()
    day.fault("result_late", seconds=3.0)
    day.finish()
    day.check_output()
    day.check_bill()
    assert day.cloud.jobs() == []


def in_doubt(day: Day, *, after: bool) -> tuple[int, str]:
    """A run that waits for a person: its create is not answered, its list cannot be read. Gives
    the batch's number and its label."""
    day.lose_a_create(after=after)
    day.fault("server_error", match=day.call("list"), code=503)
    done = day.run("--stuck-after", "3s")
    assert done.returncode == 5, done.stderr[-3000:]
    status = json.loads(done.stdout)
    assert status["state"] == "needs_person"
    assert status["written"] == ROWS - BATCH_ITEMS
    ((number, words),) = status["blocked"].items()
    assert f"embatch resolve {status['id']} {number} --adopt NAME" in words
    assert status["waiting"] == words
    day.cloud.clear_faults()
    return int(number), words.split("Look for a job named ")[1].split(". ")[0]


@BOTH
def test_a_person_names_the_job_that_is_there(begin: Any, on: str) -> None:
    """Another batch's job is refused; the right one is taken, and nothing is bought twice."""
    day = begin(on)
    number, label = in_doubt(day, after=True)
    (job,) = [job for job in day.cloud.jobs() if job["display_name"] == label]
    refused = day.type("resolve", "out", str(number), "--adopt", "batches/nowhere")
    assert refused.returncode == 2
    both = day.type("resolve", "out", str(number), "--adopt", job["name"], "--absent")
    assert both.returncode == 2
    status = day.said("resolve", "out", str(number), "--adopt", job["name"])
    assert status["state"] == "completed"
    day.check_output()
    day.check_bill()
    assert day.cloud.jobs() == []


def test_a_person_says_that_there_is_no_job(begin: Any) -> None:
    """The batch is sent again, and the run ends."""
    day = begin()
    number, _ = in_doubt(day, after=False)
    status = day.said("resolve", "out", str(number), "--absent")
    assert status["state"] == "completed"
    day.check_output()
    day.check_bill()
    assert day.said("resolve", "out", str(number), "--absent", code=2)["exit_code"] == 2


def test_jobs_of_another_journal_are_shown_and_not_touched(begin: Any) -> None:
    """Nor is a job that a run of this journal waits for."""
    day = begin()
    day.fault("job_stuck")
    assert day.run("--no-wait").returncode == 0
    name = day.cloud.jobs()[0]["name"]
    assert day.said("orphans", "--provider", "gemini")["orphans"] == []
    followed = day.type("orphans", "--provider", "gemini", "--cancel", name)
    assert followed.returncode == 2
    stranger = Day(folder=day.folder, on="gemini", cloud=day.cloud, home="another-home")
    found = stranger.said("orphans", "--provider", "gemini")["orphans"]
    assert [orphan["standing"] for orphan in found] == ["foreign"] * len(day.cloud.jobs())
    refused = stranger.type("orphans", "--provider", "gemini", "--cancel", name)
    assert refused.returncode == 2
    assert "--foreign" in refused.stderr
    day.cloud.clear_faults()
    day.finish()
    day.check_output()
    day.check_bill()


@pytest.mark.parametrize("place", ["direct.answered:1", "direct.kept:1"])
def test_what_batches_will_not_bring_by_the_deadline_is_embedded_at_once(
    begin: Any, place: str
) -> None:
    """One job stands still and the quota bears no second: the other rows are bought directly,
    each once but for the calls that a kill found under way, and these are said."""
    day = begin()
    day.fault("job_stuck")
    day.fault("job_ceiling", jobs=1)
    assert day.run("--no-wait").returncode == 0
    assert len(day.cloud.jobs()) == 1
    day.die_at(place, "--deadline", "0s")
    day.cloud.clear_faults("job_stuck")
    day.fault("fewer_vectors", times=1)
    again = day.finish("--deadline", "0s")["cost"]["rows_again"]
    day.check_output()
    day.check_bill(jobs=1)
    bill = day.cloud.bill()
    assert bill.rows == BATCH_ITEMS
    assert ROWS - BATCH_ITEMS <= bill.interactive_rows <= ROWS - BATCH_ITEMS + again
    assert again > 0 or place == "direct.kept:1"


def test_what_is_to_be_kept_at_the_provider_is(begin: Any) -> None:
    """--keep-remote: finished batches stay through the run's end and through forget."""
    day = begin()
    day.finish("--keep-remote")
    assert len(day.cloud.jobs()) == 3
    assert day.type("forget", "out", "--yes").returncode == 0
    assert len(day.cloud.jobs()) == 3
    found = day.said("orphans", "--provider", "gemini")["orphans"]
    assert [orphan["standing"] for orphan in found] == ["forgotten"] * 3
