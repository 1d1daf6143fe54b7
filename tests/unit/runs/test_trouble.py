"""The worst days of a service, step by step: jobs that stand still, vanish, or turn up too late."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from replaying import Replay, Replays, failing

from embatch.errors import (
    IndeterminateError,
    InvalidRequestError,
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.journal.leases import Claim
from embatch.runs.advance import advance
from embatch.runs.end import forget_run
from embatch.runs.finish import finish_run
from embatch.runs.orphans import batch_of_orphan, find_orphans, remove_orphan
from embatch.runs.outcomes import After, Done, Stuck
from embatch.runs.resolve import resolve_batch
from embatch.runs.start import wake_run
from embatch.runs.status import read_status
from embatch.runs.trouble import UNREADABLE_FOR_S
from embatch.runs.twins import watch
from embatch.testing.provider import FakeProvider, Job
from embatch.types.results import ResultBlock
from embatch.types.state import BatchState, JobState, RunEvent, RunState

DAY_S = 24 * 3600.0
LOST = IndeterminateError("the answer was lost", label="x")


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


def finish(run: Replay) -> object:
    """The run's last step."""
    token = run.journal.leases.claim_planning(run.context.run_id, owner="test", lease_s=60)
    assert token is not None
    outcome = finish_run(run.context, token)
    run.journal.leases.release_planning(run.context.run_id, token)
    return outcome


def until_stuck(run: Replay) -> Stuck:
    """Works until a batch waits for a person."""
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    return last


def bought_twice(run: Replay) -> dict[str, int]:
    return run.journal.ledger.again(run.context.run_id)


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


# What is in doubt.


def hidden_twin(run_of: Replays, texts: list[str] | None = None) -> Replay:
    """A run whose first create took effect, was not answered, and is not listed."""
    provider = FakeProvider(after_submit=failing(1, LOST))
    run = run_of(provider, texts or ["one", "two"])
    provider.on_job = lambda job: setattr(job, "hidden", not provider.submitted)
    return run


def work_until(run: Replay, state: BatchState) -> None:
    """Steps until the first batch is in a state."""
    for _ in range(200):
        if run.states()[0] is state:
            return
        if run.step() is None:
            due = run.journal.leases.next_due(run.context.run_id)
            assert due is not None
            run.clock.advance(max(0.01, due - run.clock()))
    raise AssertionError(f"no batch became {state}")


def test_a_twin_that_turns_up_before_the_next_create_is_taken_over(replay: Replays) -> None:
    """One more look stands before each create: nothing is bought twice."""
    run = hidden_twin(replay)
    work_until(run, BatchState.PLANNED)
    work_until(run, BatchState.SUBMITTING)
    work_until(run, BatchState.PLANNED)
    run.provider.jobs["jobs/0"].hidden = False
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 1
    assert run.context.run().twins == 1
    assert finish(run) == Done()
    assert run.provider.jobs == {}
    assert run.provider._uploads == {}
    assert bought_twice(run) == {}


def test_a_twin_that_the_watch_finds_is_taken_over_by_its_batch(replay: Replays) -> None:
    """The batch is not sent again yet: its next step goes on with the twin."""
    run = hidden_twin(replay)
    work_until(run, BatchState.SUBMITTING)
    work_until(run, BatchState.PLANNED)
    run.provider.jobs["jobs/0"].hidden = False
    watch(run.context)
    assert [job.state for job in run.journal.jobs.of_run(run.context.run_id)] == ["running"]
    run.provider.before_find = lambda _: pytest.fail("no walk is needed any more")
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 1


def test_a_twin_that_turns_up_too_late_is_stopped_counted_and_removed(replay: Replays) -> None:
    """Its batch is written already; the last look before the end finds it."""
    run = hidden_twin(replay)
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 2
    twin = run.provider.jobs["jobs/0"]
    twin.hidden, twin.state = False, JobState.PROCESSING
    assert isinstance(finish(run), After)
    assert run.provider.cancelled == ["jobs/0"]
    twin.state = JobState.COMPLETED
    assert finish(run) == Done()
    assert run.provider.jobs == {}
    assert bought_twice(run) == {"late_twin": 2}
    status = read_status(run.journal, run.context.run_id, now=run.clock())
    assert (status.state, status.twins) == (RunState.COMPLETED, 1)


def test_a_twin_that_was_stopped_before_it_began_costs_nothing(replay: Replays) -> None:
    """It ends cancelled, without a row."""
    run = hidden_twin(replay)
    run.work()
    twin = run.provider.jobs["jobs/0"]
    twin.hidden, twin.state = False, JobState.PENDING

    def stop(job: Job) -> None:
        job.state, job.has_results = JobState.CANCELLED, False

    run.provider.on_cancel = stop
    assert isinstance(finish(run), After)
    twin.texts = []
    assert finish(run) == Done()
    assert run.provider.jobs == {}
    assert bought_twice(run) == {}


def test_a_list_that_fails_puts_the_end_off(replay: Replays) -> None:
    """The last look must be complete: the run ends when it was."""
    run = hidden_twin(replay)
    run.work()
    run.provider.before_find = failing(1, ProviderUnavailableError("503"))
    assert isinstance(finish(run), After)
    assert run.context.run().state is RunState.RUNNING
    assert finish(run) == Done()


def test_a_list_that_cannot_be_read_for_long_calls_a_person(replay: Replays) -> None:
    """Nobody may say that the job is absent: `resolve` does, and the label stays watched."""
    provider = FakeProvider(before_submit=failing(1, LOST))
    provider.before_find = failing(10_000, ProviderUnavailableError("503"))
    run = replay(provider, ["one"], stuck_after_s=1800.0)
    stuck = until_stuck(run)
    (batch,) = run.journal.batches.walk(run.context.run_id)
    assert batch.state is BatchState.SUBMITTING
    assert f"embatch resolve {batch.run_id} 0 --adopt NAME" in stuck.error
    assert str(batch.label) in stuck.error
    assert provider.submitted == []
    provider.before_find = lambda _: None
    resolve_batch(run.context, 0, adopt=None)
    run.work()
    run.assert_right()
    assert len(provider.submitted) == 1
    absent = list(run.journal.jobs.of_run(run.context.run_id, state="absent"))
    assert [job.label for job in absent] == [batch.label]


def test_a_job_in_doubt_is_adopted_by_its_name_and_no_other_is(replay: Replays) -> None:
    """The name must bear a label of that batch."""
    provider = FakeProvider(after_submit=failing(2, LOST))
    provider.before_find = failing(10_000, ProviderUnavailableError("503"))
    run = replay(provider, stuck_after_s=1800.0)
    until_stuck(run)
    names = {job.label: name for name, job in provider.jobs.items()}
    batches = list(run.journal.batches.walk(run.context.run_id))
    mine, other = names[str(batches[0].label)], names[str(batches[1].label)]
    with pytest.raises(InvalidRequestError, match="none of batch 0"):
        resolve_batch(run.context, 0, adopt=other)
    provider.before_find = lambda _: None
    with pytest.raises(NotFoundError, match="no job nowhere"):
        resolve_batch(run.context, 0, adopt="nowhere")
    resolve_batch(run.context, 0, adopt=mine)
    run.journal.batches.unblock(run.context.run_id, now=run.clock())
    run.work()
    run.assert_right()
    assert len(provider.submitted) == 2


def test_a_job_under_another_key_is_not_held_absent(replay: Replays) -> None:
    """It cannot be seen from here: with the former key it is found."""
    provider = FakeProvider(after_submit=failing(1, LOST))
    run = replay(provider, ["one"])
    work_until(run, BatchState.SUBMITTING)
    provider.jobs["jobs/0"].hidden = True

    class Elsewhere(FakeProvider):
        scope = "another project"

    moved = replace(
        run.context,
        provider=Elsewhere(jobs=provider.jobs, submitted=provider.submitted),
    )
    here, run.context = run.context, moved
    stuck = until_stuck(run)
    assert "another key, project or server" in stuck.error
    run.context = here
    provider.jobs["jobs/0"].hidden = False
    run.journal.batches.unblock(run.context.run_id, now=run.clock())
    run.work()
    run.assert_right()
    assert len(provider.submitted) == 1


# Who waits for a person.


def test_one_stuck_batch_does_not_hold_up_the_others(replay: Replays) -> None:
    """It is shown with what to type; resume tries it again."""
    provider = FakeProvider()
    run = replay(provider)
    bad = "text 0"

    def vanish(name: str) -> None:
        if bad in provider.jobs[name].texts:
            del provider.jobs[name]

    provider.before_poll = vanish
    until_stuck(run)
    run.work()
    assert sorted(run.states()) == [BatchState.PUBLISHED, BatchState.SUBMITTED]
    assert run.journal.leases.waits_for_person(run.context.run_id)
    run.journal.transition_run(
        run.context.run_id, RunEvent.BLOCKED, expected=RunState.RUNNING, now=run.clock()
    )
    status = read_status(run.journal, run.context.run_id, now=run.clock())
    assert status.state is RunState.NEEDS_PERSON
    assert list(status.blocked) == [0]
    assert "embatch resolve" in str(status.waiting)
    provider.before_poll = lambda _: None
    resolve_batch(run.context, 0, adopt=None)
    wake_run(run.journal, run.context.run_id, now=run.clock())
    run.work()
    run.assert_right()


def test_copies_of_what_waits_for_a_person_wait_too(replay: Replays) -> None:
    """A row whose text stands in the stuck batch cannot move: the run stops all the same."""
    provider = FakeProvider(before_poll=lambda name: provider.jobs.pop(name))
    run = replay(provider, ["same", "same", "same"])
    until_stuck(run)
    assert run.step() is None
    assert run.journal.leases.waits_for_person(run.context.run_id)


# What is left behind.


def test_what_is_kept_at_the_provider_stays(replay: Replays) -> None:
    """--keep-remote: through the end of the run, and through forget."""
    run = replay(FakeProvider(), keep_remote=True)
    run.work()
    assert finish(run) == Done()
    assert len(run.provider.jobs) == 2
    assert len(run.provider._uploads) == 2
    forget_run(run.journal, run.context.run_id, lambda: run.provider)
    assert len(run.provider.jobs) == 2


def test_forgetting_a_run_stops_what_turned_up_since(replay: Replays) -> None:
    """A twin that came after the end is stopped, or removed when it has ended."""
    run = hidden_twin(replay)
    run.work()
    assert finish(run) == Done()
    twin = run.provider.jobs["jobs/0"]
    twin.hidden, twin.state = False, JobState.PROCESSING
    forget_run(run.journal, run.context.run_id, lambda: run.provider)
    assert run.provider.cancelled == ["jobs/0"]
    assert [orphan.standing for orphan in find_orphans(run.journal, run.provider)] == ["forgotten"]


def test_orphans_are_those_that_no_run_waits_for(replay: Replays) -> None:
    """A late twin, a job of a forgotten run, one of another journal; not those that are followed,
    nor what others made."""
    run = hidden_twin(replay)
    run.work()
    assert finish(run) == Done()
    provider, journal = run.provider, run.journal
    provider.jobs["jobs/0"].hidden = False
    provider.jobs["f"] = Job(label=f"embatch:{journal.id}:rgone:3:1:abcd0123", texts=["x"])
    provider.jobs["o"] = Job(label="embatch:0000000000000000:rfar:3:1:abcd0123", texts=["x"])
    provider.jobs["n"] = Job(label="somebody's job", texts=["x"])
    found = {orphan.name: orphan.standing for orphan in find_orphans(journal, provider)}
    assert found == {"jobs/0": "late", "f": "forgotten", "o": "foreign"}
    with pytest.raises(InvalidRequestError, match="--foreign"):
        remove_orphan(journal, provider, "o", foreign=False, now=run.clock())
    with pytest.raises(InvalidRequestError, match="no orphan"):
        remove_orphan(journal, provider, "n", foreign=True, now=run.clock())
    with pytest.raises(InvalidRequestError, match="does not know"):
        batch_of_orphan(journal, provider, "f")
    assert batch_of_orphan(journal, provider, "jobs/0") == (run.context.run_id, 0)
    provider.jobs["f"].state = JobState.PROCESSING
    assert remove_orphan(journal, provider, "f", foreign=False, now=run.clock()) is False
    assert provider.cancelled == ["f"]
    provider.jobs["f"].state = JobState.CANCELLED
    for name in ("f", "jobs/0", "o"):
        assert remove_orphan(journal, provider, name, foreign=True, now=run.clock()) is True
    assert list(provider.jobs) == ["n"]
    assert bought_twice(run) == {"late_twin": 2}
