"""The worst days of a service, step by step: jobs that stand still, end badly, or are gone."""

from collections.abc import Callable
from dataclasses import replace

from replaying import Replay, Replays, bought_twice, failing, finish, until_stuck, work_until

from embatch.errors import (
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.journal.leases import Claim
from embatch.runs.advance import advance
from embatch.runs.outcomes import After, Done
from embatch.runs.resolve import resolve_batch
from embatch.runs.trouble import UNREADABLE_FOR_S
from embatch.testing.provider import FakeProvider, Job
from embatch.types.results import ResultBlock
from embatch.types.state import BatchState, JobState

DAY_S = 24 * 3600.0


def first(*states: JobState) -> Callable[[Job], None]:
    """The first jobs are in these states, without results; later ones complete."""
    left = iter(states)

    def spoil(job: Job) -> None:
        job.state = next(left, JobState.COMPLETED)
        job.has_results = job.state is JobState.COMPLETED

    return spoil


def slow(provider: FakeProvider) -> FakeProvider:
    """Looked at every half hour: days pass in few steps."""
    return provider.limited(poll_interval_s=1800.0)


# What stands still.


def test_a_job_that_does_not_move_is_stopped_and_sent_again_in_halves(replay: Replays) -> None:
    """After --stuck-after, once; it ends cancelled, and two smaller jobs bring the rows."""

    def stop(job: Job) -> None:
        job.state = JobState.CANCELLED

    provider = slow(FakeProvider(on_job=first(JobState.PENDING), on_cancel=stop))
    run = replay(provider, [f"text {n}" for n in range(8)], stuck_after_s=5 * 3600.0)
    began = run.clock()
    run.work()
    run.assert_right()
    assert provider.cancelled == ["jobs/0"]
    assert 5 * 3600.0 <= run.clock() - began < 7 * 3600.0
    assert [len(job) for job in _sizes(run)] == [8, 4, 4]
    assert bought_twice(run) == {}
    assert finish(run) == Done()
    assert provider.jobs == {}


def _sizes(run: Replay) -> list[range]:
    return [range(batch.items) for batch in run.journal.batches.walk(run.context.run_id)]


def test_a_job_that_moves_is_left_alone(replay: Replays) -> None:
    """A change of its state is movement too, however long it takes in all."""
    words = iter([JobState.PENDING] * 20 + [JobState.PROCESSING] * 20)
    provider = FakeProvider(on_job=first(JobState.PENDING))
    run = replay(provider, ["one"], stuck_after_s=30.0, poll_interval_s=1.0)

    def move(name: str) -> None:
        job = provider.jobs[name]
        job.state = next(words, JobState.COMPLETED)
        job.has_results = job.state is JobState.COMPLETED

    provider.before_poll = move
    run.work()
    run.assert_right()
    assert provider.cancelled == []


def test_what_a_stopped_job_holds_is_kept(replay: Replays) -> None:
    """Four of eight rows come; the others go on in two children, and none is bought twice."""

    def stop(job: Job) -> None:
        job.state, job.has_results = JobState.CANCELLED, True

    def half(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.state is not JobState.CANCELLED:
            return blocks
        (block,) = blocks
        return [replace(block, keys=block.keys[:4], vectors=block.vectors[:4])]

    provider = slow(FakeProvider(on_job=first(JobState.PENDING), on_cancel=stop, on_results=half))
    run = replay(provider, [f"text {n}" for n in range(8)], stuck_after_s=2 * 3600.0)
    run.work()
    run.assert_right()
    assert [len(job) for job in _sizes(run)] == [8, 2, 2]
    assert provider.rows_bought.count("text 1") == 1


def test_a_job_that_ignores_its_cancelling_is_left_behind_and_watched(replay: Replays) -> None:
    """Its rows are sent again; it counts against the quota until it ends, and is then removed,
    with what it cost on the books."""
    provider = slow(FakeProvider(on_job=first(JobState.PROCESSING)))
    run = replay(provider, [f"text {n}" for n in range(8)], stuck_after_s=2 * 3600.0)
    run.work()
    run.assert_right()
    assert provider.cancelled == ["jobs/0"]
    assert "jobs/0" in provider.jobs
    assert run.journal.jobs.occupying(provider.scope)[1] == 1
    job = provider.jobs["jobs/0"]
    job.state, job.has_results = JobState.COMPLETED, True
    assert finish(run) == Done()
    assert provider.jobs == {}
    assert run.journal.jobs.occupying(provider.scope)[1] == 0
    assert bought_twice(run) == {"late_twin": 8}


def test_an_expired_job_goes_on_in_halves(replay: Replays) -> None:
    """What was too much at once may get through in pieces."""
    run = replay(FakeProvider(on_job=first(JobState.EXPIRED)), [f"text {n}" for n in range(8)])
    run.work()
    run.assert_right()
    assert [len(job) for job in _sizes(run)] == [8, 4, 4]


def test_a_job_that_failed_for_quota_loses_no_attempt(replay: Replays) -> None:
    """However often: it waits longer and longer, and goes on as attempt 1."""
    left = iter(range(9))

    def spoil(job: Job) -> None:
        if next(left, None) is not None:
            job.state, job.has_results, job.quota = JobState.FAILED, False, True

    run = replay(FakeProvider(on_job=spoil), ["one", "two"])
    began = run.clock()
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 10
    assert {label.split(":")[4] for label in run.provider.submitted} == {"1"}
    assert run.clock() - began > 1000.0


def test_rows_that_a_quota_cut_off_lose_no_attempt(replay: Replays) -> None:
    """The job failed with half of its rows: the others go on as attempt 1, however often."""
    left = iter(range(6))

    def spoil(job: Job) -> None:
        if next(left, None) is not None:
            job.state, job.quota = JobState.FAILED, True

    def half(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        kept = len(block.keys) // 2 if job.quota else len(block.keys)
        return [replace(block, keys=block.keys[:kept], vectors=block.vectors[:kept])]

    run = replay(FakeProvider(on_job=spoil, on_results=half), [f"text {n}" for n in range(8)])
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 7
    assert {label.split(":")[4] for label in run.provider.submitted} == {"1"}


# What cannot be read, and what is gone.


def test_results_that_cannot_be_read_are_asked_for_through_days(replay: Replays) -> None:
    """The waits grow to ten minutes; after two days they come, and nothing was bought again."""
    provider = FakeProvider()
    run = replay(provider, ["one"])
    ready_at = run.clock() + 2 * DAY_S

    def read(_: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if run.clock() < ready_at:
            run.clock.advance(6 * 3600.0)
            raise ProviderUnavailableError("404: the result file is not there")
        return blocks

    provider.on_results = read
    outcomes = run.work()
    run.assert_right()
    waits = [o.seconds for o in outcomes if isinstance(o, After) and o.reason == "unavailable"]
    assert max(waits) <= 600.0 * 1.2
    assert len(provider.submitted) == 1


def test_results_that_never_come_are_bought_again_and_counted(replay: Replays) -> None:
    """After five days, under a new label."""
    provider = FakeProvider()

    def read(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label == provider.submitted[0]:
            run.clock.advance(DAY_S / 3)
            raise ProviderUnavailableError("403: the result file is gone")
        return blocks

    provider.on_results = read
    run = replay(provider, ["one", "two"])
    began = run.clock()
    run.work()
    run.assert_right()
    assert UNREADABLE_FOR_S < run.clock() - began < UNREADABLE_FOR_S + DAY_S
    assert len(provider.submitted) == 2
    assert bought_twice(run) == {"unreadable": 2}


def test_results_near_their_end_come_first(replay: Replays) -> None:
    """Of two batches that are due, the one whose results the provider lets go of soon."""
    run = replay(FakeProvider())
    early, late = (claimed(run), claimed(run))
    for claim, due, ends_in in ((early, -2.0, 90 * 3600.0), (late, -1.0, 3600.0)):
        step_to_ready(run, claim)
        until = run.clock() + ends_in
        run.journal.batches.note(claim.batch, claim.token, now=run.clock(), results_until=until)
        run.journal.leases.release(claim.batch.id, claim.token, next_at=run.clock() + due)
    first_claim = claimed(run)
    assert first_claim.batch.id == late.batch.id
    assert claimed(run).batch.id == early.batch.id


def claimed(run: Replay) -> Claim:
    claim = run.claim()
    assert claim is not None
    return claim


def step_to_ready(run: Replay, claim: Claim) -> None:
    """Upload, create and end, under the lease at hand."""
    for state in ("uploaded", "submitted", "ready"):
        advance(claim, run.context)
        claim = replace(claim, batch=run.journal.batches.get(claim.batch.id))
        assert claim.batch.state == state


def test_a_job_that_is_gone_waits_for_a_person_who_finds_it_or_not(replay: Replays) -> None:
    """The list is asked first; `--absent` buys its rows again, `--adopt` takes the job named."""
    provider = FakeProvider()
    provider.before_poll = failing(1, NotFoundError("404"))
    run = replay(provider, ["one", "two"])
    run.work()
    assert len(provider.submitted) == 1  # GET failed once, and the list still had it
    run.assert_right()

    gone = FakeProvider()
    gone.before_poll = lambda name: gone.jobs.pop(name, None)  # deleted behind our back
    lost = replay(gone, ["one", "two"])
    stuck = until_stuck(lost)
    assert "embatch resolve" in stuck.error
    assert "--absent" in stuck.error
    gone.before_poll = lambda _: None
    resolve_batch(lost.context, 0, adopt=None)
    lost.work()
    lost.assert_right()
    assert bought_twice(lost) != {}


def test_results_whose_job_is_gone_wait_for_a_person(replay: Replays) -> None:
    """It had ended, and was deleted before it was read; the job that somebody restored is taken."""
    provider = FakeProvider()
    run = replay(provider, ["one", "two"])
    work_until(run, BatchState.READY)
    kept = provider.jobs.pop("jobs/0")
    assert "no longer knows jobs/0" in until_stuck(run).error
    provider.jobs["jobs/restored"] = kept
    resolve_batch(run.context, 0, adopt="jobs/restored")
    run.work()
    run.assert_right()
    assert len(provider.submitted) == 1
    assert bought_twice(run) == {}


def test_a_job_in_the_list_that_cannot_be_looked_at_is_waited_for(replay: Replays) -> None:
    """GET says 404 while the list has it: it is not given up."""
    provider = FakeProvider(before_poll=failing(5, NotFoundError("404")))
    run = replay(provider, ["one"])
    run.work()
    run.assert_right()
    assert len(provider.submitted) == 1


def test_a_job_in_the_list_that_can_never_be_looked_at_calls_a_person(replay: Replays) -> None:
    """After five days, with the commands to go on with; `--absent` buys its rows again, and the
    job is stopped."""

    def never(name: str) -> None:
        if name == "jobs/0":
            run.clock.advance(DAY_S / 3)
            raise NotFoundError("404")

    provider = slow(FakeProvider(before_poll=never, on_job=first(JobState.PROCESSING)))
    run = replay(provider, ["one"])
    began = run.clock()
    stuck = until_stuck(run)
    assert UNREADABLE_FOR_S <= run.clock() - began < UNREADABLE_FOR_S + DAY_S
    assert f"embatch resume {run.context.run_id}" in stuck.error
    assert f"embatch resolve {run.context.run_id} 0 --absent" in stuck.error
    resolve_batch(run.context, 0, adopt=None)
    run.journal.batches.unblock(run.context.run_id, now=run.clock())
    run.work()
    run.assert_right()
    assert bought_twice(run) == {"lost": 1}


def test_a_job_that_is_gone_while_no_list_can_be_read_calls_a_person(replay: Replays) -> None:
    """Nobody can tell for days: someone has to look."""
    provider = FakeProvider(before_poll=failing(10_000, NotFoundError("404")))
    run = replay(slow(provider), ["one"])
    work_until(run, BatchState.SUBMITTED)

    def unlisted(_: str) -> None:
        run.clock.advance(DAY_S / 3)
        raise ProviderUnavailableError("503")

    provider.before_find = unlisted
    assert "--absent" in until_stuck(run).error
