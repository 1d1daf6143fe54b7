"""Notifications arrive at least once, with one id, from whatever process lives to send them."""

import base64
import hashlib
import hmac
import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

import forking
from embatch.config import journal_url
from embatch.journal.store import Journal
from embatch.observe.courier import Courier
from embatch.runs import heralds
from embatch.types.state import RunEvent, RunState

RECEIVER = Path(__file__).with_name("receiver.py")
KILLABLE = Path(__file__).with_name("killable.py")
KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
PATH_SECRET = "a-token-in-the-path"
DEADLINE_S = 60.0
RUNS = 12


@dataclass
class Receiver:
    """The receiver's process, its manners and what it heard."""

    folder: Path
    port: int = 0
    process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def __enter__(self) -> Self:
        (self.folder / "heard").touch()
        self.behave("")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Listens, on the same port as before."""
        command = [sys.executable, str(RECEIVER), str(self.port)]
        self.process = subprocess.Popen(
            [*command, str(self.folder / "heard"), str(self.folder / "manners")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        """Ends as kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def behave(self, manners: str) -> None:
        """How the next requests are answered, word by word."""
        (self.folder / "manners").write_text(manners)

    @property
    def url(self) -> str:
        """Where it listens; the path is a secret, as those of chats are."""
        return f"http://127.0.0.1:{self.port}/{PATH_SECRET}"

    def lines(self, when: str) -> list[dict[str, Any]]:
        """What it heard, in order."""
        lines = [json.loads(line) for line in (self.folder / "heard").read_text().splitlines()]
        return [line for line in lines if line["when"] == when]

    def came(self) -> list[dict[str, Any]]:
        """Every request, answered or not, each with its id and payload."""
        return [
            line
            | {
                "id": line["headers"].get("webhook-id"),
                "payload": json.loads(base64.b64decode(line["body"])),
            }
            for line in self.lines("came")
        ]

    def kinds(self) -> list[str]:
        """The types of the messages that were taken, one for each id."""
        taken = {one["id"]: one for one in self.came() if one["manner"] in ("204", "slow")}
        return sorted(one["payload"]["type"] for one in taken.values())


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path) as running:
        yield running


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    yield opened
    opened.close()


def complete_runs(journal: Journal, target: str, count: int = RUNS) -> None:
    """Runs that have ended, each with a message that waits."""
    for number in range(count):
        journal.create_run(
            run_id=f"r{number}",
            out=f"out-{number}",
            config={"alert_below_pct": 95.0, "notify": [target]},
            space={"provider": "local", "model": "m"},
            now=1_000.0,
        )
        for source, event in (
            (RunState.PLANNING, RunEvent.PLANNED),
            (RunState.RUNNING, RunEvent.COMPLETED),
        ):
            journal.transition_run(f"r{number}", event, expected=source, now=1_001.0)


def verify(heard: dict[str, Any]) -> None:
    """Checks a request as a receiver of Standard Webhooks does, by its own means."""
    headers, body = heard["headers"], base64.b64decode(heard["body"])
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 300
    signed = b".".join(
        (headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body)
    )
    wanted = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    versions = [one.partition(",") for one in headers["webhook-signature"].split(" ")]
    assert any(v == "v1" and hmac.compare_digest(found, wanted) for v, _, found in versions)
    wrong = base64.b64encode(hmac.new(b"x" * 32, signed, hashlib.sha256).digest()).decode()
    assert not any(found == wrong for _, _, found in versions)


def test_every_message_arrives_though_its_receiver_fails_and_restarts(
    journal: Journal, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, 302, 429, resets, silence and a receiver that is away: each message comes in the end,
    and each repeat bears the id and the words of the first."""
    monkeypatch.setattr(heralds, "ANSWER_S", 0.5)
    complete_runs(journal, receiver.url)
    receiver.behave("500 reset hang 302 429 204 reset 500")
    delays = (0.05,) * 200
    senders = heralds.open_senders(SECRET, clock=time.time)
    with Courier(journal.outbox, senders, delays_s=delays, poll_s=0.05):
        deadline = time.monotonic() + DEADLINE_S
        while len(receiver.came()) < 9 and time.monotonic() < deadline:
            time.sleep(0.05)
        receiver.kill()
        time.sleep(0.5)
        receiver.start()
        while journal.outbox.counts().waiting and time.monotonic() < deadline:
            time.sleep(0.05)
    counts = journal.outbox.counts()
    assert (counts.waiting, counts.given_up) == (0, 0)
    assert receiver.kinds() == ["run.completed"] * RUNS
    said: dict[str, set[str]] = defaultdict(set)
    for heard in receiver.came():
        verify(heard)
        said[heard["id"]].add(heard["body"])
    assert len(said) == RUNS
    assert all(len(bodies) == 1 for bodies in said.values())
    assert {one["payload"]["data"]["run"] for one in receiver.came()} == {
        f"r{number}" for number in range(RUNS)
    }
    assert len(receiver.came()) >= RUNS + 7, "the faults struck"
    assert not [one for one in receiver.came() if "elsewhere" in one["path"]]


def test_a_receiver_that_is_gone_is_told_no_more(journal: Journal, receiver: Receiver) -> None:
    """410 ends the attempts at once, and `status` can say so."""
    complete_runs(journal, receiver.url, 1)
    receiver.behave("410")
    senders = heralds.open_senders(SECRET, clock=time.time)
    with Courier(journal.outbox, senders, poll_s=0.05) as courier:
        assert courier.linger("r0") == 0
    counts = journal.outbox.counts("r0")
    assert (counts.waiting, counts.given_up) == (0, 1)
    assert "410" in str(counts.error)
    assert len(receiver.came()) == 1


def test_two_processes_never_send_one_message_at_the_same_time(
    shell: Any, receiver: Receiver
) -> None:
    """Two workers over one outbox: each message is sent once, by one of them."""
    opened = Journal.open(journal_url(str(shell.folder / "home" / "journal.db")))
    complete_runs(opened, receiver.url, 16)
    receiver.behave("slow " * 16)
    shell.variables["EMBATCH_WEBHOOK_SECRET"] = SECRET
    workers = [shell.start("worker", "--once") for _ in range(2)]
    for worker in workers:
        _, err = worker.communicate(timeout=DEADLINE_S)
        assert worker.returncode == 0, err
    assert opened.outbox.counts().waiting == 0
    opened.close()
    assert len(receiver.came()) == 16
    assert len({one["id"] for one in receiver.came()}) == 16


def test_a_message_outlives_the_process_that_had_to_send_it(
    shell: Any, receiver: Receiver, tmp_path: Path
) -> None:
    """kill -9 between the end of a run and its message: the next process sends it."""
    shell.write_rows("texts.jsonl", [{"text": f"text {n}"} for n in range(50)])
    shell.variables["EMBATCH_WEBHOOK_SECRET"] = SECRET
    killed = forking.run(
        [
            *(sys.executable, str(KILLABLE), "finish.journaled:1", "-", "-", "--"),
            *("run", "texts.jsonl", "-o", "out", "--notify", receiver.url),
        ],
        env=shell.environ(),
        cwd=shell.folder,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    opened = Journal.open(journal_url(str(shell.folder / "home" / "journal.db")))
    run = opened.list_runs()[0]
    assert run.state is RunState.COMPLETED
    assert opened.outbox.counts(run.id).waiting == 1
    ended = shell.type("status", "--json")
    assert ended.json["notifications"]["waiting"] == 1
    ended = shell.type("resume", run.id)
    assert ended.code == 0, ended.err
    assert opened.outbox.counts(run.id).waiting == 0
    opened.close()
    assert receiver.kinds() == ["run.completed"]
    heard = receiver.came()[-1]
    verify(heard)
    assert heard["payload"]["data"]["written"] == 50


def test_a_run_tells_of_its_failed_rows_and_shows_no_secret(shell: Any, receiver: Receiver) -> None:
    """Two messages to each of two targets; nothing that is printed, kept or logged names them."""
    rows = [{"id": f"secret-key-{n}", "text": f"secret words {n} poison"} for n in range(10)]
    rows += [{"id": f"secret-key-{n}", "text": f"secret words {n}"} for n in range(10, 50)]
    shell.write_rows("texts.jsonl", rows)
    shell.variables["EMBATCH_WEBHOOK_SECRET"] = SECRET
    chat = f"json://127.0.0.1:{receiver.port}/chat-{PATH_SECRET}"
    receiver.behave("500")
    ended = shell.type(
        *("run", "texts.jsonl", "-o", "out", "--key", "id", "--log-format", "json", "--json"),
        *("--notify", receiver.url, "--notify", chat),
    )
    assert ended.code == 3, ended.err
    kinds = sorted([*("run.completed_with_failures", "run.low_success_rate")])
    hooks = {one["id"]: one for one in receiver.came() if one["id"]}
    assert sorted(one["payload"]["type"] for one in hooks.values()) == kinds
    data = next(iter(hooks.values()))["payload"]["data"]
    assert (data["rows"], data["written"], data["failed"]) == (50, 40, 10)
    chats = [one["payload"] for one in receiver.came() if one["path"].startswith("/chat-")]
    titles = {one["title"] for one in chats}
    assert any("failed rows" in title for title in titles), titles
    assert any("40 written, 10 failed" in one["message"] for one in chats)
    shown = ended.out + ended.err + (shell.folder / "out" / "manifest.json").read_text()
    shown += shell.type("status", "--json").out + shell.type("runs", "--json").out
    for secret in (PATH_SECRET, SECRET, KEY.decode()):
        assert secret not in shown
    heard = json.dumps([one["payload"] for one in receiver.came()])
    for secret in ("secret words", "secret-key", PATH_SECRET):
        assert secret not in heard


def test_json_log_has_one_line_for_each_event(shell: Any) -> None:
    """Every event of a run is one line with its fields; no line holds a text or a key."""
    rows = [{"id": f"secret-key-{n}", "text": f"secret words {n}"} for n in range(60)]
    rows[7]["text"] += " poison"
    shell.write_rows("texts.jsonl", rows)
    ended = shell.type(
        *("run", "texts.jsonl", "-o", "out", "--key", "id", "--max-batch-items", "10"),
        *("--log-format", "json", "--json"),
    )
    assert ended.code == 3, ended.err
    lines = [json.loads(line) for line in ended.err.splitlines()]
    assert all({"at", "level", "logger", "message"} <= line.keys() for line in lines)
    told = [line for line in lines if line["logger"] == "embatch.journal"]
    served = [line for line in lines if line["logger"] == "embatch.service"]
    assert {line["event"] for line in served} == {
        "batch_created",
        "batch_begun",
        "batch_completed",
    }
    opened = Journal.open(journal_url(str(shell.folder / "home" / "journal.db")))
    run = opened.list_runs()[0]
    events = opened.events(run.id, limit=10_000)
    opened.close()
    assert len(events) > 20
    wanted = [(one.kind, one.batch_id, one.source, one.target) for one in events]
    found = [
        (line["event"], line.get("batch_id"), line.get("from"), line.get("to")) for line in told
    ]
    assert sorted(map(str, found)) == sorted(map(str, wanted))
    assert all(line["run"] == run.id for line in told)
    assert all("batch" in line for line in told if "batch_id" in line)
    assert "secret words" not in ended.err
    assert "secret-key" not in ended.err


def test_a_target_that_cannot_be_reached_is_refused_at_the_start(shell: Any, refused: Any) -> None:
    """Exit 2 before anything is made, naming the scheme and never the rest."""
    shell.write_rows("texts.jsonl", [{"text": "a text"}])
    shell.variables["EMBATCH_NOTIFY"] = "nosuch://x-token"
    line = refused("run", "texts.jsonl", "-o", "out", code=2)
    assert "nosuch://…" in line
    assert "x-token" not in line


def test_doctor_sends_a_test(shell: Any, receiver: Receiver) -> None:
    """One signed message to each target; what does not arrive is told without the URL."""
    shell.variables["EMBATCH_WEBHOOK_SECRET"] = SECRET
    receiver.behave("204 500")
    chat = f"json://127.0.0.1:{receiver.port}/chat-{PATH_SECRET}"
    ended = shell.type("doctor", "--json", "--notify", receiver.url, "--notify", chat)
    found = {one["what"]: one for one in ended.json["findings"]}
    assert found["notify 1"]["well"] is True
    assert found["notify 2"]["well"] is False
    assert "json://…" in found["notify 2"]["detail"]
    assert PATH_SECRET not in ended.out + ended.err
    (heard,) = [one for one in receiver.came() if one["id"]]
    verify(heard)
    assert heard["payload"]["type"] == "test"
