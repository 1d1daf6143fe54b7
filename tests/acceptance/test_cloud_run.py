"""`embatch run` on both clouds, as processes: every row once, right, paid once, nothing left."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from google.oauth2.credentials import Credentials

import forking
from embatch.client import Client
from embatch.config import CloudSettings
from embatch.testing.cloud import CloudProcess, Fault, expected_vectors
from embatch.types.batch import EmbedContentBatch
from embatch.vectors import normalize

pytestmark = pytest.mark.timeout(600)

KILLABLE = Path(__file__).with_name("killable.py")
ROWS = 2_000
BATCH_ITEMS = 250
AUDITED = 16
"""Rows that are embedded again to compare: two of each batch."""
DIMS = 128
MODEL = "gemini-embedding-001"
SETTLE_S = 3.0
DEADLINE_S = 120
STAGING = "gs://bucket/staged"
KILLS = ("upload.done", "submit.intended", "submit.done", "results.joined", "part.renamed")
SECRETS = ("fake-cloud-api-key", "fake.", "PRIVATE KEY", "number 1234 of the")


def text_of(row: int) -> str:
    """A text that stands nowhere else."""
    return f"text number {row} of the catalogue {'and on ' * (row % 5)}"


@cache
def truth(row: int) -> np.ndarray:
    """The vector that the run must write for a row."""
    made = expected_vectors([text_of(row)], dims=DIMS, task_type="retrieval_document")
    vector: np.ndarray = normalize(made)[0]
    return vector


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
class Job:
    """One run on one cloud, in a home of its own."""

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

    def space(self) -> list[str]:
        """Flags of run and plan."""
        staging = ["--staging", STAGING] if self.on == "vertex" else []
        task = ["--dims", str(DIMS), "--task-type", "retrieval_document"]
        return ["--provider", self.on, "--key", "id", *task, *staging]

    def type(
        self, *arguments: str, kill_at: str = "-", trace: str = "-"
    ) -> subprocess.CompletedProcess[str]:
        """A command, run to its end or to its kill."""
        return forking.run(
            [sys.executable, str(KILLABLE), kill_at, trace, "-", "--", *arguments],
            env=self.environ(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def run(
        self, *, items: int = BATCH_ITEMS, no_wait: bool = False, **killing: str
    ) -> subprocess.CompletedProcess[str]:
        """The run, begun or taken up again."""
        pace = ["--poll-interval", "0.1", "--settle", str(SETTLE_S), "--no-probe"]
        sizes = ["--max-batch-items", str(items)]
        return self.type(
            *("run", "texts.jsonl", "-o", "out", *self.space(), *sizes, *pace),
            *("--log-format", "text", "--json", *(["--no-wait"] if no_wait else [])),
            **killing,
        )

    def finish(self) -> dict[str, Any]:
        """Runs to the end; the status."""
        done = self.run()
        assert done.returncode == 0, done.stderr[-3000:]
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def fault(self, kind: str, times: int | None = None, **args: Any) -> None:
        """Puts a fault in force."""
        match, after = args.pop("match", {}), args.pop("after_matches", 0)
        self.cloud.add_fault(Fault(kind, match, times=times, after=after, args=args))

    def create(self) -> dict[str, str]:
        """Matches the calls that create batches."""
        route = "batches.create" if self.on == "gemini" else "vertex.jobs.create"
        return {"route": route}

    def check_output(self) -> None:
        """Every key once, every vector that of its text, to the bit."""
        keys: list[str] = []
        found: list[np.ndarray] = []
        for path in sorted(self.out.glob("part-*.parquet")):
            table = pq.read_table(path)
            keys += table["key"].to_pylist()
            found.append(table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS))
        assert sorted(keys) == sorted(f"key-{row}" for row in range(ROWS))
        wanted = np.stack([truth(int(key.removeprefix("key-"))) for key in keys])
        assert np.array_equal(np.concatenate(found), wanted)
        assert (self.out / "failures.jsonl").read_text() == ""

    def check_bill(self, *, twice: int = 0) -> None:
        """Every row was charged once, but for those that the service lost; no label twice."""
        bill = self.cloud.bill()
        assert bill.texts == ROWS
        assert bill.rows_billed_twice == twice
        assert bill.duplicate_jobs == {}

    def check_nothing_left(self) -> None:
        """No batch, input, result or request file is left anywhere."""
        assert self.cloud.jobs() == []
        assert self.remains() == []
        assert [path.name for path in self.folder.rglob("*.jsonl*")] == ["texts.jsonl"] or sorted(
            path.name for path in self.folder.rglob("*.jsonl*")
        ) == ["failures.jsonl", "texts.jsonl"]

    def remains(self) -> list[str]:
        """What the service's own lists show."""
        asked: dict[str, Any] = {"settings": CloudSettings()}
        if self.on == "gemini":
            asked |= {"api_key": self.cloud.api_key, "base_url": self.cloud.gemini_url}
        else:
            asked |= {
                "auth": "vertex_ai",
                "credentials": Credentials(token=self.cloud.access_token),
                "project": "a-project",
                "location": "us-central1",
                "base_url": self.cloud.vertex_url,
                "storage_base_url": self.cloud.storage_url,
                "staging": STAGING,
            }
        with Client(**asked) as client:
            batches: list[EmbedContentBatch] = list(client.list_batches())
            files = list(client.list_files())
        return [batch.name for batch in batches] + [file.name for file in files]

    def check_secrets(self, *said: str) -> None:
        """No key and no text stands in the journal, the manifest or what was printed."""
        home = self.folder / "home"
        stored = [path for path in home.rglob("*") if path.is_file()]
        held = [path.read_bytes() for path in [*stored, self.out / "manifest.json"]]
        for secret in SECRETS:
            assert not any(secret.encode() in data for data in held), secret
            assert not any(secret in text for text in said), secret


@pytest.fixture(params=["gemini", "vertex"])
def begin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Starts a cloud, and a run's folder beside it; crashes of the cloud fail the test."""
    clouds: list[CloudProcess] = []

    def start() -> Job:
        folder = tmp_path / str(len(clouds))
        folder.mkdir()
        cloud = CloudProcess(state=folder / "cloud", job_duration_s=0.1)
        cloud.start()
        clouds.append(cloud)
        return Job(folder=folder, on=request.param, cloud=cloud)

    yield start
    for cloud in clouds:
        crashed = cloud.crashes()
        cloud.stop()
        assert crashed == []


def test_a_run_buys_every_row_once_and_leaves_nothing(begin: Any) -> None:
    """2,000 rows in eight batches; plan, status and search speak of the same run."""
    job = begin()
    planned = job.type("plan", "texts.jsonl", *job.space(), "--max-batch-items", "250", "--json")
    assert planned.returncode == 0, planned.stderr
    quote = json.loads(planned.stdout)
    assert (quote["to_embed"], quote["batches"], quote["dims"]) == (ROWS, 9, DIMS)
    assert quote["cost_usd"] > 0.0
    assert job.cloud.bill().requests == {}
    done = job.run()
    assert done.returncode == 0, done.stderr[-3000:]
    status = json.loads(done.stdout)
    assert (status["written"], status["failed"], status["provider"]) == (ROWS, 0, job.on)
    job.check_output()
    job.check_bill()
    job.check_nothing_left()
    bill = job.cloud.bill()
    assert len(bill.jobs) == 8
    assert status["tokens"] == bill.tokens
    assert bill.interactive_rows == AUDITED
    shown = job.type("status", "out", "--json")
    assert json.loads(shown.stdout)["state"] == "completed"
    verified = job.type("verify", "out", "--json")
    assert json.loads(verified.stdout)["sound"] is True
    job.check_secrets(done.stderr, done.stdout, shown.stdout)
    again = job.run()
    assert again.returncode == 0
    assert len(job.cloud.bill().jobs) == 8


def test_search_asks_with_the_query_side(begin: Any) -> None:
    """The best hit is the one that the vectors say, for the query's own task."""
    job = begin()
    job.finish()
    found = job.type("search", "out", "which text", "-k", "3", "--json")
    assert found.returncode == 0, found.stderr
    query = normalize(expected_vectors(["which text"], dims=DIMS, task_type="retrieval_query"))[0]
    scores = np.stack([truth(row) for row in range(ROWS)]) @ query
    hits = json.loads(found.stdout)["hits"]
    assert [hit["row"] for hit in hits] == np.argsort(-scores)[:3].tolist()
    assert job.cloud.bill().interactive_rows == AUDITED + 1


@pytest.mark.parametrize("name", KILLS)
def test_a_run_killed_goes_on_without_paying_twice(begin: Any, name: str) -> None:
    """kill -9 at a checkpoint, early and late; the same command ends the run."""
    job = begin()
    for count in (1, 4):
        killed = job.run(kill_at=f"{name}:{count}")
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    job.finish()
    job.check_output()
    job.check_bill()
    job.check_nothing_left()


def test_lost_answers_to_create_make_no_second_batch(begin: Any) -> None:
    """Reset after the effect, 503 after it, 500 before it; the list shows new jobs late."""
    job = begin()
    job.fault("listing_delay", seconds=1.0)
    job.fault("reset_after", times=2, match=job.create())
    job.fault("server_error", times=1, match=job.create(), code=503, after=True, after_matches=3)
    job.fault("server_error", times=1, match=job.create(), code=500, after_matches=5)
    job.fault("reset_before", times=1, match=job.create(), after_matches=6)
    job.finish()
    job.check_output()
    job.check_bill()
    job.check_nothing_left()
    assert len(job.cloud.bill().jobs_created) == 8
    assert all(fault["struck"] for fault in job.cloud.faults())


def test_lost_answers_and_kills_together(begin: Any) -> None:
    """Every create answers nothing, and the process dies in the middle of looking."""
    job = begin()
    job.fault("reset_after", match=job.create())
    for count in (2, 3):
        killed = job.run(kill_at=f"submit.intended:{count}")
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    job.finish()
    job.check_output()
    job.check_bill()
    job.check_nothing_left()


def test_results_in_disorder_find_their_rows(begin: Any) -> None:
    """Shuffled rows, rows that fail for now, rows that never come: each ends in its place.

    Rows that a service served and did not give are bought again, and no others.
    """
    job = begin()
    job.fault("shuffle")
    job.fault("missing_rows", times=2, indices=[0, 1, 2])  # no batch has a row 3… there
    job.fault("row_error", code=13, transient=True, marker="number 3")
    job.fault("doubled_rows", times=1, count=3)
    status = job.finish()
    job.check_output()
    job.check_bill(twice=6)
    assert status["batches"]["published"] > 8
    job.check_nothing_left()


def test_quotas_and_outages_cost_time_alone(begin: Any) -> None:
    """429, 503 at every kind of call, broken uploads and downloads: nothing is bought twice."""
    job = begin()
    job.fault("rate_limited", times=3, match=job.create(), hints="minute", retry_delay_s=0.5)
    api = {"api": job.on}
    job.fault("server_error", times=3, match=api | {"method": "GET"}, code=503)
    job.fault("upload_drop", times=2, at_byte=1000)
    job.fault("truncate", times=2, match={"route": "files.download"}, at_byte=20_000)
    job.fault("truncate", times=2, match={"route": "storage.get"}, at_byte=20_000)
    job.finish()
    job.check_output()
    job.check_bill()
    job.check_nothing_left()


def test_a_key_that_is_refused_stops_the_run_and_loses_nothing(begin: Any) -> None:
    """Credentials that end at the create: the run says so, and goes on with good ones."""
    job = begin()
    job.fault("unauthenticated", times=2, match=job.create())
    done = job.run()
    assert done.returncode == 1
    assert json.loads(done.stdout)["error_code"] == "AuthenticationError"
    job.cloud.clear_faults()
    job.finish()
    job.check_output()
    job.check_bill()
    job.check_nothing_left()


def test_vectors_of_another_length_stop_the_run_at_once(begin: Any) -> None:
    """What every row of a batch says will not change: nothing is bought a second time."""
    job = begin()
    job.fault("wrong_dims", fraction=1.0, dims=50)
    done = job.run()
    assert done.returncode == 1
    status = json.loads(done.stdout)
    assert "50 values" in status["error"]
    assert "--dims" in status["error"]
    assert job.cloud.bill().rows_billed_twice == 0


def test_what_cannot_be_removed_fails_no_run(begin: Any) -> None:
    """Deletions that are refused leave batches behind, and `forget` takes them away later."""
    job = begin()
    job.fault("server_error", match={"method": "DELETE"})
    done = job.run(items=1000)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stays at the provider" in done.stderr
    job.check_output()
    job.check_bill()
    assert job.remains() != []
    job.cloud.clear_faults()
    forgotten = job.type("forget", "out", "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    job.check_nothing_left()


@pytest.mark.parametrize("ends", ["completed", "cancelled", "partial"])
def test_a_run_cancelled_and_resumed_keeps_what_it_paid_for(begin: Any, ends: str) -> None:
    """Jobs that complete in spite of it, or end with some of their rows, are read all the same."""
    job = begin()
    if ends == "completed":
        job.fault("cancel_ignored")
    elif ends == "partial":
        job.fault("cancel_partial", share=0.5)
    job.fault("job_stuck")
    submitted = job.run(no_wait=True)
    assert submitted.returncode == 0, submitted.stderr[-3000:]
    assert len(job.cloud.jobs()) == 8
    assert job.type("cancel", "out").returncode == 0
    job.cloud.clear_faults("job_stuck")
    job.finish()
    job.check_output()
    job.check_bill()
    job.check_nothing_left()
    created = {"completed": 8, "cancelled": 16, "partial": 16}
    assert len(job.cloud.bill().jobs_created) == created[ends]
