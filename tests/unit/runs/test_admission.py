"""The gate before each create, in runs that the test steps through."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from replaying import Replay, Replays, failing

from embatch.errors import RateLimitError
from embatch.execution.threads import ThreadExecutor
from embatch.runs import admission, quota
from embatch.runs.end import cancel_run
from embatch.runs.outcomes import After, Done
from embatch.runs.parking import next_due, park, wake_parked
from embatch.runs.quota import Belief, Ceiling
from embatch.runs.start import wake_run
from embatch.runs.status import read_status
from embatch.testing.provider import FakeProvider, Job
from embatch.types.results import ResultBlock
from embatch.types.state import BatchState, JobState, RunState

NO_HINT = RateLimitError("429")


def slow(job: Job) -> None:
    """A job that does not end by itself."""
    job.state, job.has_results = JobState.PENDING, False


def end(run: Replay, number: int = 0) -> None:
    """Brings a job to its end."""
    job = list(run.provider.jobs.values())[number]
    job.state, job.has_results = JobState.COMPLETED, True


def set_ceiling(run: Replay, tokens: int, **facts: Any) -> None:
    """Makes the run believe in a ceiling."""
    belief = Belief(tokens=Ceiling(most=tokens, proven=tokens), growing=False, **facts)
    run.journal.quotas.change(
        run.provider.scope,
        lambda _, __: admission.Ruling(belief=belief.to_json()),
        now=run.clock(),
    )


def now_due(run: Replay) -> None:
    """All the steps that can be taken at this moment."""
    for _ in range(200):
        if run.step() is None:
            return
    raise AssertionError("the run finds no rest")


def states(run: Replay) -> Counter[BatchState]:
    """How many batches stand in each state."""
    return Counter(run.states())


def metered(rows: int) -> Callable[[Replay], Callable[[str], None]]:
    """A service that holds no more than so many rows of unfinished jobs."""

    def of(run: Replay) -> Callable[[str], None]:
        def check(label: str) -> None:
            waiting = [
                len(job.texts)
                for job in run.provider.jobs.values()
                if job.state is JobState.PENDING
            ]
            if sum(waiting) + len(run.provider._uploads[f"file-{label}"]) > rows:
                raise NO_HINT

        return check

    return of


def test_nothing_is_sent_past_the_ceiling_until_a_job_ends(replay: Replays) -> None:
    """The second batch is uploaded, waits without asking the service, and is woken by the end."""
    run = replay(FakeProvider(on_job=slow))
    set_ceiling(run, 32)
    now_due(run)
    assert states(run) == {BatchState.SUBMITTED: 1, BatchState.UPLOADED: 1}
    (waiting,) = run.journal.batches.walk(run.context.run_id, states=[BatchState.UPLOADED])
    assert (waiting.blocked_reason, waiting.attempt) == ("quota", 1)
    assert waiting.next_at == run.clock() + quota.ROOM_LOOK_S
    end(run)
    run.clock.advance(quota.ROOM_LOOK_S / 2)
    now_due(run)
    assert len(run.provider.submitted) == 2
    end(run, -1)
    run.work()
    run.assert_right()


def test_a_refused_create_costs_no_attempt_and_is_remembered(replay: Replays) -> None:
    """The batch goes on under the same label when a job has ended."""
    run = replay(FakeProvider(on_job=slow))
    run.provider.before_submit = metered(8)(run)
    now_due(run)
    belief = admission.believed(run.context)
    assert (belief.accepted, belief.refused) == (1, 1)
    assert belief.tokens.most == 32
    end(run)
    run.clock.advance(quota.ROOM_LOOK_S)
    now_due(run)
    end(run, -1)
    run.work()
    run.assert_right()
    assert [label.split(":")[4] for label in run.provider.submitted] == ["1", "1"]
    assert read_status(run.journal, run.context.run_id, now=run.clock()).quota.refused >= 1


def test_few_batches_are_uploaded_ahead(replay: Replays) -> None:
    """Whatever the provider would hold: an input that waits for days is let go."""
    run = replay(FakeProvider(on_job=slow), [f"text {n}" for n in range(80)])
    set_ceiling(run, 32)
    for _ in range(60):
        claim = run.journal.leases.claim_step(
            run.context.run_id,
            owner="test",
            lease_s=60,
            now=run.clock(),
            max_in_flight=100,
            max_ahead=admission.begin_ahead(run.context),
        )
        if claim is None:
            break
        outcome = admission_step(run, claim)
        wait = outcome.seconds if isinstance(outcome, After) else 0.0
        run.journal.leases.release(claim.batch.id, claim.token, next_at=run.clock() + wait)
    assert states(run) == {
        BatchState.SUBMITTED: 1,
        BatchState.UPLOADED: admission.AHEAD,
        BatchState.PLANNED: 10 - 1 - admission.AHEAD,
    }


def admission_step(run: Replay, claim: Any) -> Any:
    """One step under a claim of the test's own."""
    from embatch.runs.advance import advance

    return advance(claim, run.context)


@pytest.fixture
def parked(replay: Replays) -> Replay:
    """A run with one job under way, parked for the day."""
    run = replay(FakeProvider(on_job=slow))
    day = RateLimitError("429", retry_after_s=43.0, per_day=True)
    run.provider.before_submit = lambda label: (
        failing(99, day)(label) if run.provider.submitted else None
    )
    now_due(run)
    assert admission.begin_ahead(run.context) == 0
    assert park(run.context)
    return run


def test_a_parked_run_says_until_when(parked: Replay) -> None:
    """Its state, the time it goes on, and the sentence."""
    record = parked.context.run()
    assert record.state is RunState.PARKED
    assert record.resume_at == quota.day_turns(parked.clock(), 43.0)
    status = read_status(parked.journal, record.id, now=parked.clock(), works_here=True)
    assert "waiting for quota until" in str(status.waiting)
    assert "goes on by itself" in str(status.waiting)
    assert status.quota.waits_for == "day"
    assert not park(parked.context)


def test_the_jobs_of_a_parked_run_are_still_read(parked: Replay) -> None:
    """What is under way is polled and written; nothing is sent."""
    end(parked)
    parked.clock.advance(700.0)
    run_id = parked.context.run_id
    while claim := parked.journal.leases.claim_step(
        run_id, owner="test", lease_s=60, now=parked.clock(), max_in_flight=9, parked=True
    ):
        outcome = admission_step(parked, claim)
        parked.journal.leases.release(claim.batch.id, claim.token, next_at=parked.clock())
        if isinstance(outcome, Done):
            break
    assert states(parked) == {BatchState.PUBLISHED: 1, BatchState.UPLOADED: 1}
    assert parked.claim() is None
    assert next_due(parked.journal, parked.context.run()) == parked.context.run().resume_at


def test_a_parked_run_goes_on_by_itself(parked: Replay) -> None:
    """At its time, and not before."""
    record = parked.context.run()
    assert not wake_parked(parked.journal, record, now=record.resume_at - 1)
    parked.clock.advance(record.resume_at - parked.clock())
    assert wake_parked(parked.journal, record, now=parked.clock())
    assert parked.context.run().state is RunState.RUNNING
    parked.provider.before_submit = lambda _: None
    parked.provider.on_job = lambda _: None
    end(parked)
    parked.work()
    parked.assert_right()


def test_a_person_who_resumes_is_tried_at_once(parked: Replay) -> None:
    """Whatever wait the quota of the day asks for."""
    parked.provider.before_submit = lambda _: None
    parked.provider.on_job = lambda _: None
    end(parked)
    began = parked.clock()
    wake_run(parked.journal, parked.context.run_id, now=began)
    record = parked.context.run()
    assert (record.state, record.resume_at) == (RunState.RUNNING, None)
    now_due(parked)
    assert len(parked.provider.submitted) == 2
    parked.work()
    parked.assert_right()


def test_a_run_with_a_deadline_is_not_parked(replay: Replays) -> None:
    """It looks again within minutes: what is left may have to be sent without batches."""
    run = replay(FakeProvider(on_job=slow), deadline=2_000_000.0)
    day = RateLimitError("429", per_day=True)
    run.provider.before_submit = lambda label: (
        failing(99, day)(label) if run.provider.submitted else None
    )
    now_due(run)
    assert not park(run.context)
    assert admission.begin_ahead(run.context) == admission.AHEAD
    (waiting,) = run.journal.batches.walk(run.context.run_id, states=[BatchState.UPLOADED])
    assert waiting.next_at <= run.clock() + 600.0


def test_an_executor_parks_a_run_and_wakes_it(replay: Replays) -> None:
    """Of itself: it polls on, and sends the rest at the time it said."""
    run = replay(FakeProvider(), [f"text {n}" for n in range(24)])
    day = RateLimitError("429", per_day=True)
    spent: list[float] = []

    def check(_: str) -> None:
        if len(run.provider.submitted) == 1 and run.clock() < quota.day_turns(began, None):
            spent.append(run.clock())
            raise day

    def over() -> bool:
        record = run.context.run()
        run.clock.advance(1.0)
        if record.state is RunState.PARKED and states(run)[BatchState.PUBLISHED] == 1:
            run.clock.advance(float(record.resume_at) - run.clock())
        return record.state is RunState.COMPLETED

    began = run.clock()
    run.provider.before_submit = check
    executor = ThreadExecutor(run.journal, lambda _: run.context, clock=run.clock, threads=1)
    executor.work([run.context.run_id], until=over, poll_s=0.02, timeout_s=60)
    assert len(spent) == 1
    kinds = [event.kind for event in run.journal.events(run.context.run_id)]
    assert (kinds.count("parked"), kinds.count("resumed"), kinds.count("completed")) == (1, 1, 1)
    run.assert_right()


def test_a_batch_that_is_refused_even_alone_goes_on_in_halves(replay: Replays) -> None:
    """After some tries over minutes; no attempt is lost, and the next ones are cut unasked."""
    run = replay(FakeProvider(), [f"text {n}" for n in range(16)])
    tries: list[int] = []

    def refuse(label: str) -> None:
        rows = len(run.provider._uploads[f"file-{label}"])
        tries.append(rows)
        if rows > 2:
            raise NO_HINT

    run.provider.before_submit = refuse
    began = run.clock()
    run.work()
    run.assert_right()
    assert run.clock() - began > quota.ALONE_S
    assert states(run) == {BatchState.PUBLISHED: 8, BatchState.SPLIT: 6}
    assert {label.split(":")[4] for label in run.provider.submitted} == {"1"}
    assert 8 <= tries.count(8) + tries.count(4) <= 2 * 8
    assert run.provider._uploads == {}


def test_jobs_of_a_cancelled_run_count_until_proven_otherwise(replay: Replays) -> None:
    """They hold their share; a create that was once refused for its size sets them free."""
    run = replay(FakeProvider(on_job=slow))
    set_ceiling(run, 100, refused_total=60)
    now_due(run)
    scope, run_id = run.provider.scope, run.context.run_id
    cancel_run(run.journal, run_id, lambda: run.provider, now=run.clock())
    load = run.journal.quotas.occupancy(scope, now=run.clock())
    assert (load.tokens, load.cancelled_tokens, load.live_jobs) == (40, 40, 0)
    later = run.clock() + 97 * 3600.0
    assert run.journal.quotas.occupancy(scope, now=later).tokens == 0

    def prove(values: Any, load: Any) -> admission.Ruling:
        grown = replace(load, tokens=load.tokens + 40, jobs=load.jobs + 1, live_jobs=1)
        belief, free = quota.accepted(Belief.from_json(values), grown, label="x", now=run.clock())
        return admission.Ruling(belief=belief.to_json(), cancelled_are_free=free)

    run.journal.quotas.change(scope, prove, now=run.clock())
    assert run.journal.quotas.occupancy(scope, now=run.clock()).tokens == 0


def test_estimates_follow_what_the_service_counts(replay: Replays) -> None:
    """The first batch is counted at a token a byte: the ones after it are believed to be so."""

    def counted(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        sizes = np.array([len(text) for text in job.texts], dtype=np.int32)
        return [replace(block, tokens=sizes) for block in blocks]

    texts = [f"{n:05d} " + "x" * 1018 for n in range(16)]
    one_by_one = FakeProvider(on_results=counted).limited(max_in_flight_batches=1)
    run = replay(one_by_one, texts)
    before = [batch.tokens_estimated for batch in run.journal.batches.walk(run.context.run_id)]
    assert before == [8 * 258] * 2
    run.work()
    run.assert_right()
    after = [batch.tokens_estimated for batch in run.journal.batches.walk(run.context.run_id)]
    assert after == [8 * 258, 8 * 1024]
