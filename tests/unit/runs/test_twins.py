"""Creates in doubt, twins that turn up late, what waits for a person, and what is left behind."""

from contextlib import suppress
from dataclasses import replace

import pytest
from replaying import Replay, Replays, bought_twice, failing, finish, until_stuck, work_until

from embatch.errors import (
    IndeterminateError,
    InvalidRequestError,
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.runs.end import forget_run
from embatch.runs.orphans import batch_of_orphan, find_orphans, remove_orphan
from embatch.runs.outcomes import After, Done
from embatch.runs.resolve import resolve_batch
from embatch.runs.start import wake_run
from embatch.runs.status import read_status
from embatch.runs.twins import watch
from embatch.testing.provider import FakeProvider, Job
from embatch.types.state import BatchState, JobState, RunEvent, RunState

LOST = IndeterminateError("the answer was lost", label="x")


# What is in doubt.


def hidden_twin(run_of: Replays, texts: list[str] | None = None) -> Replay:
    """A run whose first create took effect, was not answered, and is not listed."""
    provider = FakeProvider(after_submit=failing(1, LOST))
    run = run_of(provider, texts or ["one", "two"])
    provider.on_job = lambda job: setattr(job, "hidden", not provider.submitted)
    return run


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


def gone(run_of: Replays) -> Replay:
    """A run whose job was there, and is held to be gone by a person."""
    provider = FakeProvider(on_job=lambda job: setattr(job, "state", JobState.PROCESSING))
    run = run_of(provider, ["one", "two"])
    work_until(run, BatchState.SUBMITTED)
    provider.jobs["jobs/0"].hidden = True
    provider.on_job = lambda _: None
    return run


def test_a_job_that_a_person_holds_gone_takes_no_quota_until_it_is_seen(replay: Replays) -> None:
    """Its label stays watched: when it turns up it counts, is stopped, and is removed."""
    run = gone(replay)
    provider, jobs = run.provider, run.journal.jobs
    resolve_batch(run.context, 0, adopt=None)
    assert jobs.occupying(provider.scope) == (0, 0)
    assert len(jobs.watched(run.context.run_id)) == 1
    run.work()
    run.assert_right()
    provider.jobs["jobs/0"].hidden = False
    watch(run.context)
    assert jobs.occupying(provider.scope)[1] == 1
    assert provider.cancelled == ["jobs/0"]
    provider.jobs["jobs/0"].hidden = True
    watch(run.context)
    assert jobs.occupying(provider.scope)[1] == 0
    provider.jobs["jobs/0"].hidden = False
    provider.jobs["jobs/0"].state = JobState.COMPLETED
    assert finish(run) == Done()
    assert provider.jobs == {}
    assert bought_twice(run) == {"lost": 2}


def test_a_job_held_gone_is_watched_from_the_moment_it_is(
    replay: Replays, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies as soon as the batch is withdrawn leaves no job out of sight."""
    run = gone(replay)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(run.journal.jobs), "mark", die)
    monkeypatch.setattr(FakeProvider, "discard", die)
    with suppress(KeyboardInterrupt):
        resolve_batch(run.context, 0, adopt=None)
    (batch,) = run.journal.batches.walk(run.context.run_id)
    assert batch.state is BatchState.PLANNED
    assert [job.state for job in run.journal.jobs.watched(run.context.run_id)] == ["stray"]


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
