"""Metrics are the journal's figures, in text that Prometheus reads."""

import json
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from sqlalchemy import Connection

from embatch.errors import ConfigError, JournalError
from embatch.journal import measures
from embatch.journal.ledger import reserve, settle
from embatch.journal.purchases import Bought, Purchase
from embatch.journal.records import Failure, NewBatch
from embatch.journal.store import Journal
from embatch.observe.durations import StepClock
from embatch.observe.metrics import render, serve
from embatch.runs.measures import OPEN_RUNS, read_figures
from embatch.runs.quota import Belief, Ceiling
from embatch.runs.status import read_status
from embatch.types.state import BatchEvent, RunEvent, RunState

NOW = 10_000.0
DOCS = Path(__file__).parents[3] / "docs"
SPACE = {
    "provider": "gemini",
    "model": "gemini-embedding-001",
    "dims": 128,
    "task_type": None,
    "prompt_template": None,
    "normalized": True,
    "precision": None,
    "weights_sha256": None,
}


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    yield opened
    opened.close()


def fill(journal: Journal) -> None:
    """A run with a batch in each of some states, money, a quota, failures and a notification."""
    journal.create_run(
        run_id="r1",
        out="out",
        config={"alert_below_pct": 95.0, "notify": ["https://example.org/x"]},
        space=SPACE,
        now=NOW,
    )
    token = journal.leases.claim_planning("r1", owner="me", lease_s=60)
    assert token is not None
    batches = [
        NewBatch(
            kind="copies" if start == 40 else "embed",
            items=10,
            row_min=start,
            row_max=start + 9,
            tokens_estimated=500,
            owner_min=0,
            owner_max=9,
        )
        for start in range(0, 50, 10)
    ]
    failure = Failure(
        row=50, key="k", code="empty", message="", attempts=0, batch_id=None, kept=False
    )
    journal.batches.add_planned("r1", token, batches=batches, failures=[failure], plan={}, now=NOW)
    journal.update_run("r1", now=NOW, rows=51)
    journal.transition_run("r1", RunEvent.PLANNED, expected=RunState.PLANNING, now=NOW)
    journal.leases.release_planning("r1", token)
    for label, events in (
        ("first", [BatchEvent.RESULTS_READY, BatchEvent.COLLECTED, BatchEvent.PUBLISHED]),
        ("second", []),
        ("third", [BatchEvent.JOB_FAILED]),
    ):
        _submit(journal, label, events)
    purchase = Purchase(
        run_id="r1",
        batch_id=1,
        kind="batch",
        ref="first",
        rows=10,
        tokens_bound=1_000,
        tokens_estimated=500,
        usd_bound=1.0,
    )
    with journal.ledger._database.write("r1") as connection:
        reserve(connection, [purchase], NOW)
        settle(connection, "first", Bought(rows=10, tokens=400), NOW)
    belief = Belief(tokens=Ceiling(most=3_000), hold="minute", hold_until=NOW + 30, accepted=4)
    journal.quotas.change(
        "gemini/project/gemini-embedding-001", lambda *_: _ruling(belief), now=NOW
    )


def _ruling(belief: Belief) -> "object":
    from embatch.journal.quotas import Ruling

    return Ruling(belief=belief.to_json())


def _submit(journal: Journal, label: str, events: list[BatchEvent]) -> None:
    claim = journal.leases.claim_step("r1", owner="me", lease_s=60, now=NOW, max_in_flight=9)
    assert claim is not None
    batch = claim.batch
    before = [
        BatchEvent.UPLOAD_STARTED,
        BatchEvent.UPLOAD_FINISHED,
        BatchEvent.SUBMIT_INTENDED,
        BatchEvent.SUBMIT_CONFIRMED,
    ]
    for event in [*before, *events]:
        facts: dict[str, object] = {}
        if event is BatchEvent.SUBMIT_INTENDED:
            facts = {"label": label, "submitted_at": NOW - 100}
        if event is BatchEvent.SUBMIT_CONFIRMED:
            facts = {"remote_name": f"batches/{label}"}
        if event is BatchEvent.COLLECTED:
            facts = {"succeeded": 9, "failed": 1, "part_rows": 9, "tokens": 400}
        batch = journal.batches.transition(
            batch,
            claim.token,
            event,
            now=NOW,
            scope="gemini/project/gemini-embedding-001",
            **facts,  # type: ignore[arg-type]
        )
    journal.leases.release(batch.id, claim.token, next_at=NOW + 60)


def page(journal: Journal, steps: StepClock | None = None) -> dict[tuple[str, ...], float]:
    """The samples by name and the values of their labels in the order of the labels' names."""
    body, _ = render(lambda: read_figures(journal, now=NOW), steps or StepClock())
    return {_key(one): one.value for one in samples(body)}


def samples(body: bytes) -> list[Sample]:
    families = text_string_to_metric_families(body.decode())
    return [sample for family in families for sample in family.samples]


def _key(sample: Sample) -> tuple[str, ...]:
    return (sample.name, *(value for _, value in sorted(sample.labels.items())))


def test_the_numbers_equal_the_journals(journal: Journal) -> None:
    """Each figure against what the journal's own calls say of the run."""
    fill(journal)
    found, status = page(journal), read_status(journal, "r1", now=NOW)
    place = ("gemini-embedding-001", "gemini")
    assert found["embatch_runs", "running"] == 1
    for state, count in status.batches.items():
        assert found["embatch_batches", *place, state] == count
    assert found["embatch_rows", *place, "written"] == status.written == 9
    assert found["embatch_rows", *place, "failed"] == status.failed == 1
    assert found["embatch_rows", *place, "in_flight"] == 10
    assert found["embatch_rows", *place, "waiting"] == 30
    assert found["embatch_run_expected_rows", *place, "r1"] == status.rows
    assert found["embatch_run_rows", *place, "r1", "written"] == 9
    assert status.cost is not None
    assert status.cost.saved is not None
    assert found["embatch_spent_usd", *place] == pytest.approx(status.cost.spent_usd)
    assert found["embatch_reserved_usd", *place] == pytest.approx(status.cost.open_usd)
    assert found["embatch_saved_usd", *place] == pytest.approx(status.cost.saved.usd)
    assert status.quota is not None
    quota = ("project", *place)
    assert found["embatch_inflight_tokens", *quota] == status.quota.tokens_in_flight == 500
    assert found["embatch_inflight_jobs", *quota] == status.quota.jobs_in_flight == 1
    assert found["embatch_ceiling_tokens", *quota] == status.quota.ceiling_tokens == 3_000
    assert ("embatch_ceiling_jobs", *quota) not in found
    assert found["embatch_quota_wait_seconds", *quota] == 30
    assert found["embatch_creates_total", "project", *place[:1], "accepted", "gemini"] == 4
    assert found["embatch_oldest_pending_seconds", *place] == 100
    assert found["embatch_retries_total", "job_failed"] == 1
    journal.transition_run("r1", RunEvent.FAILED, expected=RunState.RUNNING, now=NOW)
    found = page(journal)
    assert found["embatch_notifications_waiting",] == journal.outbox.counts().waiting == 1
    assert ("embatch_run_rows", *place, "r1", "written") not in found
    assert found["embatch_rows", *place, "written"] == 9


def test_what_does_not_move_is_not_summed_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what moves is, so that a scrape says what a process says that never scraped before."""
    summed: list[list[str]] = []

    def sum_runs(connection: Connection, run_ids: list[str]) -> object:
        summed.append(run_ids)
        return sums(connection, run_ids)

    sums = measures._sum_runs
    monkeypatch.setattr(measures, "_sum_runs", sum_runs)
    fill(journal)
    reserve_more = Purchase(
        ref="more", run_id="r1", kind="batch", rows=1, tokens_bound=9, tokens_estimated=3,
        usd_bound=0.5, batch_id=1,
    )  # fmt: skip
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: journal.add_event("r1", "looked", now=NOW),
        lambda: journal.ledger.reserve(reserve_more, now=NOW),
        lambda: journal.ledger.settle("more", Bought(rows=1, tokens=7), now=NOW),
        lambda: journal.update_run("r1", now=NOW + 1.0, name="new"),
        lambda: journal.transition_run("r1", RunEvent.FAILED, expected=RunState.RUNNING, now=NOW),
    ]
    for change in changes:
        change()
        anew = measures.MeasureTable(journal._database).read(now=NOW)
        summed.clear()
        assert journal.measures.read(now=NOW) == anew
        assert journal.measures.read(now=NOW) == anew
        assert summed == [["r1"], []]
    assert journal.measures.read(now=NOW + measures.KEPT_S)
    assert summed[-1] == ["r1"]


def test_a_notification_given_up_is_told_of_for_a_day(journal: Journal) -> None:
    """An alert on it ends by itself."""
    fill(journal)
    journal.transition_run("r1", RunEvent.FAILED, expected=RunState.RUNNING, now=NOW)
    claimed = journal.outbox.claim(("webhook", "apprise"), claim_s=60.0)
    assert claimed is not None
    assert journal.outbox.gave_up(claimed, "410")
    for days, told in ((0.5, 1), (1.5, 0)):
        found = read_figures(journal, now=time.time() + days * 86_400.0)
        assert (found.notifications_given_up, found.notifications_waiting) == (told, 0)


def test_series_of_runs_are_bounded(journal: Journal) -> None:
    """However many runs are open, no more than the newest have series of their own."""
    for number in range(OPEN_RUNS + 5):
        journal.create_run(
            run_id=f"r{number}",
            out="out",
            config={"alert_below_pct": 95.0},
            space={**SPACE, "provider": "local", "model": "/somewhere/secret/model"},
            now=NOW + number,
        )
    body, _ = render(lambda: read_figures(journal, now=NOW), StepClock())
    runs = {one.labels["run"] for one in samples(body) if "run" in one.labels}
    assert len(runs) == OPEN_RUNS
    assert "r0" not in runs
    assert b"somewhere" not in body


def test_steps_are_counted_by_what_came_of_them() -> None:
    """A histogram with cumulated buckets; a step that raises counts as broken."""
    steps = StepClock()
    steps.observe("submitted", "after", 0.03)
    steps.observe("submitted", "after", 4_000.0)
    with pytest.raises(ZeroDivisionError):
        steps.time("planned", lambda: 1 // 0)
    assert steps.time("planning", lambda: None) is None
    body, _ = render(lambda: _raise(JournalError("away")), steps)
    found = {
        (one.name, one.labels.get("outcome"), one.labels.get("le")): one for one in samples(body)
    }
    assert found["embatch_step_seconds_bucket", "after", "0.02"].value == 0
    assert found["embatch_step_seconds_bucket", "after", "0.05"].value == 1
    assert found["embatch_step_seconds_bucket", "after", "+Inf"].value == 2
    assert found["embatch_step_seconds_count", "after", None].value == 2
    assert found["embatch_step_seconds_count", "broke", None].value == 1
    assert found["embatch_step_seconds_count", "done", None].value == 1


def _raise(error: Exception) -> object:
    raise error


def test_a_journal_that_is_away_is_a_figure_too() -> None:
    """The page says so, and answers."""
    body, _ = render(lambda: _raise(JournalError("away")), StepClock())  # type: ignore[arg-type, return-value]
    assert {one.name: one.value for one in samples(body)} == {"embatch_journal_up": 0}


def test_the_page_is_served_on_a_port(journal: Journal) -> None:
    """As `embatch worker --metrics-port` does; a port that is taken is refused by name."""
    fill(journal)
    with serve(lambda: read_figures(journal, now=NOW), host="127.0.0.1", port=0) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            body = answer.read()
        with (
            pytest.raises(ConfigError, match=f"127.0.0.1:{port}"),
            serve(lambda: read_figures(journal, now=NOW), host="127.0.0.1", port=port),
        ):
            pass
    assert ("embatch_journal_up", 1.0) in {(one.name, one.value) for one in samples(body)}


def test_dashboard_and_alerts_name_metrics_that_exist(journal: Journal) -> None:
    """Every metric in the Grafana dashboard and in the page of rules is exported."""
    fill(journal)
    steps = StepClock()
    steps.observe("submitted", "after", 1.0)
    body, _ = render(lambda: read_figures(journal, now=NOW), steps)
    exported = {one.name.removesuffix("_bucket") for one in samples(body)}
    exported |= {"embatch_ceiling_jobs", "embatch_step_seconds_bucket"}
    board = json.loads((DOCS / "grafana" / "embatch.json").read_text())
    expressions = [
        target["expr"] for panel in board["panels"] for target in panel.get("targets", [])
    ]
    assert len(expressions) > 10
    queries = [
        one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"
    ]
    rules = (DOCS / "monitoring.md").read_text()
    for text in (*expressions, *queries, rules):
        named = set(re.findall(r"\bembatch_(?!serve_)[a-z_]+[a-z]\b", text))
        assert named <= exported, named - exported
    assert all("embatch_" in one for one in expressions)
