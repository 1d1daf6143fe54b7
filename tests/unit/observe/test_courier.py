"""The courier's patience, and what is looked for when no step tells of it."""

import time
from collections.abc import Iterator

import pytest

from embatch.journal.records import Failure, NewBatch
from embatch.journal.store import Journal
from embatch.observe.attempt import Attempt
from embatch.observe.courier import DELAYS_S, Courier
from embatch.runs.vigil import STILL_S, STILL_UNKNOWN_S, keep_vigil
from embatch.types.state import BatchEvent, RunEvent, RunState

NOW = 100_000.0
TARGET = "https://example.org/x-token"
DEADLINE_S = 30.0


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    yield opened
    opened.close()


def start(journal: Journal, *, batches: int = 1, failed: int = 0, **config: object) -> None:
    """A run under way."""
    journal.create_run(
        run_id="r1",
        out="out",
        config={"alert_below_pct": 95.0, "notify": [TARGET], **config},
        space={"provider": "gemini", "model": "m"},
        now=NOW,
    )
    token = journal.leases.claim_planning("r1", owner="me", lease_s=60)
    assert token is not None
    planned = [
        NewBatch(kind="embed", items=100, row_min=100 * n, row_max=100 * n + 99)
        for n in range(batches)
    ]
    failures = [
        Failure(
            row=1_000_000 + n,
            key="k",
            code="empty",
            message="",
            attempts=0,
            batch_id=None,
            kept=False,
        )
        for n in range(failed)
    ]
    journal.batches.add_planned("r1", token, batches=planned, failures=failures, plan={}, now=NOW)
    journal.transition_run("r1", RunEvent.PLANNED, expected=RunState.PLANNING, now=NOW)
    journal.leases.release_planning("r1", token)


def submit(journal: Journal, *, at: float, published_after_s: float | None = None) -> None:
    """A batch at the provider since `at`."""
    claim = journal.leases.claim_step("r1", owner="me", lease_s=60, now=at, max_in_flight=9)
    assert claim is not None
    batch = claim.batch
    steps: list[tuple[BatchEvent, dict[str, object]]] = [
        (BatchEvent.UPLOAD_STARTED, {}),
        (BatchEvent.UPLOAD_FINISHED, {}),
        (BatchEvent.SUBMIT_INTENDED, {"label": f"l{batch.number}", "submitted_at": at}),
        (BatchEvent.SUBMIT_CONFIRMED, {"remote_name": f"batches/{batch.number}"}),
    ]
    if published_after_s is not None:
        done = {"part_rows": 90, "finished_at": at + published_after_s}
        steps += [(BatchEvent.RESULTS_READY, {}), (BatchEvent.COLLECTED, {})]
        steps += [(BatchEvent.PUBLISHED, done)]
    for event, facts in steps:
        batch = journal.batches.transition(batch, claim.token, event, now=at, **facts)  # type: ignore[arg-type]
    journal.leases.release(batch.id, claim.token, next_at=at + 60)


def stuck(journal: Journal) -> list[str]:
    """What was told of standing still."""
    events = journal.events("r1", limit=10_000)
    return [str((one.data or {})["waiting"]) for one in events if one.kind == "stuck"]


def test_a_message_is_given_up_after_three_days_of_trying(journal: Journal) -> None:
    """With every attempt counted, and the reason kept."""
    start(journal)
    journal.transition_run("r1", RunEvent.COMPLETED, expected=RunState.RUNNING, now=NOW)
    tried: list[str] = []

    def send(target: str, message_id: str, payload: object) -> Attempt:
        tried.append(message_id)
        if len(tried) == 2:
            raise ValueError(target)
        return Attempt.failed("no answer came in time")

    delays = (0.0,) * 5
    with Courier(journal.outbox, {"webhook": send}, delays_s=delays, poll_s=0.01) as courier:
        deadline = time.monotonic() + DEADLINE_S
        while journal.outbox.counts().waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert courier.linger("r1") == 0
    assert len(tried) == 6
    assert len(set(tried)) == 1
    counts = journal.outbox.counts("r1")
    assert (counts.given_up, counts.error) == (1, "no answer came in time")
    assert 2.9 * 86_400 < sum(DELAYS_S) < 3.1 * 86_400


def test_lingering_ends_where_nothing_can_arrive(
    journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that cannot send, or whose next try is later, says so and does not wait."""
    start(journal)
    journal.transition_run("r1", RunEvent.COMPLETED, expected=RunState.RUNNING, now=NOW)
    with Courier(journal.outbox, {}, poll_s=0.01) as courier:
        assert courier.linger("r1", wait_s=3_600.0) == 1
    assert "embatch resume r1" in caplog.text
    send = {"webhook": lambda *_: Attempt.failed("away", unreachable=True)}
    with Courier(journal.outbox, send, delays_s=(7_200.0,), poll_s=0.01) as courier:
        assert courier.linger("r1", wait_s=3_600.0) == 1
    assert "x-token" not in caplog.text


def test_a_job_without_comparison_stands_still_after_hours(journal: Journal) -> None:
    """Not before; and it is told once."""
    start(journal)
    submit(journal, at=NOW)
    keep_vigil(journal, None, now=NOW + STILL_UNKNOWN_S - 60)
    assert stuck(journal) == []
    keep_vigil(journal, None, now=NOW + STILL_UNKNOWN_S + 60)
    keep_vigil(journal, None, now=NOW + STILL_UNKNOWN_S + 600)
    assert stuck(journal) == ["batch 0 has not moved for 6 h"]
    assert journal.outbox.counts("r1").waiting == 1


def test_a_job_far_slower_than_the_others_stands_still(journal: Journal) -> None:
    """Against the median of those that came back."""
    start(journal, batches=2)
    submit(journal, at=NOW, published_after_s=1_320.0)
    submit(journal, at=NOW)
    keep_vigil(journal, ["another"], now=NOW + 3 * STILL_S)
    keep_vigil(journal, ["r1"], now=NOW + 3 * STILL_S)
    assert stuck(journal) == ["batch 1 has not moved for 3 h, against a median of 22 min"]


def test_a_run_in_which_nothing_happens_at_all_stands_still(journal: Journal) -> None:
    """With no job out and no quota to wait for."""
    start(journal, stuck_after_s=1_800.0)
    keep_vigil(journal, None, now=NOW + 1_700)
    assert stuck(journal) == []
    keep_vigil(journal, None, now=NOW + 1_900)
    assert stuck(journal) == ["nothing of the run has changed for 32 min"]


def test_too_many_failed_rows_are_told_before_the_end(journal: Journal) -> None:
    """Once, from a hundred decided rows on."""
    start(journal, failed=5)
    keep_vigil(journal, None, now=NOW)
    assert journal.outbox.counts("r1").waiting == 0
    submit(journal, at=NOW, published_after_s=10.0)
    keep_vigil(journal, None, now=NOW)
    assert journal.outbox.counts("r1").waiting == 0, "95 rows are too few to tell"


def test_a_low_success_rate_under_way_is_told_once(journal: Journal) -> None:
    """20 of 110 rows failed."""
    start(journal, failed=20)
    submit(journal, at=NOW, published_after_s=10.0)
    keep_vigil(journal, None, now=NOW)
    keep_vigil(journal, None, now=NOW + 60)
    assert journal.outbox.counts("r1").waiting == 1
