"""`embatch worker` and `embatch workers` on a PostgreSQL journal, as processes."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from crew import Crew, eventually

from embatch.execution.presence import BEAT_S
from embatch.journal.store import Journal
from embatch.types.state import BatchState, RunState
from postgres import PostgresServer

pytestmark = pytest.mark.timeout(300)

ROWS = 120
LOCAL = ("--provider", "local", "--max-batch-items", "10")


@pytest.fixture
def crew(tmp_path: Path, postgres_url: str) -> Iterator[Crew]:
    """A folder and a journal to work in, with an engine that takes its time."""
    with Crew(tmp_path, postgres_url, delay_s=0.05) as made:
        made.write_texts(ROWS)
        yield made


@pytest.fixture
def journal(postgres_url: str) -> Iterator[Journal]:
    """The crew's journal."""
    opened = Journal.open(postgres_url)
    yield opened
    opened.close()


def published(journal: Journal, run_id: str) -> int:
    return journal.batches.counts(run_id).batches.get(BatchState.PUBLISHED, 0)


def check_right(out: Path) -> None:
    """Every key once."""
    tables = [pq.read_table(path) for path in out.glob("part-*.parquet")]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert sorted(keys) == sorted(f"key-{row}" for row in range(ROWS))


def test_a_worker_ends_its_steps_at_sigterm_and_others_go_on(crew: Crew, journal: Journal) -> None:
    """Exit 143, nothing held, a goodbye; `--once` ends with the run, and says how it went."""
    run_id = crew.submit(*LOCAL)
    worker = crew.worker()
    eventually(lambda: published(journal, run_id) > 0, "a first part" + crew.said())
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 143, crew.said()
    assert journal.get_run(run_id).state is RunState.RUNNING
    assert [one for one in journal.batches.walk(run_id) if one.lease_token is not None] == []
    (gone,) = journal.workers.every()
    assert (gone.state, gone.pid, gone.doing) == ("stopped", worker.pid, ())
    assert gone.steps > 0
    done = crew.type("worker", "--once", "--json")
    (shown,) = json.loads(done.stdout)["runs"]
    assert (shown["id"], shown["state"]) == (run_id, "completed")
    check_right(crew.folder / "out")


def test_what_a_dead_machine_embedded_is_planned_again(crew: Crew, journal: Journal) -> None:
    """Its service folder is its own: another machine takes its batches, and computes them."""
    run_id = crew.submit(*LOCAL)
    doomed = crew.worker("--queues", "compute", home="doomed")
    eventually(lambda: submitted(journal, run_id) > 0, "a batch in its hands" + crew.said())
    doomed.send_signal(signal.SIGKILL)
    doomed.wait(30)
    crew.type("worker", "--once", "--queues", "compute")
    assert journal.get_run(run_id).state is RunState.COMPLETED
    check_right(crew.folder / "out")
    history = [event.kind for event in journal.events(run_id, limit=1000)]
    assert "input_lost" in history or "held_absent" in history


def submitted(journal: Journal, run_id: str) -> int:
    return journal.batches.counts(run_id).batches.get(BatchState.SUBMITTED, 0)


def test_a_worker_takes_its_queues_alone(crew: Crew, journal: Journal) -> None:
    """A worker of io leaves a local run alone, which says what it lacks; one of compute does it."""
    run_id = crew.submit(*LOCAL)
    warned = crew.type("run", "texts.jsonl", "-o", "out", "--key", "id", "--execution", "workers",
                       "--no-wait", *LOCAL).stderr  # fmt: skip
    assert "no worker alive for the queue compute" in warned
    crew.worker("--queues", "io")
    eventually(lambda: journal.workers.serves("io"), "a worker of io" + crew.said())
    assert not journal.workers.serves("compute")
    shown = json.loads(crew.type("status", run_id, "--json").stdout)
    assert (shown["worked"], shown["state"]) == (False, "planning")
    assert "no worker alive for the queue compute" in shown["waiting"]
    crew.worker("--queues", "compute")
    eventually(lambda: journal.get_run(run_id).state is RunState.COMPLETED, crew.said())
    io, compute = (one for one in journal.workers.every() if one.execution == "workers")
    assert (io.queues, compute.queues) == (("io",), ("compute",))
    assert io.steps == 0
    check_right(crew.folder / "out")


def test_a_run_waits_for_its_workers_and_ends_as_they_do(crew: Crew, journal: Journal) -> None:
    """The command follows; who works on what is shown, beside it."""
    crew.delay_s = BEAT_S + 1.0  # long enough to be seen at work
    crew.worker("--concurrency", "2")
    waiting = crew.start(
        *("run", "texts.jsonl", "-o", "out", "--key", "id", "--execution", "workers"),
        *("--json", "--provider", "local", "--max-batch-items", str(ROWS // 2)),
    )
    eventually(lambda: any(one.doing for one in journal.workers.every()), crew.said())
    (shown,) = json.loads(crew.type("workers", "--json").stdout)["workers"]
    assert (shown["state"], shown["execution"], shown["concurrency"]) == ("alive", "workers", 2)
    assert shown["queues"] == ["io", "compute"]
    assert waiting.wait(120) == 0, crew.said()
    check_right(crew.folder / "out")
    assert "alive" in crew.type("workers").stdout


def test_a_file_as_journal_is_no_place_to_meet(crew: Crew) -> None:
    """Workers need PostgreSQL: exit 2, and what to do; nothing is left."""
    refused = crew.type(
        *("run", "texts.jsonl", "-o", "out", "--execution", "workers", "--journal", "runs.db"),
        *LOCAL,
        code=2,
    )
    assert "--execution workers needs a journal on PostgreSQL" in refused.stderr
    assert not (crew.folder / "out").exists()


def test_queues_that_are_none_are_refused(crew: Crew) -> None:
    """Exit 2, and the names there are."""
    assert "give io, compute" in crew.type("worker", "--queues", "io,gpu", code=2).stderr


def test_an_input_that_a_machine_cannot_see_is_named(crew: Crew, journal: Journal) -> None:
    """The file and the host, by the worker, by the list of workers and by the run, which goes on
    when the file is there. A worker that can do no more ends."""
    import socket

    run_id = crew.submit(*LOCAL)
    (crew.folder / "texts.jsonl").rename(crew.folder / "elsewhere.jsonl")
    words = f"texts.jsonl is not there on {socket.gethostname()}"
    ended = crew.type("worker", "--once", code=5)
    assert f"run {run_id} is left undone, this machine cannot work it: " in ended.stderr
    assert words in ended.stderr
    assert journal.get_run(run_id).state is RunState.PLANNING
    worker = crew.worker()
    eventually(lambda: words in crew.type("workers", "--json").stdout, "it is listed" + crew.said())
    shown = json.loads(crew.type("status", run_id, "--json").stdout)
    assert "no worker can work it" in shown["waiting"]
    assert words in shown["waiting"]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 143, crew.said()
    (crew.folder / "elsewhere.jsonl").rename(crew.folder / "texts.jsonl")
    crew.worker()
    shown = json.loads(crew.type("resume", run_id, "--json").stdout)
    assert shown["state"] == "completed"
    check_right(crew.folder / "out")


def test_a_worker_ends_at_sigterm_while_its_database_is_away(tmp_path: Path) -> None:
    """There is nothing to wait for: what was in hand is taken up by others later."""
    with PostgresServer() as server:
        url = server.create_journal()
        with Crew(tmp_path, url) as crew:
            worker = crew.worker()
            eventually(lambda: '"alive"' in crew.type("workers", "--json").stdout, "it works")
            server.stop()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(90) == 143, crew.said()


def test_what_the_jobs_connection_refuses_is_no_outage(crew: Crew) -> None:
    """A setting that libpq cannot read ends the worker with its words, not with waiting."""
    crew.journal_url += "?options=-c+statement_timeout%3D30000"
    crew.type("worker", "--once", code=1)
