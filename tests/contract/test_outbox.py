"""The outbox: entered with what it tells of, once, and claimed by one process at a time."""

import threading
from collections.abc import Iterator

import pytest

from embatch.errors import TransitionRefusedError
from embatch.journal.outbox import Notification
from embatch.journal.records import NewBatch
from embatch.journal.store import Journal
from embatch.types.state import RunEvent, RunState

WAYS = ("webhook", "apprise")
TARGETS = ("https://example.org/x", "json://example.org/y")


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    yield opened
    opened.close()


def start(journal: Journal, run_id: str = "r1", *, targets: tuple[str, ...] = TARGETS) -> str:
    """A run in state `running` with two batches; the token of its planning."""
    journal.create_run(
        run_id=run_id,
        out="out",
        config={"alert_below_pct": 95.0, "notify": list(targets)},
        space={"provider": "gemini", "model": "m"},
        now=1_000.0,
        name="catalogue",
    )
    token = journal.leases.claim_planning(run_id, owner="me", lease_s=60)
    assert token is not None
    batches = [
        NewBatch(kind="embed", items=10, row_min=start, row_max=start + 9) for start in (0, 10)
    ]
    journal.batches.add_planned(run_id, token, batches=batches, failures=[], plan={}, now=1_000.0)
    journal.transition_run(run_id, RunEvent.PLANNED, expected=RunState.PLANNING, now=1_001.0)
    return token


def claim_all(journal: Journal) -> list[Notification]:
    """Everything that waits, claimed."""
    claimed = []
    while (one := journal.outbox.claim(WAYS, claim_s=60)) is not None:
        claimed.append(one)
    return claimed


def end(journal: Journal, event: RunEvent, run_id: str = "r1", **facts: object) -> None:
    journal.transition_run(
        run_id, event, expected=RunState.RUNNING, now=1_002.0, finished_at=1_002.0, **facts
    )


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (RunEvent.COMPLETED, "run.completed"),
        (RunEvent.FAILED, "run.failed"),
        (RunEvent.BUDGET_REACHED, "run.over_budget"),
        (RunEvent.BLOCKED, "run.needs_person"),
    ],
)
def test_each_end_is_told_to_each_target(journal: Journal, event: RunEvent, kind: str) -> None:
    """One message a target, with ids of their own."""
    start(journal)
    end(journal, event)
    claimed = claim_all(journal)
    assert [one.kind for one in claimed] == [kind, kind]
    assert {one.target for one in claimed} == set(TARGETS)
    assert len({one.id for one in claimed}) == 2
    assert claimed[0].payload["data"]["name"] == "catalogue"


@pytest.mark.parametrize("event", [RunEvent.PARKED, RunEvent.CANCELLED])
def test_what_goes_on_by_itself_or_was_asked_for_is_not_told(
    journal: Journal, event: RunEvent
) -> None:
    """Nobody is woken for a quota that turns with the day, nor told of their own command."""
    start(journal)
    journal.transition_run("r1", event, expected=RunState.RUNNING, now=1_002.0)
    assert claim_all(journal) == []


def test_a_refused_change_enters_nothing(journal: Journal) -> None:
    """The message and the change stand or fall together."""
    start(journal)
    end(journal, RunEvent.COMPLETED)
    with pytest.raises(TransitionRefusedError):
        end(journal, RunEvent.FAILED)
    assert {one.kind for one in claim_all(journal)} == {"run.completed"}


def test_a_message_is_claimed_by_one_alone(journal: Journal) -> None:
    """Eight threads that claim at once share the messages out."""
    for number in range(10):
        start(journal, f"r{number}")
        end(journal, RunEvent.COMPLETED, f"r{number}")
    claimed: list[Notification] = []

    def work() -> None:
        claimed.extend(claim_all(journal))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 20
    assert len({one.id for one in claimed}) == 20


def test_a_claim_that_ran_out_is_void(journal: Journal) -> None:
    """Who was too slow writes nothing over what another has done."""
    start(journal, targets=TARGETS[:1])
    end(journal, RunEvent.COMPLETED)
    slow = journal.outbox.claim(WAYS, claim_s=-1.0)
    quick = journal.outbox.claim(WAYS, claim_s=60.0)
    assert slow is not None
    assert quick is not None
    assert slow.id == quick.id
    assert not journal.outbox.gave_up(slow, "too slow")
    assert journal.outbox.delivered(quick)
    assert journal.outbox.counts("r1").waiting == 0


def test_only_what_a_process_can_send_is_claimed(journal: Journal) -> None:
    """A process without a secret leaves webhooks to others, and counts them as waiting."""
    start(journal)
    end(journal, RunEvent.COMPLETED)
    claimed = journal.outbox.claim(("apprise",), claim_s=60)
    assert claimed is not None
    assert claimed.target.startswith("json://")
    assert journal.outbox.claim(("apprise",), claim_s=60) is None
    assert journal.outbox.claim((), claim_s=60) is None
    assert journal.outbox.counts("r1").waiting == 2
    assert journal.outbox.counts("r1", ways=("webhook",)).waiting == 1


def test_a_failure_holds_up_what_goes_to_the_same_target(journal: Journal) -> None:
    """The other target is not kept waiting."""
    for number in range(2):
        start(journal, f"r{number}")
        end(journal, RunEvent.COMPLETED, f"r{number}")
    first = journal.outbox.claim(("webhook",), claim_s=60)
    assert first is not None
    assert journal.outbox.failed(first, "no answer", again_in_s=600, others_in_s=60)
    assert journal.outbox.claim(("webhook",), claim_s=60) is None
    assert len(claim_all(journal)) == 2
    assert journal.outbox.counts().error == "no answer"


def block(journal: Journal, run_id: str = "r1") -> None:
    """A batch of the run that waits for a person."""
    claim = journal.leases.claim_step(run_id, owner="me", lease_s=60, now=1_003.0, max_in_flight=9)
    assert claim is not None
    journal.leases.release(
        claim.batch.id,
        claim.token,
        next_at=1_003.0,
        blocked_reason="person",
        blocked_detail=f"batch {claim.batch.number}: type something",
    )


def test_a_person_is_called_once_for_what_they_can_mend_at_once(journal: Journal) -> None:
    """For the first batch that waits, neither for the next nor for the run that then stops; and
    anew once someone has set the run going and it is so again."""
    start(journal, targets=TARGETS[:1])
    block(journal)
    block(journal)
    end(journal, RunEvent.BLOCKED)
    (told,) = claim_all(journal)
    assert told.kind == "run.needs_person"
    waiting = "batch 0 waits for a person: embatch status r1 says why"
    assert told.payload["data"]["waiting"] == waiting
    assert "type something" not in str(told.payload)
    journal.batches.unblock("r1", now=1_004.0)
    journal.transition_run("r1", RunEvent.RESUMED, expected=RunState.NEEDS_PERSON, now=1_004.0)
    claim = journal.leases.claim_step("r1", owner="me", lease_s=60, now=1_005.0, max_in_flight=9)
    assert claim is not None
    journal.leases.release(
        claim.batch.id, claim.token, next_at=1_005.0, blocked_reason="person", blocked_detail="b"
    )
    journal.transition_run("r1", RunEvent.BLOCKED, expected=RunState.RUNNING, now=1_006.0)
    (again,) = claim_all(journal)
    assert again.payload["data"]["batch"] == claim.batch.number


def test_standing_still_is_told_once_for_each_time(journal: Journal) -> None:
    """Again only when what stands still now began to after the last telling."""
    start(journal, targets=TARGETS[:1])
    facts = {"waiting": "batch 1 has not moved for 7 h"}
    assert journal.outbox.tell_stuck("r1", since=900.0, facts=facts, now=1_100.0)
    assert not journal.outbox.tell_stuck("r1", since=900.0, facts=facts, now=1_200.0)
    assert not journal.outbox.tell_stuck("r1", since=1_050.0, facts=facts, now=1_200.0)
    assert journal.outbox.tell_stuck("r1", since=1_150.0, facts=facts, now=1_300.0)
    assert [one.kind for one in claim_all(journal)] == ["run.stuck", "run.stuck"]
    assert [one.kind for one in journal.events("r1")].count("stuck") == 2


def test_a_low_success_rate_is_told_once_until_the_run_is_begun_anew(journal: Journal) -> None:
    """A retry that ends no better is told again."""
    start(journal, targets=TARGETS[:1])
    assert journal.outbox.tell_low_success("r1", facts={}, now=1_100.0)
    assert not journal.outbox.tell_low_success("r1", facts={}, now=1_200.0)
    end(journal, RunEvent.COMPLETED_WITH_FAILURES)
    journal.batches.add_retries("r1", [], rows=[], now=1_300.0)
    assert journal.outbox.tell_low_success("r1", facts={}, now=1_400.0)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("PermissionDeniedError", True),
        ("StorageError", True),
        ("DuplicateKeyError", False),
        ("BatchFailedError", False),
        ("EmbatchError", False),
        ("SomethingNewError", False),
    ],
)
def test_only_errors_in_words_of_ours_are_told_whole(
    journal: Journal, code: str, shown: bool
) -> None:
    """All others may quote the data or a service: they are told by their names."""
    start(journal, targets=TARGETS[:1])
    end(journal, RunEvent.FAILED, error="key 'abc' is doubled", error_code=code)
    (told,) = claim_all(journal)
    assert told.payload["data"]["error"] == ("key 'abc' is doubled" if shown else None)
    assert told.payload["data"]["error_code"] == code


def test_no_repr_shows_a_target(journal: Journal) -> None:
    """Neither the run's record nor a claimed message."""
    start(journal)
    end(journal, RunEvent.COMPLETED)
    shown = repr(journal.get_run("r1")) + repr(claim_all(journal))
    assert "example.org" not in shown
