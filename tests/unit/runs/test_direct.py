"""A deadline: what batches will not bring by then is embedded at once, each text once."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from replaying import Replay, Replays, bought_twice, failing

from embatch.errors import (
    AlignmentError,
    InvalidRequestError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.execution.threads import ThreadExecutor
from embatch.runs.direct import is_late
from embatch.runs.outcomes import After
from embatch.runs.status import read_status
from embatch.testing.clock import FakeClock
from embatch.testing.provider import FakeProvider, Job
from embatch.types.embedding import RowError, Space
from embatch.types.results import ResultBlock
from embatch.types.state import BatchState, JobState, RunState

NOW = FakeClock().now
MANY = [f"text {n}" for n in range(250)]


def counting(provider: FakeProvider) -> Counter[str]:
    """How often each text was embedded at once, refused calls left out."""
    seen: Counter[str] = Counter()
    before = provider.before_embed

    def count(texts: list[str]) -> None:
        before(texts)
        seen.update(texts)

    provider.before_embed = count
    return seen


def late(replay: Replays, provider: FakeProvider, texts: list[str]) -> Replay:
    """A run that only interactive calls can bring in time, in one batch."""
    return replay(provider.limited(max_batch_items=1000), texts, deadline=NOW + 0.1)


def pending(job: Job) -> None:
    job.state, job.has_results = JobState.PENDING, False


def test_what_is_late_goes_through_the_interactive_api(replay: Replays) -> None:
    """No batch is made, each text is bought once, and the ledger has it as direct."""
    provider = FakeProvider()
    seen = counting(provider)
    run = late(replay, provider, MANY)
    run.work()
    run.assert_right()
    assert provider.submitted == []
    assert set(seen.values()) == {1}
    sums = run.journal.ledger.sums(run.context.run_id)
    assert {kind: one.rows for kind, one in sums.items()} == {"direct": 250}
    assert not list(run.context.paths.work.glob("stage/direct-*"))


@pytest.mark.parametrize(
    "error", [ProviderUnavailableError("503"), RateLimitError("429", retry_after_s=5.0)]
)
def test_a_call_that_fails_costs_no_other_call(replay: Replays, error: Exception) -> None:
    """What earlier calls brought is kept on disk: the step goes on behind it."""
    calls = iter([None, error, None, error])

    def fail(_: list[str]) -> None:
        found = next(calls, None)
        if found is not None:
            raise found

    provider = FakeProvider(before_embed=fail)
    seen = counting(provider)
    run = late(replay, provider, MANY)
    outcomes = run.work()
    run.assert_right()
    assert sum(isinstance(outcome, After) for outcome in outcomes) == 2
    assert set(seen.values()) == {1}


def test_a_text_that_is_refused_fails_alone(replay: Replays) -> None:
    """The call is tried in halves until it stands alone."""

    def refuse(texts: list[str]) -> None:
        if "text 77" in texts:
            raise InvalidRequestError("400: a text is at fault")

    run = late(replay, FakeProvider(before_embed=refuse), MANY)
    run.work()
    run.assert_right(failed={77})
    (failure,) = run.journal.failures(run.context.run_id)
    assert failure.code == "refused"


class Killed(BaseException):
    """Stands for the end of a process."""


def dying(run: Replay, place: str) -> None:
    """Steps until the process ends at a checkpoint; another one takes the run up."""
    living = run.context

    def die(name: str) -> None:
        if name == place:
            raise Killed

    run.context = replace(living, checkpoint=die)
    with pytest.raises(Killed):
        run.work()
    run.context = living
    run.journal.leases.release_dead(lambda _: True)


@pytest.fixture
def calls() -> Counter[str]:
    """How often each text was in a call that the service may have billed."""
    return Counter()


def paid(calls: Counter[str], errors: Iterator[Exception | None]) -> FakeProvider:
    """A provider whose calls are counted before they fail so, one after another."""

    def fail(texts: list[str]) -> None:
        calls.update(texts)
        error = next(errors, None)
        if error is not None:
            raise error

    return FakeProvider(before_embed=fail)


def extra(calls: Counter[str]) -> int:
    return sum(calls.values()) - len(calls)


def test_a_few_unsound_answers_cost_no_row(replay: Replays, calls: Counter[str]) -> None:
    """They are asked for again, and every row that was bought more than once is on the books."""
    errors = iter([None, AlignmentError("99 vectors for 100 texts"), AlignmentError("NaN")])
    run = late(replay, paid(calls, errors), MANY)
    run.work()
    run.assert_right()
    assert bought_twice(run) == {"lost_call": extra(calls)} == {"lost_call": 200}


def test_a_text_that_gets_no_sound_vector_fails_alone(replay: Replays, calls: Counter[str]) -> None:
    """It stands alone after halving, is tried again later, and then is a failed row."""

    def spoil(texts: list[str]) -> None:
        calls.update(texts)
        if "text 77" in texts:
            raise AlignmentError("vector 77 is missing")

    run = late(replay, FakeProvider(before_embed=spoil), MANY)
    run.work()
    run.assert_right(failed={77})
    (failure,) = run.journal.failures(run.context.run_id)
    assert (failure.code, failure.attempts) == ("no_vector", 5)
    assert sum(bought_twice(run).values()) == extra(calls)


@pytest.mark.parametrize("place", ["direct.answered", "direct.kept"])
def test_a_kill_behind_a_call_hides_no_purchase(
    replay: Replays, calls: Counter[str], place: str
) -> None:
    """What was settled and not kept is bought again, and counted."""
    run = late(replay, paid(calls, iter([])), MANY)
    for _ in range(2):
        dying(run, place)
    run.work()
    run.assert_right()
    assert bought_twice(run).get("lost_call", 0) == extra(calls)
    assert (extra(calls) > 0) is (place == "direct.answered")


def test_a_call_whose_answer_was_lost_is_bought_again(replay: Replays, calls: Counter[str]) -> None:
    """It may have been billed at once; one that never left the machine was not."""
    unsent = ProviderUnavailableError("refused")
    unsent.sent = False
    run = late(replay, paid(calls, iter([None, ProviderUnavailableError("503"), unsent])), MANY)
    run.work()
    run.assert_right()
    assert bought_twice(run) == {"lost_call": 100}


def test_rows_that_a_job_was_billed_for_are_bought_again_directly(replay: Replays) -> None:
    """Three rows of a job gave no vector; by then it is late, and they go through the API."""

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        run.clock.advance(30.0)
        none = RowError(code="no_vector", message="none", transient=True)
        errors = [(key, none) for key in block.keys[5:]]
        return [ResultBlock(keys=block.keys[:5], vectors=block.vectors[:5], errors=errors)]

    run = replay(FakeProvider(on_results=spoil), MANY[:8], deadline=NOW + 20.0)
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 1
    assert run.journal.ledger.sums(run.context.run_id)["direct"].rows == 3
    assert bought_twice(run) == {"no_vector": 3}


def test_it_is_late_when_a_job_takes_longer_than_is_left(replay: Replays) -> None:
    """While no job has ended, a new one is taken to need as long as those under way have waited."""
    provider = FakeProvider(on_job=pending).limited(poll_interval_s=10_000.0)
    run = replay(provider, [f"text {n}" for n in range(40)], deadline=NOW + 1000.0)
    while run.step() is not None:
        pass
    assert sorted(set(run.states())) == [BatchState.PLANNED, BatchState.SUBMITTED]
    assert not is_late(run.context)
    run.clock.advance(460.0)
    assert not is_late(run.context)
    run.clock.advance(40.0)
    assert is_late(run.context)


def test_jobs_that_ended_tell_how_long_one_takes(replay: Replays) -> None:
    """Their median duration, and not how long the present ones have waited so far."""
    provider = FakeProvider(on_job=pending).limited(poll_interval_s=100.0)
    run = replay(provider, [f"text {n}" for n in range(8)], deadline=NOW + 1000.0)
    while run.step() is not None:
        pass
    run.clock.advance(300.0)
    job = provider.jobs["jobs/0"]
    job.state, job.has_results = JobState.COMPLETED, True
    run.work()
    assert run.states() == [BatchState.PUBLISHED]
    assert not is_late(run.context)
    run.clock.advance(400.0)
    assert is_late(run.context)


def test_no_deadline_is_never_late(replay: Replays) -> None:
    """Nor is a run on a provider that bills nothing."""
    assert not is_late(replay(FakeProvider()).context)
    free = replay(FakeProvider().limited(billed=False), deadline=NOW - 1.0)
    assert not is_late(free.context)


@dataclass(slots=True)
class Priced(FakeProvider):
    """A provider whose price is known."""

    @property
    def space(self) -> Space:
        return Space(provider="fake", model="gemini-embedding-001", dims=self.dims)


def test_batches_that_the_budget_bears_no_calls_for_go_as_they_are(replay: Replays) -> None:
    """Late but whole: calls are made only as far as the cap bears the rest as batches besides."""
    provider = Priced()
    tokens = sum(len(f"text {n}") for n in range(10))
    run = replay(provider, deadline=NOW, max_cost_usd=1.2 * tokens * 0.075e-6, audit="off")
    run.work()
    run.assert_right()
    ledger = run.journal.ledger
    assert ledger.sums(run.context.run_id)["batch"].rows > 0
    assert ledger.committed(run.context.run_id)[0] <= 1.2 * tokens * 0.075e-6


def test_a_batch_that_was_uploaded_leaves_nothing_behind(replay: Replays) -> None:
    """Its create was put off; when it is late, its input goes, and so does its reservation."""
    provider = FakeProvider(before_submit=failing(1, RateLimitError("429", retry_after_s=50.0)))
    run = replay(provider, ["one", "two"], deadline=NOW + 20.0)
    run.work()
    run.assert_right()
    assert provider.submitted == []
    assert provider._uploads == {}
    spent = run.journal.ledger.sums(run.context.run_id)
    assert {kind: one.rows for kind, one in spent.items() if one.rows} == {"direct": 2}
    assert run.journal.ledger.committed(run.context.run_id)[1] == 0.0


def test_a_run_taken_up_after_its_deadline_warns_once(
    replay: Replays, caplog: pytest.LogCaptureFixture
) -> None:
    """What it does to the price stands in `status` before, and in the log when work begins."""
    run = replay(FakeProvider(), deadline=NOW + 100.0)
    run_id = run.context.run_id

    def waiting() -> str:
        return str(read_status(run.journal, run_id, now=run.clock()).waiting)

    assert "deadline" not in waiting()
    run.clock.advance(101.0)
    assert "has passed" in waiting()

    def over() -> bool:
        run.clock.advance(1.0)
        return run.context.run().state is RunState.COMPLETED

    executor = ThreadExecutor(run.journal, lambda _: run.context, clock=run.clock, threads=2)
    executor.work([run_id], until=over, poll_s=0.02, timeout_s=60)
    warned = [record for record in caplog.records if "has passed" in record.getMessage()]
    assert [record.levelname for record in warned] == ["WARNING"]
    assert run.provider.submitted == []
    run.assert_right()


def test_a_deadline_that_holds_nothing_back_is_not_spoken_of(replay: Replays) -> None:
    """Everything was sent before it passed."""
    run = replay(FakeProvider(on_job=pending), ["one", "two"], deadline=NOW + 100.0)
    while run.step() is not None:
        pass
    run.clock.advance(101.0)
    status = read_status(run.journal, run.context.run_id, now=run.clock())
    assert "no process works on it" in str(status.waiting)
    assert "deadline" not in str(status.waiting)
