"""A deadline: what batches will not bring by then is embedded at once, each text once."""

from collections import Counter
from dataclasses import dataclass

import pytest
from replaying import Replay, Replays, failing

from embatch.errors import InvalidRequestError, ProviderUnavailableError, RateLimitError
from embatch.runs.direct import is_late
from embatch.runs.outcomes import After
from embatch.testing.clock import FakeClock
from embatch.testing.provider import FakeProvider, Job
from embatch.types.embedding import Space
from embatch.types.state import BatchState, JobState

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
