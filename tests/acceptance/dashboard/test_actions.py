"""What a person does from a page, end to end, without a browser: the journal moves, and a process
that works on it goes on."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forking
from dashboards import NOW, Answer, Visitor, fill, visited
from embatch.config import journal_url
from embatch.hooks import Hooks
from embatch.journal.records import EventRecord
from embatch.journal.store import Journal
from embatch.testing import FakeEngine
from embatch.testing.cloud import CloudProcess, Fault
from embatch.types.state import BatchState, RunState

KILLABLE = Path(__file__).parents[1] / "killable.py"
DEADLINE_S = 60.0
DIMS = 16
ROWS = 60


def engine(model: str | None, *, precision: str = "auto") -> FakeEngine:
    """The one that the command line of these tests has."""
    _ = precision
    return FakeEngine(dims=DIMS, model=model or "fake")


@pytest.fixture
def opened(shell: Any) -> Iterator[tuple[Visitor, Journal]]:
    """A dashboard over the journal of a folder to type in, and that journal."""
    url = journal_url(str(shell.folder / "home" / "journal.db"))
    journal = Journal.open(url)
    with visited(url, folder=shell.folder / "home", hooks=Hooks(open_engine=engine)) as visitor:
        yield visitor, journal
    journal.close()


@pytest.fixture
def standing(journal_url: str) -> Iterator[tuple[Visitor, Journal]]:
    """A dashboard over a journal with a run in each plight, on either database."""
    journal = Journal.open(journal_url)
    fill(journal)
    with visited(journal_url) as visitor:
        yield visitor, journal
    journal.close()


def asked(journal: Journal, run_id: str) -> list[EventRecord]:
    """What the journal says that people asked of a run."""
    return [event for event in journal.events(run_id, limit=5_000) if event.kind == "asked"]


def check_done(visitor: Visitor, answer: Answer, words: str) -> str:
    """The action leads back to the page that asked, which says what was done; gives its text."""
    assert answer.status == 303, answer.text
    page = visitor.get(answer.headers["Location"])
    assert page.status == 200
    assert words in page.text
    return page.text


def until(true: Callable[[], bool], what: str) -> None:
    """Waits for it."""
    late = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < late, f"{what} did not come about"
        time.sleep(0.05)


def test_failed_rows_are_tried_again(shell: Any, opened: tuple[Visitor, Journal]) -> None:
    """The page enters them; `embatch resume`, as the page says, takes the steps."""
    visitor, journal = opened
    texts = ["a good text", "a poison text", "another", "poison again"]
    shell.write_rows("in.jsonl", [{"text": text} for text in texts])
    assert shell.type("run", "in.jsonl", "-o", "out").code == 3
    (run,) = journal.list_runs()
    said = visitor.get(f"/runs/{run.id}.json").json
    assert sum(group["rows"] for group in said["failures"]) == 2
    assert "poison" not in json.dumps(said)
    done = visitor.act(f"/runs/{run.id}/do/retry")
    text = check_done(visitor, done, "2 rows are tried again.")
    assert f"embatch resume {run.id}" in text
    assert journal.get_run(run.id).state is RunState.RUNNING
    (event,) = asked(journal, run.id)
    assert event.data == {"by": "dashboard", "action": "retry"}
    assert visitor.get(f"/runs/{run.id}/do/retry").status == 409
    assert shell.type("resume", run.id).code == 3
    assert journal.batches.counts(run.id).written == 2


def test_a_run_at_work_is_cancelled_and_resumed(
    shell: Any, opened: tuple[Visitor, Journal]
) -> None:
    """The process that works on it notices, and ends; what is written stays."""
    visitor, journal = opened
    shell.write_rows("in.jsonl", [{"text": f"text {row}"} for row in range(40)])
    at_work = shell.start("run", "in.jsonl", "-o", "out", "--max-batch-items", "4", delay_s=0.3)
    until(lambda: any(run.state is RunState.RUNNING for run in journal.list_runs()), "the run")
    (run,) = journal.list_runs()
    until(lambda: journal.batches.counts(run.id).written > 0, "the first part")
    answer = visitor.act(f"/runs/{run.id}/do/cancel")
    check_done(visitor, answer, "The run is cancelled; what was written stays.")
    _, err = at_work.communicate(timeout=DEADLINE_S)
    assert at_work.returncode == 5, err
    assert journal.get_run(run.id).state is RunState.CANCELLED
    written = journal.batches.counts(run.id).written
    assert 0 < written < 40
    check_done(visitor, visitor.act(f"/runs/{run.id}/do/resume"), "The run is set going.")
    assert [event.data["action"] for event in asked(journal, run.id) if event.data] == [
        "cancel",
        "resume",
    ]
    ended = shell.type("resume", run.id)
    assert ended.code == 0, ended.err
    assert journal.batches.counts(run.id).written == 40


def test_a_budget_is_raised_and_never_lowered(standing: tuple[Visitor, Journal]) -> None:
    """What is no larger number is refused with nothing changed; the page asks again."""
    visitor, journal = standing
    path = "/runs/r-budget/do/budget"
    for typed in ("0.0004", "0", "-1", "nan", "inf", "lots", ""):
        refused = visitor.act(path, usd=typed)
        assert refused.status == 409, typed
        assert "more than the $0.0005" in refused.text.replace("000500", "0005")
    assert journal.get_run("r-budget").config["max_cost_usd"] == 0.0005
    assert asked(journal, "r-budget") == []
    check_done(visitor, visitor.act(path, usd="0.02"), "up to $0.02")
    run = journal.get_run("r-budget")
    assert (run.state, run.config["max_cost_usd"]) == (RunState.RUNNING, 0.02)
    assert asked(journal, "r-budget")[0].data == {
        "by": "dashboard",
        "action": "budget",
        "usd": 0.02,
    }
    assert "raise the budget to $0.02" in visitor.get("/runs/r-budget").text


def test_an_action_is_done_once_however_often_it_is_posted(
    standing: tuple[Visitor, Journal],
) -> None:
    """The second post finds that it does not apply any more."""
    visitor, journal = standing
    path = "/runs/r-failed/do/resume"
    word = visitor.get(path).csrf
    first, second = (
        visitor.post(path, {"csrf": word}, sec_fetch_site="same-origin") for _ in range(2)
    )
    assert (first.status, second.status) == (303, 409)
    assert journal.get_run("r-failed").state is RunState.PLANNING
    assert len(asked(journal, "r-failed")) == 1


def test_the_page_says_who_takes_the_steps(standing: tuple[Visitor, Journal]) -> None:
    """Workers where the run was given to them, else whoever types the command."""
    visitor, journal = standing
    config = journal.get_run("r-failed").config
    journal.update_run("r-failed", now=NOW, config={**config, "execution": "workers"})
    assert "The workers of this journal" in visitor.get("/runs/r-failed/do/resume").text
    assert "embatch resume r-budget" in visitor.get("/runs/r-budget/do/resume").text


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[CloudProcess]:
    """A fake cloud whose crashes fail the test."""
    running = CloudProcess(state=tmp_path / "cloud", job_duration_s=0.05)
    running.start()
    yield running
    crashed = running.crashes()
    running.stop()
    assert crashed == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("there", [True, False], ids=["adopted", "absent"])
def test_a_person_resolves_a_batch_in_doubt(
    tmp_path: Path, cloud: CloudProcess, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """A create without an answer, and a list that cannot be read: the person looks, says what is,
    and nothing is bought twice. The provider's page shows its jobs; no page shows the key."""
    variables = {
        "EMBATCH_HOME": str(tmp_path / "home"),
        "GOOGLE_API_KEY": cloud.api_key,
        "GOOGLE_GEMINI_BASE_URL": cloud.gemini_url,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    rows = [json.dumps({"text": f"text number {row}"}) for row in range(ROWS)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows) + "\n")

    def type_in(*words: str) -> subprocess.CompletedProcess[str]:
        return forking.run(
            [sys.executable, str(KILLABLE), "-", "-", "-", "--", *words],
            env={"PATH": "/usr/bin:/bin", **variables}, cwd=tmp_path, capture_output=True,
            text=True, timeout=200, check=False,
        )  # fmt: skip

    kind = "reset_after" if there else "reset_before"
    cloud.add_fault(Fault(kind, {"route": "batches.create"}, times=1))
    cloud.add_fault(Fault("server_error", {"route": "batches.list"}, args={"code": 503}))
    ended = type_in(
        *("run", "texts.jsonl", "-o", "out", "--provider", "gemini", "--dims", "128"),
        *("--max-batch-items", "20", "--audit", "off", "--poll-interval", "0.1"),
        *("--settle", "1", "--stuck-after", "3s"),
    )
    assert ended.returncode == 5, ended.stderr[-3000:]
    cloud.clear_faults()
    url = journal_url(str(tmp_path / "home" / "journal.db"))
    journal = Journal.open(url)
    (run,) = journal.list_runs()
    with visited(url, folder=tmp_path / "home") as visitor:
        page = visitor.get(f"/runs/{run.id}.json")
        (blocked,) = page.json["blocked"]
        assert page.json["run"]["why"]["kind"] == "person"
        number = blocked["batch"]
        listed = visitor.get("/provider.json?provider=gemini")
        assert listed.json["error"] is None
        mine = [job for job in listed.json["jobs"] if job["batch"] == number]
        assert [job["standing"] for job in mine] == (["ours"] if there else [])
        shown = [page, listed, visitor.get("/provider?provider=gemini"), visitor.get("/")]
        base = f"/runs/{run.id}/batches/{number}"
        wrong = visitor.act(f"{base}/do/adopt", name="batches/nowhere")
        assert wrong.status == 409
        assert "batches/nowhere" in wrong.text
        if there:
            answer = visitor.act(f"{base}/do/adopt", name=mine[0]["name"])
            said = f"Batch {number} goes on with {mine[0]['name']}."
        else:
            answer = visitor.act(f"{base}/do/absent")
            said = f"The job of batch {number} is held to be gone."
        check_done(visitor, answer, said)
        shown += [wrong, visitor.get(base), visitor.get(f"{base}.json")]
        assert not any(cloud.api_key in one.text for one in shown)
    assert journal.get_run(run.id).state is RunState.RUNNING
    assert [event.data and event.data["action"] for event in asked(journal, run.id)] == [
        "adopt" if there else "absent"
    ]
    assert type_in("resume", run.id).returncode == 0
    bill = cloud.bill()
    assert (bill.rows_billed_twice, len(bill.jobs_created)) == (0, 3)
    assert journal.batches.counts(run.id).batches == {BatchState.PUBLISHED: 3}
    journal.close()


def test_the_command_tells_its_address_and_ends_at_a_signal(shell: Any) -> None:
    """With an open stream too; the port is free again."""
    process = shell.start("dashboard", "--port", "0", "--json")
    told = json.loads(process.stdout.readline())
    visitor = Visitor(told["url"])
    assert "embatch run" in visitor.get("/").text
    taken = told["url"].rpartition(":")[2]
    second = shell.type("dashboard", "--port", taken)
    assert second.code == 2
    assert f"port {taken}" in second.err
    assert "--port 0" in second.err
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert "Traceback" not in said


def test_another_host_than_loopback_needs_a_token(shell: Any) -> None:
    """Refused before anything is listened on; a short token is none."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.com"):
        refused = shell.type("dashboard", "--host", host, "--port", "0")
        assert refused.code == 2, host
        assert "EMBATCH_DASHBOARD_TOKEN" in refused.err
    short = shell.type("dashboard", "--token", "short", "--port", "0")
    assert short.code == 2
    assert "16 or more" in short.err
    assert "'short'" not in short.err
