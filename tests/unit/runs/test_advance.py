"""Steps against a service on its bad days, with a clock that the test moves."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replaying import Replay, Replays, failing

from embatch.errors import (
    AuthenticationError,
    ConfigError,
    EmbatchError,
    IndeterminateError,
    InvalidRequestError,
    LeaseLostError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.runs.advance import advance
from embatch.runs.outcomes import After, Stuck
from embatch.runs.planning import advance_planning
from embatch.testing.provider import FakeProvider, Job
from embatch.types.embedding import RowError
from embatch.types.results import ResultBlock
from embatch.types.state import BatchState, JobState


def test_a_lost_lease_ends_a_long_step_midway(replay: Replays) -> None:
    """Collecting stops at the next block, nothing is journaled, no hidden part stays behind."""
    run = replay(FakeProvider())
    while BatchState.READY not in run.states():
        if run.step() is None:
            run.clock.advance(1.0)
    claim = run.claim()
    assert claim.batch.state is BatchState.READY
    checks = iter([True])
    with pytest.raises(LeaseLostError, match="batch 0 was taken over"):
        advance(claim, run.context, lambda: next(checks, False))
    assert not any(path.is_file() for path in run.context.paths.parts.glob("**/*part*"))
    run.journal.leases.release(claim.batch.id, claim.token, next_at=run.clock())
    run.work()
    run.assert_right()


@pytest.mark.parametrize("phase", ["digest", "copies"])
def test_an_expired_planner_cannot_touch_its_successors_work(tmp_path: Path, phase: str) -> None:
    """It sleeps in the middle of a phase, wakes when another has done it, and spoils nothing."""
    texts = [f"text {n % 20}" for n in range(30)]
    run = Replay(tmp_path, FakeProvider(), texts, planned=False)
    while (run.context.run().plan or {"phase": "digest"})["phase"] != phase:
        run.plan_once()
    sleeper = run.journal.leases.claim_planning(run.context.run_id, owner="sleeper", lease_s=-1)
    assert sleeper is not None
    slept: list[str] = []

    def sleep(name: str) -> None:
        if not slept:
            slept.append(name)
            run.plan_once()  # the successor, in the same phase
            assert run.context.run().plan["phase"] != phase

    with pytest.raises(LeaseLostError):
        advance_planning(replace(run.context, checkpoint=sleep), sleeper, lambda: False)
    assert slept == [{"digest": "plan.digest", "copies": "copies.written"}[phase]]
    run.plan()
    run.work()
    run.assert_right()
    run.journal.close()


def test_a_good_day_buys_every_row_once(replay: Replays) -> None:
    """Two batches, two jobs, all rows, and nothing left at the service."""
    run = replay(FakeProvider())
    run.work()
    run.assert_right()
    assert run.states() == [BatchState.PUBLISHED] * 2
    assert sorted(run.provider.rows_bought) == sorted(run.texts)
    assert run.provider.jobs == {}
    assert len(set(run.provider.submitted)) == 2


def test_an_ambiguous_submit_that_took_effect_is_adopted(replay: Replays) -> None:
    """The job is found by its label; it is not bought again."""
    lost = IndeterminateError("the answer was lost", label="x")
    run = replay(FakeProvider(after_submit=failing(2, lost)))
    run.work()
    run.assert_right()
    assert sorted(run.provider.rows_bought) == sorted(run.texts)


def test_an_ambiguous_submit_without_effect_is_held_absent_after_the_window(
    replay: Replays,
) -> None:
    """Only after two complete looks, the last one past the settle window, is it tried anew."""
    lost = IndeterminateError("the answer was lost", label="x")
    looks: list[float] = []
    run = replay(FakeProvider(before_submit=failing(1, lost)), ["one"])
    run.provider.before_find = lambda _: looks.append(run.clock())
    began = run.clock()
    run.work()
    run.assert_right()
    assert len(looks) >= 2
    assert looks[-1] - began >= 600.0
    (label,) = run.provider.submitted
    assert label.split(":")[4] == "2"


def test_looks_that_fail_do_not_count_as_looks(replay: Replays) -> None:
    """A listing that breaks says nothing about the job."""
    lost = IndeterminateError("the answer was lost", label="x")
    down = ProviderUnavailableError("503")
    run = replay(
        FakeProvider(before_submit=failing(1, lost), before_find=failing(5, down)), ["one"]
    )
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 1


def test_a_rate_limit_costs_no_attempt_and_honours_the_hint(replay: Replays) -> None:
    """The batch waits as long as it was told, and goes on as attempt 1."""
    limited = RateLimitError("429", retry_after_s=77.0)
    run = replay(FakeProvider(before_submit=failing(1, limited)), ["one"])
    began = run.clock()
    outcomes = run.work()
    run.assert_right()
    assert After(seconds=77.0, reason="quota", detail="429") in outcomes
    (label,) = run.provider.submitted
    assert label.split(":")[4] == "1"
    assert run.clock() - began < 100.0


def test_a_service_that_is_down_is_waited_for_longer_and_longer(replay: Replays) -> None:
    """Waits grow, up to ten minutes; nothing is lost."""
    run = replay(FakeProvider(before_poll=failing(12, ProviderUnavailableError("503"))), ["one"])
    outcomes = run.work()
    run.assert_right()
    waits = [o.seconds for o in outcomes if isinstance(o, After) and o.reason == "unavailable"]
    assert len(waits) == 12
    assert waits[0] < waits[3] < waits[6]
    assert max(waits) <= 600.0 * 1.2


def test_many_quiet_looks_do_not_make_the_first_failure_a_long_wait(replay: Replays) -> None:
    """A job that takes its time, and one 503: the next look comes within seconds."""
    looks = itertools.count()

    def look(name: str) -> None:
        number = next(looks)
        provider.jobs[name].state = JobState.COMPLETED if number > 12 else JobState.PENDING
        if number == 12:
            raise ProviderUnavailableError("503")

    provider = FakeProvider(before_poll=look)
    run = replay(provider, ["one"])
    outcomes = run.work()
    run.assert_right()
    (wait,) = [o.seconds for o in outcomes if isinstance(o, After) and o.reason == "unavailable"]
    assert wait < 3.0


@pytest.mark.parametrize("error", [AuthenticationError, PermissionDeniedError, ConfigError])
def test_a_submit_that_a_person_must_mend_leaves_no_doubt(
    replay: Replays, error: type[EmbatchError]
) -> None:
    """Nothing was made: once it is mended, the batch is submitted at once and once."""
    provider = FakeProvider(before_submit=failing(1, error("mend me")))
    run = replay(provider)
    run.step()
    claim = run.claim()
    assert claim is not None
    with pytest.raises(error, match="mend me"):
        advance(claim, run.context)
    run.journal.leases.release(claim.batch.id, claim.token, next_at=run.clock())
    assert BatchState.SUBMITTING not in run.states()
    began = run.clock()
    run.work()
    assert run.clock() - began < provider.limits.settle_s
    assert len(provider.submitted) == 2
    run.assert_right()


def test_an_input_that_the_service_let_go_is_uploaded_again(replay: Replays) -> None:
    """Under a new label; a person is called when that never ends."""
    provider = FakeProvider(before_submit=failing(1, NotFoundError("the file is gone")))
    run = replay(provider)
    run.work()
    assert len(provider.submitted) == 2
    assert sorted(batch.attempt for batch in run.journal.batches.walk(run.context.run_id)) == [1, 2]
    run.assert_right()
    never = replay(FakeProvider(before_submit=failing(99, NotFoundError("the file is gone"))))
    outcomes = never.work()
    assert isinstance(outcomes[-1], Stuck)
    assert "lost each time" in outcomes[-1].error
    assert never.provider.submitted == []


def test_an_input_whose_batch_is_held_absent_is_removed(replay: Replays) -> None:
    """The next attempt brings its own: no file is left at the service."""
    provider = FakeProvider(before_submit=failing(1, IndeterminateError("lost", label="x")))
    run = replay(provider)
    run.work()
    assert provider._uploads == {}
    run.assert_right()


def test_a_quota_of_the_day_is_not_asked_for_in_seconds(replay: Replays) -> None:
    """Whatever wait the service names beside it."""
    error = RateLimitError("the day's quota", retry_after_s=43.0, per_day=True)
    run = replay(FakeProvider(before_submit=failing(1, error)))
    waits = [outcome.seconds for outcome in run.work() if isinstance(outcome, After)]
    assert 43.0 not in waits
    assert max(waits) >= 600.0


def test_a_service_that_asks_for_a_wait_gets_it(replay: Replays) -> None:
    """An outage with a time in it is waited out."""
    error = ProviderUnavailableError("down")
    error.retry_after_s = 77.0
    run = replay(FakeProvider(before_poll=failing(1, error)))
    waits = [outcome.seconds for outcome in run.work() if isinstance(outcome, After)]
    assert 77.0 in waits


def test_one_refused_row_is_bisected_out(replay: Replays) -> None:
    """The create is refused for one bad row: all the others are embedded."""
    texts = [f"text {n}" for n in range(8)]
    run = replay(FakeProvider(), texts)

    def refuse(label: str) -> None:
        if "text 5" in run.provider._uploads[f"file-{label}"]:
            raise InvalidRequestError("Error on line 1: bad row")

    run.provider.before_submit = refuse
    run.work()
    run.assert_right(failed={5})
    (failure,) = run.journal.failures(run.context.run_id)
    assert (failure.code, failure.kept) == ("refused", True)
    assert run.provider.rows_bought.count("text 4") == 1


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED])
def test_a_job_that_ends_badly_without_results_goes_on_in_a_child(
    replay: Replays, state: JobState
) -> None:
    """Once more, later, under a new label; in halves when it took too long."""
    bad = iter([state])

    def spoil(job: Job) -> None:
        job.state = next(bad, JobState.COMPLETED)
        job.has_results = job.state is JobState.COMPLETED

    run = replay(FakeProvider(on_job=spoil), ["one", "two"])
    run.work()
    run.assert_right()
    halves = 2 if state is JobState.EXPIRED else 1
    assert run.states() == [BatchState.SPLIT] + [BatchState.PUBLISHED] * halves
    assert len(set(run.provider.submitted)) == 1 + halves


def test_a_cancelled_job_with_results_keeps_them(replay: Replays) -> None:
    """What it holds is written; what it lacks goes on in a child."""
    bad = iter([JobState.CANCELLED])

    def spoil(job: Job) -> None:
        job.state = next(bad, JobState.COMPLETED)

    def half(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.state is not JobState.CANCELLED:
            return blocks
        (block,) = blocks
        return [replace(block, keys=block.keys[:4], vectors=block.vectors[:4])]

    run = replay(FakeProvider(on_job=spoil, on_results=half), [f"text {n}" for n in range(8)])
    run.work()
    run.assert_right()
    assert run.provider.rows_bought.count("text 1") == 1
    assert run.provider.rows_bought.count("text 6") == 2


def test_a_job_that_keeps_failing_calls_a_person(replay: Replays) -> None:
    """After the last attempt the run says what to type, instead of paying on."""

    def spoil(job: Job) -> None:
        job.state, job.has_results, job.error = JobState.FAILED, False, "out of quota"

    run = replay(FakeProvider(on_job=spoil), ["one", "two"])
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    assert "out of quota" in last.error
    assert "embatch resume" in last.error
    assert len(run.provider.submitted) == 5


def test_transient_rows_are_sent_again_alone_and_fail_in_the_end(replay: Replays) -> None:
    """Bounded attempts; its neighbours are bought once."""
    error = RowError(code="unavailable", message="try again", transient=True)

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        bad = [i for i, text in enumerate(job.texts) if text == "text 3"]
        good = [i for i in range(len(job.texts)) if i not in bad]
        return [
            ResultBlock(
                keys=[block.keys[i] for i in good],
                vectors=block.vectors[good],
                errors=[(block.keys[i], error) for i in bad],
            )
        ]

    run = replay(FakeProvider(on_results=spoil))
    run.work()
    run.assert_right(failed={3})
    assert run.provider.rows_bought.count("text 3") == 5
    assert run.provider.rows_bought.count("text 2") == 1


def test_misaligned_results_are_quarantined_and_never_written(replay: Replays) -> None:
    """A key of another batch: its vectors reach no part, and its rows are bought again."""

    def foreign(_job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        return [replace(block, keys=["0123456789ab:0" for _ in block.keys]) for block in blocks]

    run = replay(FakeProvider(on_results=foreign), ["one"])
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    assert "quarantined" in last.error
    assert run.written() == {}
    assert run.states() == [BatchState.SPLIT] * 4 + [BatchState.QUARANTINED]


@pytest.mark.parametrize("error", [PermissionDeniedError, ProviderUnavailableError])
def test_a_job_that_cannot_be_removed_holds_nothing_up(
    replay: Replays, error: type[EmbatchError]
) -> None:
    """The part is safe: what stays at the provider is for the run's end."""

    class Keeping(FakeProvider):
        def discard(self, name: str | None, input_ref: str | None) -> None:
            raise error("not removed")

    run = replay(Keeping())
    run.work()
    run.assert_right()
    batches = list(run.journal.batches.walk(run.context.run_id))
    assert {batch.state for batch in batches} == {BatchState.PUBLISHED}
    assert {batch.cleared_at for batch in batches} == {None}


def test_a_part_that_vanished_is_made_again(replay: Replays) -> None:
    """Between writing and publishing, a lost file costs a second reading, not a second purchase."""
    run = replay(FakeProvider(), ["one"])

    def lose(name: str) -> None:
        if name == "part.journaled" and len(lost) < 1:
            for path in run.context.paths.parts.glob(".part-*"):
                path.unlink()
                lost.append(path)

    lost: list[Path] = []
    run.context = replace(run.context, checkpoint=lose)
    run.work()
    run.assert_right()
    assert lost
    assert run.provider.rows_bought == ["one"]


@pytest.mark.parametrize("rows", [1, 4])
def test_a_crash_after_collecting_sends_failed_rows_once(replay: Replays, rows: int) -> None:
    """A child that was entered with the first collection is not entered again with the second."""
    texts = [f"text {n}" for n in range(rows)]
    error = RowError(code="unavailable", message="try again", transient=True)

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label != run.provider.submitted[0]:
            return blocks
        (block,) = blocks
        return [
            replace(
                block,
                keys=block.keys[1:],
                vectors=block.vectors[1:],
                errors=[(block.keys[0], error)],
            )
        ]

    def lose(name: str) -> None:
        if name == "part.journaled" and not lost:
            for path in run.context.paths.parts.glob(".part-*"):
                path.unlink()
                lost.append(path)

    lost: list[Path] = []
    run = replay(FakeProvider(on_results=spoil), texts)
    run.context = replace(run.context, checkpoint=lose)
    run.work()
    run.assert_right()
    assert run.provider.rows_bought.count("text 0") == 2
    assert run.provider.rows_bought.count("text 1") == (1 if rows > 1 else 0)


def test_the_job_of_a_lost_local_batch_is_planned_again(replay: Replays) -> None:
    """Where nothing is billed, a batch that the service lost starts over by itself."""
    provider = FakeProvider().limited(billed=False, settle_s=0.0)
    run = replay(provider, ["one"])
    while run.states() != [BatchState.SUBMITTED]:
        run.step()
    provider.jobs.clear()
    run.work()
    run.assert_right()


def test_a_lost_billed_job_calls_a_person(replay: Replays) -> None:
    """Money is not spent twice on a guess."""
    run = replay(FakeProvider(), ["one"])
    while run.states() != [BatchState.SUBMITTED]:
        run.step()
    run.provider.jobs.clear()
    assert isinstance(run.work()[-1], Stuck)
    assert len(run.provider.submitted) == 1


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 24), distinct=st.integers(1, 24))
def test_a_bad_day_of_any_kind_ends_right(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, distinct: int
) -> None:
    """Errors of all kinds at random: every row once, right, and no job made twice by mistake."""
    chance = random.Random(seed)

    def sometimes(error: Callable[[], Exception], odds: float) -> Callable[[str], None]:
        def hook(_: str) -> None:
            if chance.random() < odds:
                raise error()

        return hook

    def shuffled(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        order = list(range(len(job.texts)))
        chance.shuffle(order)
        if chance.random() < 0.3:
            order.append(order[0])
        return [replace(block, keys=[block.keys[i] for i in order], vectors=block.vectors[order])]

    def late(job: Job) -> None:
        if chance.random() < 0.2:
            job.state, job.has_results = JobState.EXPIRED, False

    provider = FakeProvider(
        before_submit=sometimes(lambda: IndeterminateError("lost", label="x"), 0.2),
        after_submit=sometimes(lambda: IndeterminateError("lost", label="x"), 0.2),
        before_find=sometimes(lambda: ProviderUnavailableError("503"), 0.2),
        before_poll=sometimes(lambda: RateLimitError("429"), 0.2),
        on_job=late,
        on_results=shuffled,
    )
    texts = [f"text {n % distinct}" for n in range(rows)]
    run = Replay(tmp_path_factory.mktemp("run"), provider, texts)
    outcomes = run.work(steps=5_000)
    if not isinstance(outcomes[-1], Stuck):
        failures = list(run.journal.failures(run.context.run_id))
        assert {failure.code for failure in failures} <= {"job_expired"}
        run.assert_right(failed={failure.row for failure in failures})
    assert len(set(provider.submitted)) == len(provider.submitted)
    run.journal.close()


def test_the_replay_tables_are_what_pyarrow_reads(tmp_path: Path) -> None:
    """The staged input keeps texts to the letter: white space, Unicode form, control characters."""
    texts = ["  a\tb \r\n", "e\u0301", "\u00e9", "\x00\x07", "\u2028"]
    run = Replay(tmp_path, FakeProvider(), texts)
    run.work()
    run.assert_right()
    assert pa.table({"t": texts})["t"].to_pylist() == run.provider.rows_bought
    run.journal.close()
