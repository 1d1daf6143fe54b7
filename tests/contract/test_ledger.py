"""The ledger's contract: every purchase on the books before it is made, and no cap ever passed."""

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embatch.errors import BudgetExceededError
from embatch.journal.ledger import reservation, roughly_committed, settlement
from embatch.journal.purchases import Bought, Purchase, audit_ref, call_ref
from embatch.journal.records import BatchRecord, NewBatch
from embatch.journal.store import Journal
from embatch.types.state import BatchEvent, RunEvent, RunState

NOW = 1_000.0

TO_A_JOB = (BatchEvent.UPLOAD_FINISHED, BatchEvent.SUBMIT_INTENDED)


@pytest.fixture
def url(journal_url: str) -> str:
    return journal_url


@pytest.fixture
def journal(url: str) -> Iterator[Journal]:
    opened = Journal.open(url)
    yield opened
    opened.close()


def start(
    journal: Journal, cap: float | None, *, batches: int = 1
) -> list[tuple[BatchRecord, str]]:
    """A run under a cap, with batches that are leased."""
    journal.create_run(
        run_id="r1", out="out", config={"max_cost_usd": cap}, space={"provider": "fake"}, now=NOW
    )
    token = journal.leases.claim_planning("r1", owner="me", lease_s=60)
    assert token is not None
    new = NewBatch(kind="embed", items=10, row_min=0, row_max=9, stage="s", tokens_bound=400)
    journal.batches.add_planned("r1", token, batches=[new] * batches, failures=[], plan={}, now=NOW)
    found = []
    for _ in range(batches):
        claim = journal.leases.claim_step("r1", owner="me", lease_s=60, now=NOW, max_in_flight=99)
        assert claim is not None
        found.append((claim.batch, claim.token))
    return found


def purchase(ref: str, usd: float | None, **values: object) -> Purchase:
    asked = {"kind": "batch", "rows": 10, "tokens_bound": 400, "tokens_estimated": 100, **values}
    return Purchase(ref=ref, run_id="r1", usd_bound=usd, **asked)  # type: ignore[arg-type]


def upload(journal: Journal, batch: BatchRecord, token: str, usd: float) -> BatchRecord:
    """Begins a batch's upload, its job and its audit reserved."""
    label = f"label {batch.number}"
    job = purchase(label, usd, batch_id=batch.id)
    audit = purchase(audit_ref(label), usd / 10, batch_id=batch.id, kind="audit", rows=2)
    return journal.batches.transition(
        batch,
        token,
        BatchEvent.UPLOAD_STARTED,
        now=NOW,
        scope="fake",
        label=label,
        attempt=1,
        also=[reservation(job, audit, now=NOW)],
    )


def moved(journal: Journal, batch: BatchRecord, token: str, *events: BatchEvent) -> BatchRecord:
    for event in events:
        batch = journal.batches.transition(batch, token, event, now=NOW, scope="fake")
    return batch


def test_a_reservation_counts_until_it_is_settled(journal: Journal) -> None:
    """At its bound while it is open, at what was billed afterwards, at the price it was made at."""
    start(journal, 1.0)
    journal.ledger.reserve(purchase("a", 0.4), now=NOW)
    assert journal.ledger.committed("r1") == (0.0, pytest.approx(0.4))
    journal.ledger.settle("a", Bought(rows=10, tokens=100), now=NOW)
    assert journal.ledger.committed("r1") == (pytest.approx(0.1), 0.0)
    line = journal.ledger.find("a")
    assert line is not None
    assert (line.state, line.rows, line.tokens, line.estimated) == ("settled", 10, 100, False)
    journal.ledger.settle("a", Bought(rows=10, tokens=300), now=NOW)
    assert journal.ledger.committed("r1")[0] == pytest.approx(0.1)


def test_an_estimate_gives_way_to_a_count(journal: Journal) -> None:
    """What was settled by guess is settled once more when the service tells."""
    start(journal, 1.0)
    journal.ledger.reserve(purchase("a", 0.4), now=NOW)
    journal.ledger.settle("a", Bought(rows=10, tokens=100, estimated=True), now=NOW)
    assert journal.ledger.sums("r1")["batch"].usd_estimated == pytest.approx(0.1)
    journal.ledger.settle("a", Bought(rows=10, tokens=80), now=NOW)
    sums = journal.ledger.sums("r1")["batch"]
    assert (sums.usd, sums.usd_estimated) == (pytest.approx(0.08), 0.0)


def test_what_the_service_did_not_count_is_held_at_its_most(journal: Journal) -> None:
    """Settled by the estimate and marked so, and the cap bears what the bill may say instead."""
    start(journal, 0.5)
    journal.ledger.reserve(purchase("a", 0.4), now=NOW)
    journal.ledger.settle("a", Bought(rows=10, tokens=100, estimated=True), now=NOW)
    assert journal.ledger.committed("r1") == (pytest.approx(0.1), pytest.approx(0.3))
    with pytest.raises(BudgetExceededError, match=r"\$0.100 is spent, \$0.300 may come"):
        journal.ledger.reserve(purchase("b", 0.11), now=NOW)
    guessed = Bought(rows=10, tokens=100, estimated=True, most=120)  # of all but a row or two
    journal.ledger.settle("a", guessed, now=NOW)
    assert journal.ledger.committed("r1") == (pytest.approx(0.1), pytest.approx(0.02))
    journal.ledger.settle("a", Bought(rows=10, tokens=110), now=NOW)
    assert journal.ledger.committed("r1") == (pytest.approx(0.11), 0.0)


def test_a_job_of_no_use_is_held_at_its_most(journal: Journal) -> None:
    """Its results never came, so nobody counted it."""
    ((batch, token),) = start(journal, 1.0)
    to_results = [*TO_A_JOB, BatchEvent.SUBMIT_CONFIRMED, BatchEvent.RESULTS_READY]
    batch = moved(journal, upload(journal, batch, token, 0.4), token, *to_results)
    moved(journal, batch, token, BatchEvent.MISALIGNED)
    assert journal.ledger.committed("r1") == (pytest.approx(0.1), pytest.approx(0.3))


def test_a_job_held_absent_is_on_the_cap_while_it_may_turn_up(journal: Journal) -> None:
    """Its twin counts without asking the cap, so the cap keeps room for it: until it is known to
    cost nothing, or has been counted."""
    (first, second) = start(journal, 0.9, batches=2)
    batch = moved(journal, upload(journal, *first, 0.4), first[1], *TO_A_JOB)
    moved(journal, batch, first[1], BatchEvent.HELD_ABSENT)
    assert journal.ledger.committed("r1") == (0.0, pytest.approx(0.4))
    with pytest.raises(BudgetExceededError):
        upload(journal, *second, 0.5)
    upload(journal, *second, 0.4)
    (job,) = journal.jobs.watched("r1")
    assert journal.jobs.turned_up(job, "jobs/1", "stray", now=NOW)
    assert journal.ledger.committed("r1") == (0.0, pytest.approx(0.84))
    journal.ledger.settle_beside("label 0", 10, now=NOW)
    journal.jobs.mark("label 0", "ended", now=NOW)
    assert sum(journal.ledger.committed("r1")) == pytest.approx(0.84)
    journal.ledger.settle_beside("label 0", 0, now=NOW)
    assert journal.ledger.committed("r1") == (0.0, pytest.approx(0.44))


def test_what_does_not_fit_is_refused_and_undoes_the_change(journal: Journal) -> None:
    """The batch stays where it was, no line is left, and the message says what there is."""
    (first, second) = start(journal, 1.0, batches=2)
    upload(journal, *first, 0.7)
    with pytest.raises(BudgetExceededError, match=r"the cap is \$1.00: \$0.00 is spent, \$0.770"):
        upload(journal, *second, 0.7)
    assert journal.batches.get(second[0].id).state == "planned"
    assert journal.ledger.find("label 1") is None
    assert journal.ledger.find(audit_ref("label 1")) is None


def test_a_refusal_says_whether_waiting_helps(journal: Journal) -> None:
    """While another batch is under way its end may free money; without one nothing will."""
    (first, second) = start(journal, 1.0, batches=2)
    begun = upload(journal, *first, 0.7)
    with pytest.raises(BudgetExceededError) as waiting:
        upload(journal, *second, 0.7)
    assert waiting.value.may_free
    moved(journal, begun, first[1], BatchEvent.UPLOAD_REFUSED, BatchEvent.GAVE_WAY)
    upload(journal, *second, 0.7)
    journal.update_run("r1", now=NOW, config={"max_cost_usd": 0.5})
    with pytest.raises(BudgetExceededError) as final:
        journal.ledger.reserve(purchase("x", 0.1, batch_id=second[0].id), now=NOW)
    assert not final.value.may_free


def test_a_batch_that_found_money_counts_as_moving(journal: Journal) -> None:
    """Though it waited for money before: its end may free some."""
    (first, second) = start(journal, 1.0, batches=2)
    journal.leases.release(first[0].id, first[1], next_at=NOW, blocked_reason="budget")
    claim = journal.leases.claim_step("r1", owner="me", lease_s=60, now=NOW, max_in_flight=9)
    assert claim is not None
    upload(journal, claim.batch, claim.token, 0.7)
    assert journal.ledger.may_free("r1")
    with pytest.raises(BudgetExceededError) as waiting:
        upload(journal, *second, 0.7)
    assert waiting.value.may_free


def test_the_cap_is_the_journals(journal: Journal) -> None:
    """A cap that another process raised or took away holds at once."""
    start(journal, 0.1)
    with pytest.raises(BudgetExceededError):
        journal.ledger.reserve(purchase("a", 0.4), now=NOW)
    journal.update_run("r1", now=NOW, config={"max_cost_usd": 0.4})
    journal.ledger.reserve(purchase("a", 0.4), now=NOW)
    with pytest.raises(BudgetExceededError):
        journal.ledger.reserve(purchase("b", 0.01), now=NOW)
    journal.update_run("r1", now=NOW, config={})
    journal.ledger.reserve(purchase("b", 9.0), now=NOW)


def test_a_price_that_nobody_knows_fits_no_cap(journal: Journal) -> None:
    """Without a cap it is bought, and its rows and tokens are counted."""
    start(journal, 5.0)
    with pytest.raises(BudgetExceededError, match="price is not known"):
        journal.ledger.reserve(purchase("a", None), now=NOW)
    journal.update_run("r1", now=NOW, config={"max_cost_usd": None})
    journal.ledger.reserve(purchase("a", None), now=NOW)
    journal.ledger.settle("a", Bought(rows=10, tokens=90), now=NOW)
    sums = journal.ledger.sums("r1")["batch"]
    assert (sums.rows, sums.tokens, sums.usd, sums.unpriced) == (10, 90, 0.0, 1)


@pytest.mark.parametrize(
    ("events", "state", "usd"),
    [
        ([BatchEvent.UPLOAD_REFUSED], "void", None),
        ([BatchEvent.GAVE_WAY], "void", None),
        ([BatchEvent.SENT_DIRECTLY], "void", None),
        ([BatchEvent.UPLOAD_FINISHED, BatchEvent.INPUT_LOST], "void", None),
        (
            [BatchEvent.UPLOAD_FINISHED, BatchEvent.SUBMIT_INTENDED, BatchEvent.SUBMIT_REFUSED],
            "void",
            None,
        ),
        (
            [BatchEvent.UPLOAD_FINISHED, BatchEvent.SUBMIT_INTENDED, BatchEvent.HELD_ABSENT],
            "void",
            None,
        ),
        (
            [BatchEvent.UPLOAD_FINISHED, BatchEvent.SUBMIT_INTENDED, BatchEvent.SUBMIT_DEFERRED],
            "reserved",
            None,
        ),
        (["submitted"], "reserved", None),
        (["submitted", BatchEvent.JOB_FAILED], "settled", 0.0),
        (["submitted", BatchEvent.JOB_EXPIRED], "settled", 0.0),
        (["submitted", BatchEvent.JOB_CANCELLED], "settled", 0.0),
        (["submitted", BatchEvent.RESULTS_READY], "reserved", None),
        (["submitted", BatchEvent.RESULTS_READY, BatchEvent.MISALIGNED], "settled", 0.1),
        (["submitted", BatchEvent.RESULTS_READY, BatchEvent.JOB_FAILED], "settled", 0.1),
    ],
)
def test_a_job_is_paid_for_as_it_went(
    journal: Journal, events: list[BatchEvent | str], state: str, usd: float | None
) -> None:
    """Void when it never was, nothing when it gave nothing, the estimate when it was of no use;
    and the audit that was reserved with it is open no longer than the job."""
    ((batch, token),) = start(journal, 1.0)
    batch = upload(journal, batch, token, 0.4)
    submitted = (
        BatchEvent.UPLOAD_FINISHED,
        BatchEvent.SUBMIT_INTENDED,
        BatchEvent.SUBMIT_CONFIRMED,
    )
    for event in events:
        steps = submitted if event == "submitted" else (BatchEvent(event),)
        batch = moved(journal, batch, token, *steps)
    line, audit = journal.ledger.find("label 0"), journal.ledger.find(audit_ref("label 0"))
    assert line is not None
    assert audit is not None
    assert (line.state, line.usd) == (state, None if usd is None else pytest.approx(usd))
    assert audit.state == ("reserved" if state == "reserved" else "void")


def test_results_settle_their_job_with_the_part(journal: Journal) -> None:
    """A count that comes with the change of state goes before any estimate."""
    ((batch, token),) = start(journal, 1.0)
    batch = moved(
        journal,
        upload(journal, batch, token, 0.4),
        token,
        BatchEvent.UPLOAD_FINISHED,
        BatchEvent.SUBMIT_INTENDED,
        BatchEvent.SUBMIT_CONFIRMED,
        BatchEvent.RESULTS_READY,
    )
    journal.batches.transition(
        batch,
        token,
        BatchEvent.COLLECTED,
        now=NOW,
        scope="fake",
        also=[settlement("label 0", Bought(rows=9, rows_failed=1, tokens=200), now=NOW)],
    )
    sums = journal.ledger.sums("r1")["batch"]
    assert (sums.rows, sums.rows_failed, sums.tokens) == (9, 1, 200)
    assert (sums.usd, sums.usd_open) == (pytest.approx(0.2), 0.0)


def test_a_cancelled_run_frees_what_was_not_sent(journal: Journal) -> None:
    """Reservations of jobs that were never asked for are void."""
    ((batch, token),) = start(journal, 1.0)
    upload(journal, batch, token, 0.4)
    journal.transition_run("r1", RunEvent.CANCELLED, expected=RunState.PLANNING, now=NOW)
    assert journal.ledger.committed("r1") == (0.0, 0.0)


def test_an_open_purchase_may_be_held_for_less(journal: Journal) -> None:
    """Once its results tell what it cost; the price stays, and it is never held for more."""
    start(journal, 1.0)
    journal.ledger.reserve(purchase("a", 0.4), now=NOW)
    journal.ledger.tighten("a", 100, now=NOW)
    journal.ledger.tighten("a", 300, now=NOW)
    assert journal.ledger.committed("r1") == (0.0, pytest.approx(0.1))
    journal.ledger.settle("a", Bought(rows=10, tokens=100), now=NOW)
    assert journal.ledger.committed("r1") == (pytest.approx(0.1), 0.0)


def test_a_late_twin_is_billed_once_more(journal: Journal) -> None:
    """What was held absent and had run counts, with all its rows bought again."""
    ((batch, token),) = start(journal, 1.0)
    batch = upload(journal, batch, token, 0.4)
    moved(
        journal,
        batch,
        token,
        BatchEvent.UPLOAD_FINISHED,
        BatchEvent.SUBMIT_INTENDED,
        BatchEvent.HELD_ABSENT,
    )
    journal.ledger.settle_beside("label 0", 10, now=NOW)
    sums = journal.ledger.sums("r1")["batch"]
    assert (sums.rows_again, sums.usd) == (10, pytest.approx(0.1))
    assert journal.ledger.again("r1") == {"late_twin": 10}


def test_the_end_of_a_purchase_wakes_who_waits_for_money(journal: Journal) -> None:
    """A batch that waits is due at once when a line is settled for less."""
    (first, second) = start(journal, 1.0, batches=2)
    upload(journal, *first, 0.7)
    journal.leases.release(
        second[0].id, second[1], next_at=NOW + 99, blocked_reason="budget", blocked_detail="d"
    )
    assert journal.batches.get(second[0].id).next_at == NOW + 99
    journal.ledger.settle("label 0", Bought(rows=10, tokens=10), now=NOW + 1)
    assert journal.batches.get(second[0].id).next_at == NOW + 1


def test_new_batches_do_not_overtake_one_that_waits_for_money(journal: Journal) -> None:
    """The next would find none either; it is begun when the first one's time has come."""
    (first, second) = start(journal, 1.0, batches=2)
    for batch, token in (first, second):
        journal.leases.release(batch.id, token, next_at=NOW)
    claim = journal.leases.claim_step("r1", owner="me", lease_s=60, now=NOW, max_in_flight=9)
    assert claim is not None
    journal.leases.release(claim.batch.id, claim.token, next_at=NOW + 50, blocked_reason="budget")
    assert journal.leases.claim_step("r1", owner="b", lease_s=60, now=NOW, max_in_flight=9) is None
    later = journal.leases.claim_step("r1", owner="b", lease_s=60, now=NOW + 50, max_in_flight=9)
    assert later is not None


def test_a_call_that_a_killed_process_left_open_is_paid_at_its_bound(journal: Journal) -> None:
    """It may have been billed: the next call of the batch settles it, and counts rows as bought
    again where they are rows of the output."""
    ((batch, _),) = start(journal, 1.0)
    for kind in ("direct", "audit"):
        asked = {"batch_id": batch.id, "kind": kind, "tokens_bound": 400}
        journal.ledger.begin_call(purchase(call_ref(kind, "1"), 0.1, **asked), now=NOW)  # type: ignore[arg-type]
        journal.ledger.begin_call(purchase(call_ref(kind, "2"), 0.1, **asked), now=NOW)  # type: ignore[arg-type]
        journal.ledger.settle(call_ref(kind, "2"), Bought(rows=10, tokens=100), now=NOW)  # type: ignore[arg-type]
        sums = journal.ledger.sums("r1")[kind]  # type: ignore[index]
        assert (sums.usd, sums.usd_open) == (pytest.approx(0.125), 0.0)
    assert journal.ledger.again("r1") == {"lost_call": 10}


def test_an_audit_takes_the_place_of_its_reservation(journal: Journal) -> None:
    """Money that was kept for it is there even when the cap has no more."""
    ((batch, token),) = start(journal, 0.44)
    upload(journal, batch, token, 0.4)
    call = purchase(
        call_ref("audit", "1"), 0.03, batch_id=batch.id, kind="audit", replaces=audit_ref("label 0")
    )
    journal.ledger.begin_call(call, now=NOW)
    assert journal.ledger.committed("r1")[1] == pytest.approx(0.43)


def test_an_audit_of_several_calls_draws_on_one_reservation(journal: Journal) -> None:
    """Each call takes its part; what is left stays open until the job is done with."""
    ((batch, token),) = start(journal, 0.44)
    batch = upload(journal, batch, token, 0.4)
    for number, left in (("1", 300), ("2", 200)):
        part: dict[str, object] = {"batch_id": batch.id, "kind": "audit", "tokens_bound": 100}
        part["replaces"] = audit_ref("label 0")
        journal.ledger.begin_call(purchase(call_ref("audit", number), 0.01, **part), now=NOW)
        journal.ledger.settle(call_ref("audit", number), Bought(rows=2, tokens=100), now=NOW)
        line = journal.ledger.find(audit_ref("label 0"))
        assert line is not None
        assert (line.tokens_bound, line.usd_bound) == (left, pytest.approx(left / 400 * 0.04))
        assert sum(journal.ledger.committed("r1")) == pytest.approx(0.44)
    moved(journal, batch, token, BatchEvent.UPLOAD_REFUSED)
    assert journal.ledger.committed("r1") == (pytest.approx(0.02), 0.0)


def running_sum(journal: Journal) -> float:
    """What reservations are held against first."""
    with journal._database.read() as connection:
        return roughly_committed(connection, "r1")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cap=st.floats(0.0, 2.0),
    moves=st.lists(
        st.tuples(
            st.sampled_from(["reserve", "settle", "void", "call"]),
            st.integers(0, 5),
            st.floats(0.001, 0.9),
            st.integers(0, 400),
        ),
        max_size=25,
    ),
)
def test_spent_and_open_never_pass_the_cap(
    cap: float,
    moves: list[tuple[str, int, float, int]],
    journal: Journal,
) -> None:
    """Whatever is bought in whatever order, and however it ends."""
    journal.delete_run("r1")
    ((batch, _),) = start(journal, cap)
    open_refs: set[str] = set()
    for number, (what, which, usd, tokens) in enumerate(moves):
        ref = f"ref {which}"
        if what == "reserve" and ref not in open_refs:
            ref = f"ref {which} {number}"
        try:
            if what == "reserve":
                journal.ledger.reserve(purchase(ref, usd), now=NOW)
                open_refs.add(ref)
            elif what == "call":
                call = purchase(call_ref("direct", str(number)), usd, batch_id=batch.id)
                journal.ledger.begin_call(call, now=NOW)
            elif what == "settle":
                for one in sorted(open_refs)[:1]:
                    journal.ledger.settle(one, Bought(rows=1, tokens=tokens), now=NOW)
            else:
                for one in sorted(open_refs)[-1:]:
                    journal.ledger.void(one, now=NOW)
        except BudgetExceededError:
            pass
        assert sum(journal.ledger.committed("r1")) <= cap + 1e-9
        assert running_sum(journal) == pytest.approx(sum(journal.ledger.committed("r1")))


def _buy(url: str, name: str, times: int, begin: "threading.Barrier | None" = None) -> None:
    journal = Journal.open(url)
    if begin is not None:
        begin.wait()
    for number in range(times):
        ref = f"{name} {number}"
        try:
            journal.ledger.reserve(purchase(ref, 0.01), now=NOW)
        except BudgetExceededError:
            break
        if number % 3 == 0:
            journal.ledger.settle(ref, Bought(rows=10, tokens=100 + number % 300), now=NOW)
        elif number % 7 == 0:
            journal.ledger.void(ref, now=NOW)
    journal.close()


def test_threads_buy_no_more_than_the_cap_together(journal: Journal, url: str) -> None:
    """Four buyers at once on one run, each through a connection of its own."""
    start(journal, 0.5)
    begin = threading.Barrier(4)
    buyers = [threading.Thread(target=_buy, args=(url, f"buyer {n}", 60, begin)) for n in range(4)]
    for buyer in buyers:
        buyer.start()
    for buyer in buyers:
        buyer.join()
    spent, held = journal.ledger.committed("r1")
    assert 0.45 < spent + held <= 0.5


def test_processes_buy_no_more_than_the_cap_together(journal: Journal, url: str) -> None:
    """Two processes that know nothing of one another."""
    start(journal, 0.5)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["embatch.journal.store"])
    buyers = [context.Process(target=_buy, args=(url, f"buyer {n}", 100)) for n in range(2)]
    for buyer in buyers:
        buyer.start()
    for buyer in buyers:
        buyer.join(60)
        assert buyer.exitcode == 0
    spent, held = journal.ledger.committed("r1")
    assert 0.45 < spent + held <= 0.5
