"""Many processes on one run: no bound and no cap is passed, no row is taken twice, nothing waits
for itself."""

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Any

import pytest
from sqlalchemy import text

from embatch.errors import BudgetExceededError, TransitionRefusedError
from embatch.journal.calibrations import CalibrationTable
from embatch.journal.ledger import reservation, settlement
from embatch.journal.purchases import Bought, Purchase, audit_ref
from embatch.journal.quotas import Occupancy, Ruling
from embatch.journal.records import BatchRecord, NewBatch
from embatch.journal.store import Journal
from embatch.types.state import BatchEvent, BatchState, RunEvent, RunState

NOW = 1_000.0
PROCESSES = 8
BATCHES = 18
IN_FLIGHT = 5
AHEAD = 3
PRICE = 0.010
AFFORDABLE = 12
SCOPE = "fake/one-key"
_BEGUN = text(
    "SELECT count(*) FROM batches WHERE run_id = 'r1' AND (state IN ('uploading', 'uploaded', "
    "'submitting', 'submitted') OR (state = 'planned' AND lease_token IS NOT NULL))"
)
_E = BatchEvent


@pytest.fixture
def journal(journal_url: str) -> Iterator[Journal]:
    opened = Journal.open(journal_url)
    yield opened
    opened.close()


def start(journal: Journal, run_id: str = "r1", *, batches: int = BATCHES) -> None:
    journal.create_run(
        run_id=run_id,
        out="out",
        config={"max_cost_usd": PRICE * AFFORDABLE, "audit": "off"},
        space={"provider": "fake"},
        now=NOW,
    )
    token = journal.leases.claim_planning(run_id, owner="me", lease_s=60)
    assert token is not None
    new = [
        NewBatch(kind="embed", items=10, row_min=10 * n, row_max=10 * n + 9, stage="s")
        for n in range(batches)
    ]
    journal.batches.add_planned(run_id, token, batches=new, failures=[], plan={}, now=NOW)
    journal.transition_run(run_id, RunEvent.PLANNED, expected=RunState.PLANNING, now=NOW)


def purchases(batch: BatchRecord, label: str) -> list[Purchase]:
    common: dict[str, Any] = {"run_id": batch.run_id, "batch_id": batch.id, "tokens_estimated": 50}
    job = Purchase(
        ref=label, kind="batch", rows=10, tokens_bound=90, usd_bound=PRICE * 0.9, **common
    )
    audit = Purchase(
        ref=audit_ref(label), kind="audit", rows=1, tokens_bound=10, usd_bound=PRICE / 10, **common
    )
    return [job, audit]


def counting(values: Any, load: Occupancy) -> Ruling:
    most = max(int(values.get("most", 0)), load.jobs)
    return Ruling(belief={"asked": values.get("asked", 0) + 1, "most": most})


def work(
    url: str, name: str, run_ids: list[str], begin: Barrier, results: "multiprocessing.Queue[Any]"
) -> None:
    """Takes every step it can get, until many looks at all runs find none."""
    journal = Journal.open(url)
    seen: Counter[str] = Counter(most=0, steps=0, broke=0)
    idle = 0
    begin.wait(60)
    while idle < 30:
        idle += 1
        time.sleep(0.01 if idle > 1 else 0)
        for run_id in run_ids:
            time.sleep(0.005)  # others come in between: one process alone would race with nobody
            claim = journal.leases.claim_step(
                run_id,
                owner=name,
                lease_s=60,
                now=NOW,
                max_in_flight=IN_FLIGHT,
                max_ahead=AHEAD,
            )
            if claim is None:
                continue
            idle = 0
            with journal._database.read() as connection:
                seen["most"] = max(seen["most"], connection.execute(_BEGUN).scalar() or 0)
            time.sleep(0.005)
            broke = _step(journal, claim.batch, claim.token)
            seen["steps"] += 1
            seen["broke"] += broke
            journal.leases.release(
                claim.batch.id,
                claim.token,
                next_at=NOW + 3600 if broke else NOW,
                blocked_reason="budget" if broke else None,
            )
    results.put(dict(seen))
    journal.close()


def _step(journal: Journal, batch: BatchRecord, token: str) -> bool:
    def move(batch: BatchRecord, event: BatchEvent, **facts: Any) -> BatchRecord:
        return journal.batches.transition(batch, token, event, now=NOW, scope=SCOPE, **facts)

    label = batch.label or f"label {batch.run_id} {batch.number}"
    match batch.state:
        case BatchState.PLANNED:
            try:
                begun = move(
                    batch,
                    _E.UPLOAD_STARTED,
                    label=label,
                    also=[reservation(*purchases(batch, label), now=NOW)],
                )
            except BudgetExceededError:
                return True
            move(begun, _E.UPLOAD_FINISHED)
        case BatchState.UPLOADED:
            admitted = journal.quotas.changing(SCOPE, counting, now=NOW)
            asked = move(batch, _E.SUBMIT_INTENDED, also=[admitted])
            move(asked, _E.SUBMIT_CONFIRMED, remote_name="j", also=[admitted])
        case BatchState.SUBMITTED:
            move(batch, _E.RESULTS_READY)
        case BatchState.READY:
            count = journal.calibrations.counting("a model", text_bytes=100, tokens=25, now=NOW)
            paid = settlement(label, Bought(rows=10, tokens=90), now=NOW)
            move(batch, _E.COLLECTED, also=[paid, count], part_rows=10)
        case BatchState.COLLECTED:
            move(batch, _E.PUBLISHED, part=f"part-{batch.number}")
        case other:
            raise AssertionError(other)
    return False


def drive(url: str, run_ids: list[str]) -> list[dict[str, int]]:
    """Eight processes that know nothing of one another."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["embatch.journal.store"])
    results: multiprocessing.Queue[Any] = context.Queue()
    begin = context.Barrier(PROCESSES)
    workers = [
        context.Process(target=work, args=(url, f"worker {n}", run_ids, begin, results))
        for n in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=200) for _ in workers]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    return found


def test_eight_processes_keep_the_cap_and_the_bound_in_flight(
    journal: Journal, journal_url: str
) -> None:
    """Each batch is bought once, as many as the money bears, never more at once than allowed."""
    start(journal)
    found = drive(journal_url, ["r1"])
    spent, held = journal.ledger.committed("r1")
    assert spent + held <= PRICE * AFFORDABLE + 1e-9
    published = journal.batches.counts("r1").batches[BatchState.PUBLISHED]
    assert published >= AFFORDABLE
    assert journal.batches.counts("r1").written == published * 10
    assert 1 < max(seen["most"] for seen in found) <= IN_FLIGHT
    lines = journal.ledger.lines("r1")
    assert len([line for line in lines if line.kind == "batch"]) == published
    assert journal.quotas.believed(SCOPE)["asked"] == 2 * published
    assert journal.quotas.believed(SCOPE)["most"] <= IN_FLIGHT
    calibration = CalibrationTable(journal._database).find("a model")
    assert calibration is not None
    assert calibration.tokens == 25 * published
    kinds = Counter(event.kind for event in journal.events("r1", limit=10_000))
    assert kinds["published"] == kinds["upload_started"] == published
    assert sum(seen["broke"] for seen in found) >= 1
    assert len([seen for seen in found if seen["steps"]]) > 1


def test_eight_processes_on_runs_that_share_a_quota_never_wait_for_one_another_in_a_circle(
    journal: Journal, journal_url: str
) -> None:
    """Every transaction of three runs at once ends, and none is lost."""
    run_ids = ["r1", "r2", "r3"]
    for run_id in run_ids:
        start(journal, run_id, batches=4)
    drive(journal_url, run_ids)
    for run_id in run_ids:
        assert journal.batches.counts(run_id).batches == {BatchState.PUBLISHED: 4}
    assert journal.quotas.believed(SCOPE)["asked"] == 2 * 12
    assert journal.jobs.occupying(SCOPE) == (0, 0)


def _cancel(url: str, results: "multiprocessing.Queue[Any]") -> None:
    journal = Journal.open(url)
    try:
        journal.transition_run("r1", RunEvent.CANCELLED, expected=RunState.RUNNING, now=NOW)
        results.put("cancelled")
    except TransitionRefusedError:
        results.put("refused")
    journal.close()


def test_a_run_is_cancelled_once_however_many_ask(journal: Journal, journal_url: str) -> None:
    """One process cancels; the others are told that it is done."""
    start(journal)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["embatch.journal.store"])
    results: multiprocessing.Queue[Any] = context.Queue()
    workers = [context.Process(target=_cancel, args=(journal_url, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = Counter(results.get(timeout=100) for _ in workers)
    for worker in workers:
        worker.join()
    assert found == {"cancelled": 1, "refused": 3}
    assert journal.batches.counts("r1").batches == {BatchState.CANCELLED: BATCHES}
