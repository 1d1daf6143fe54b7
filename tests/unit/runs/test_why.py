"""Why a run does not move: one sentence for each plight, with what to type."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboards import DONE, NOW, SENT, block, enter, fill, move
from embatch.journal.store import Journal
from embatch.runs.status import read_status, waiting_for_person
from embatch.runs.why import Why, command_in, explain, span
from embatch.types.state import RunEvent, RunState


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")
    yield opened
    opened.close()


def why(journal: Journal, run_id: str, *, now: float, worked: bool = True) -> Why | None:
    run = journal.get_run(run_id)
    blocked = waiting_for_person(journal, run_id, run.state)
    return explain(journal, run, worked=worked, blocked=blocked, now=now)


def told(journal: Journal, run_id: str, *, now: float, worked: bool = True) -> Why:
    found = why(journal, run_id, now=now, worked=worked)
    assert found is not None
    return found


def test_each_plight_has_its_sentence(journal: Journal) -> None:
    """A run that moves, and one that has ended, have none."""
    fill(journal)
    now = NOW + 120.0
    assert why(journal, "r-run", now=now) is None
    assert why(journal, "r-done", now=now) is None
    assert why(journal, "r-failed", now=now) is None
    budget = told(journal, "r-budget", now=now)
    assert (budget.kind, budget.command) == ("budget", "embatch resume r-budget --max-cost 0.01")
    alone = told(journal, "r-run", now=now, worked=False)
    assert (alone.kind, alone.command) == ("unattended", "embatch resume r-run")
    assert "no process works on it" in alone.sentence
    workers = told(journal, "r-workers", now=now, worked=False)
    assert workers.kind == "workers"
    assert workers.sentence.startswith("no worker alive for the queue io: embatch worker")
    person = told(journal, "r-person", now=now)
    assert (person.kind, person.command) == (
        "person",
        "embatch resolve r-person 0 --adopt NAME",
    )


def test_the_status_says_the_same_sentence(journal: Journal) -> None:
    """What the panel, `--json` and the page show is one and the same."""
    fill(journal)
    for run in journal.list_runs():
        status = read_status(journal, run.id, now=NOW + 120.0)
        assert status.waiting == (None if status.why is None else status.why.sentence)


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        ("quota", "quota", "waiting for quota until"),
        ("budget", "budget", "waits for money, 40 s more (budget): the detail"),
        ("unavailable", "service", "waits for the provider, 40 s more (unavailable): the detail"),
    ],
)
def test_what_holds_a_batch_is_named(journal: Journal, reason: str, kind: str, words: str) -> None:
    """For as long as it waits."""
    batch = enter(journal, "r1", batches=1)[0]
    block(journal, batch, reason, "the detail", until=NOW + 40.0)
    found = told(journal, "r1", now=NOW)
    assert found.kind == kind
    assert words in found.sentence
    assert "the detail" in found.sentence
    assert found.until == NOW + 40.0
    assert why(journal, "r1", now=NOW + 41.0) is None


def test_a_creation_in_doubt_waits_for_the_settle_window(journal: Journal) -> None:
    batch = move(journal, enter(journal, "r1", batches=1)[0], *SENT[:3], at=NOW)
    block(journal, batch, "unavailable", "not found yet", until=NOW + 600.0)
    found = told(journal, "r1", now=NOW)
    assert found.kind == "settling"
    assert "looked for again in 10 min" in found.sentence


def test_jobs_that_take_far_longer_than_others_did_are_slow(journal: Journal) -> None:
    """Against the median of those that ended; while none has, an hour is worth a word."""
    batches = enter(journal, "r1", batches=4)
    move(journal, batches[0], *SENT, at=NOW)
    assert why(journal, "r1", now=NOW + 3_000.0) is None
    none_back = told(journal, "r1", now=NOW + 7 * 3_600.0)
    assert none_back.sentence == ("oldest batch pending 7 h; none of this run has come back yet")
    for batch in batches[1:]:
        move(journal, batch, *DONE, at=NOW)
    slow = told(journal, "r1", now=NOW + 7 * 3_600.0 + 20.0)
    assert slow.sentence == "oldest batch pending 7 h against a median of 40 s"
    assert slow.kind == "slow"
    assert why(journal, "r1", now=NOW + 300.0) is None


def test_a_parked_run_names_the_hour(journal: Journal) -> None:
    enter(journal, "r1", batches=1)
    journal.transition_run(
        "r1", RunEvent.PARKED, expected=RunState.RUNNING, now=NOW, resume_at=NOW + 9_000.0
    )
    for worked, words in ((True, "goes on by itself"), (False, "no process works on it")):
        found = told(journal, "r1", now=NOW, worked=worked)
        assert (found.kind, found.until) == ("quota", NOW + 9_000.0)
        assert found.sentence.startswith("waiting for quota until ")
        assert words in found.sentence
        assert found.command == "embatch resume r1"


def test_a_run_that_is_planned_says_what_it_reads(journal: Journal) -> None:
    facts: dict[str, Any] = {"alert_below_pct": 95.0}
    space = {"provider": "local", "model": "m", "dims": 4}
    journal.create_run(run_id="r1", out="/nowhere/r1", config=facts, space=space, now=NOW)
    assert told(journal, "r1", now=NOW).sentence == "reading the input for the first time"
    assert read_status(journal, "r1", now=NOW).waiting is None  # it moves
    journal.update_run("r1", now=NOW, rows=12_345)
    assert told(journal, "r1", now=NOW).sentence == "cutting 12,345 rows into batches"


def test_a_command_is_taken_out_of_its_sentence() -> None:
    assert command_in("so type: embatch resume r1 --max-cost 2.5.") == (
        "embatch resume r1 --max-cost 2.5"
    )
    assert command_in("nothing to type") is None


def test_spans_are_told_in_one_unit() -> None:
    cases = {0.0: "0 s", 89.0: "89 s", 1_320.0: "22 min", 25_200.0: "7 h", 259_200.0: "3 days"}
    assert {seconds: span(seconds) for seconds in cases} == cases
