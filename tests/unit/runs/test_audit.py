"""Vectors on the wrong texts: found by audits, put aside, bought again; no part ever holds one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from replaying import Replay, Replays, failing
from spoiling import Hook, swapping, unknown

from embatch.errors import (
    AlignmentError,
    InvalidRequestError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.runs.audit_notes import Audit, AuditNotes
from embatch.runs.outcomes import After, Stuck
from embatch.runs.sampling import drawn
from embatch.testing.provider import FakeProvider, Job
from embatch.types.results import ResultBlock
from embatch.types.state import BatchState


def slipping(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
    """Two vectors of a batch of eight change places, where the sample of two does not look."""
    sample = drawn(f"{job.label}/2", np.arange(8), 2)
    one, other = np.setdiff1d(np.arange(8), sample)[:2]
    (block,) = blocks
    order = np.arange(8)
    order[[one, other]] = [other, one]
    return [replace(block, vectors=block.vectors[order])]


def first_slips_second_is_found(run: Callable[[], Replay]) -> Hook:
    """The first job slips through, the second is all wrong, the others are right."""

    def spoil(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        hooks: list[Hook] = [slipping, swapping()]
        number = run().provider.submitted.index(job.label)
        return hooks[number](job, blocks) if number < len(hooks) else blocks

    return spoil


def quarantines(run: Replay) -> int:
    events = run.journal.events(run.context.run_id, limit=10_000)
    return sum(event.kind == "misaligned" for event in events)


def test_a_batch_on_a_good_day_is_audited_in_one_call(replay: Replays) -> None:
    """Two rows of a small batch, and the journal says so."""
    calls: list[list[str]] = []
    run = replay(FakeProvider(before_embed=calls.append))
    run.work()
    run.assert_right()
    assert [len(texts) for texts in calls] == [2, 2]
    for batch in run.journal.batches.walk(run.context.run_id):
        assert batch.audited == 2
        assert batch.audit_least == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_swapped_vectors_are_found_and_bought_again(replay: Replays, share: float) -> None:
    """With every row audited no wrong vector is written; the evidence names rows and keys."""
    texts = [f"text {n}" for n in range(24)]
    run = replay(FakeProvider(on_results=swapping(share, jobs=2)), texts, audit="all")
    run.work()
    run.assert_right()
    assert quarantines(run) == 2
    assert run.states().count(BatchState.SPLIT) == 2
    wrong = [row for row in run.journal.audits.of_run(run.context.run_id) if not row.passed]
    assert wrong
    assert all(row.cosine < 0.99 and row.key == str(row.row) for row in wrong)
    assert not any(text in repr(wrong) for text in texts)
    assert run.context.run().audit_rows == 200


def test_a_mismatch_audits_the_published_batches_again_and_takes_bad_ones_back(
    replay: Replays,
) -> None:
    """The first batch slipped through the small sample; the second one's mismatch finds it."""
    texts = [f"text {n}" for n in range(16)]
    run = replay(FakeProvider(on_results=first_slips_second_is_found(lambda: run)), texts)
    run.work()
    run.assert_right()
    events = run.journal.events(run.context.run_id, limit=10_000)
    moves = [(event.source, event.target) for event in events]
    assert ("published", "quarantined") in moves
    assert quarantines(run) == 2
    assert sorted(run.provider.rows_bought) == sorted(2 * texts)
    assert run.context.run().audit_rows == 200


def test_copies_of_a_vector_that_is_taken_back_are_written_anew(replay: Replays) -> None:
    """Rows whose texts stand twice took over wrong vectors, and lose them again."""
    texts = [f"text {n}" for n in range(8)] * 2 + [f"more {n}" for n in range(8)]
    provider = FakeProvider(on_results=first_slips_second_is_found(lambda: run))
    run = replay(provider.limited(max_in_flight_batches=1), texts)
    run.work()
    run.assert_right()
    events = run.journal.events(run.context.run_id, limit=10_000)
    assert "owners_withdrawn" in {event.kind for event in events}


@pytest.mark.parametrize(("audit", "kept"), [(8, 2), ("all", 0), ("off", 0)])
def test_texts_stay_while_they_may_be_audited_again(
    replay: Replays, audit: object, kept: int
) -> None:
    """The stages of published batches, where samples were compared."""
    run = replay(FakeProvider(), audit=audit)
    run.work()
    assert len(list((run.context.paths.work / "stage").glob("*.arrow"))) == kept


def test_a_batch_whose_texts_are_gone_is_not_audited_again_and_that_is_said(
    replay: Replays, caplog: pytest.LogCaptureFixture
) -> None:
    """A run was finished once, and a retry of its failed rows finds a mismatch."""
    run = replay(FakeProvider(on_results=first_slips_second_is_found(lambda: run)))
    while BatchState.PUBLISHED not in run.states():
        if run.step() is None:
            run.clock.advance(1.0)
    (first,) = run.journal.batches.walk(run.context.run_id, states=[BatchState.PUBLISHED])
    (run.context.paths.work / str(first.stage)).unlink()
    run.work()
    assert "is not audited again" in caplog.text
    kinds = [event.kind for event in run.journal.events(run.context.run_id, limit=10_000)]
    assert kinds.count("audit_impossible") == 1


def test_a_batch_that_is_misaligned_again_and_again_calls_a_person(replay: Replays) -> None:
    """It is bought five times, and the command to go on is said."""
    run = replay(FakeProvider(on_results=swapping(0.5, jobs=99)), ["a", "b", "c", "d"], audit="all")
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    assert f"embatch resume {run.context.run_id}" in last.error
    assert len(run.provider.submitted) == 5
    assert run.written() == {}


def test_an_interactive_api_that_gives_other_vectors_stops_after_one_purchase(
    replay: Replays,
) -> None:
    """Not one row is alike: it is the two APIs that differ, and nothing is bought again."""
    texts = [f"text {n}" for n in range(24)]
    provider = FakeProvider(on_embed=lambda matrix: -matrix).limited(max_batch_items=24)
    run = replay(provider, texts)
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    assert "Not one vector" in last.error
    assert "--audit off" in last.error
    assert len(provider.submitted) == 1
    run.context = replace(run.context, config=replace(run.context.config, audit="off"))
    run.journal.batches.unblock(run.context.run_id, now=run.clock())
    run.work()
    run.assert_right()


def test_audits_that_are_off_or_free_buy_nothing(replay: Replays) -> None:
    """`--audit off`, and providers that do not bill."""
    calls: list[list[str]] = []
    replay(FakeProvider(before_embed=calls.append), audit="off").work()
    replay(FakeProvider(before_embed=calls.append).limited(billed=False)).work()
    assert calls == []


@pytest.mark.parametrize("error", [RateLimitError("429"), ProviderUnavailableError("503")])
def test_an_audit_that_must_wait_is_not_left_out(replay: Replays, error: Exception) -> None:
    """The step comes back, nothing is bought again, and the audit is made."""
    waits = failing(3, error)
    run = replay(FakeProvider(before_embed=lambda _: waits("")))
    outcomes = run.work()
    run.assert_right()
    assert sum(isinstance(one, After) and one.detail == str(error) for one in outcomes) == 3
    assert len(run.provider.submitted) == 2
    assert all(batch.audited == 2 for batch in run.journal.batches.walk(run.context.run_id))


def test_a_long_audit_that_must_wait_goes_on_where_it_was(replay: Replays) -> None:
    """Every row of 500 is audited, and none is embedded again twice, but for the broken call."""
    asked: list[str] = []
    calls = iter(range(1000))

    def hook(texts: list[str]) -> None:
        if next(calls) == 3:
            raise RateLimitError("429")
        asked.extend(texts)

    provider = FakeProvider(before_embed=hook).limited(max_batch_items=500)
    run = replay(provider, [f"text {n}" for n in range(500)], audit="all")
    run.work()
    run.assert_right()
    assert len(asked) <= 500 + 200
    assert set(asked) == set(run.texts)


def test_notes_of_other_vectors_are_not_taken_up(replay: Replays) -> None:
    """What was compared holds for these very vectors alone."""
    run = replay(FakeProvider())
    notes = AuditNotes(run.context.paths.work / "audit" / "one.json")
    places = np.arange(4)
    done = Audit(places=places[:2], cosines=np.ones(2))
    matrix = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    notes.put_down(done, lambda some: matrix[some])
    assert np.array_equal(notes.taken_up(places, lambda some: matrix[some]).places, [0, 1])
    other = matrix.copy()
    other[1, 3] += 1
    assert len(notes.taken_up(places, lambda some: other[some]).places) == 0
    assert len(notes.taken_up(places[1:], lambda some: matrix[some]).places) == 0


def test_an_answer_that_lacks_vectors_is_asked_for_again(replay: Replays) -> None:
    """Twice in a row; when it never ends, a person hears of it, and nothing is bought again."""
    short = failing(2, AlignmentError("1 vector for 2 texts"))
    run = replay(FakeProvider(before_embed=lambda _: short("")))
    run.work()
    run.assert_right()
    never = failing(99, AlignmentError("1 vector for 2 texts"))
    stuck = replay(FakeProvider(before_embed=lambda _: never("")))
    last = stuck.work()[-1]
    assert isinstance(last, Stuck)
    assert "cannot be audited" in last.error
    assert stuck.written() == {}


def test_a_text_that_the_interactive_api_refuses_spoils_no_audit(replay: Replays) -> None:
    """The others are compared; where every row must be proven, that one is a failed row."""

    def refuse(texts: list[str]) -> None:
        if "text 3" in texts:
            raise InvalidRequestError("too long")

    sampled = replay(FakeProvider(before_embed=refuse))
    sampled.work()
    sampled.assert_right()
    every = replay(FakeProvider(before_embed=refuse), audit="all")
    every.work()
    every.assert_right(failed={3})
    (failure,) = every.journal.failures(every.context.run_id)
    assert (failure.code, failure.kept) == ("unproven", True)


@pytest.mark.parametrize("key", ["unknown-0", "", "0"])
def test_keys_that_nobody_sent_are_freed_by_an_audit(replay: Replays, key: str) -> None:
    """All own keys are there and right: nothing is bought again."""
    run = replay(FakeProvider(on_results=unknown(key)))
    run.work()
    run.assert_right()
    kinds = [event.kind for event in run.journal.events(run.context.run_id, limit=1000)]
    assert kinds.count("audit_passed") == 2
    assert len(run.provider.submitted) == 2
    assert all(
        batch.audited == batch.items for batch in run.journal.batches.walk(run.context.run_id)
    )


def test_keys_that_nobody_sent_beside_wrong_vectors_free_nothing(replay: Replays) -> None:
    """The audit finds the vectors wrong: the batch is bought again."""

    def both(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        return unknown("unknown-0")(job, swap(job, blocks)) if job.label == first() else blocks

    def first() -> str:
        return run.provider.submitted[0]

    swap = swapping(0.5)
    run = replay(FakeProvider(on_results=both))
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 3
    assert run.context.run().audit_rows == 200


def test_keys_of_another_batch_are_never_freed(replay: Replays) -> None:
    """The file may be another batch's: it is bought again."""

    def foreign(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label != run.provider.submitted[0]:
            return blocks
        return unknown("0123456789ab:0")(job, blocks)

    run = replay(FakeProvider(on_results=foreign))
    run.work()
    run.assert_right()
    assert len(run.provider.submitted) == 3


def test_results_that_fitted_once_are_read_again_when_they_do_not(replay: Replays) -> None:
    """A part is lost after it was journaled, and the second reading brings another file."""
    readings: list[str] = []

    def hook(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        readings.append(job.label)
        return unknown("0123456789ab:0")(job, blocks) if len(readings) == 2 else blocks

    def lose(name: str) -> None:
        if name == "part.journaled" and len(readings) == 1:
            for path in run.context.paths.parts.glob(".part-*"):
                path.unlink()

    run = replay(FakeProvider(on_results=hook), ["one", "two"])
    run.context = replace(run.context, checkpoint=lose)
    run.work()
    run.assert_right()
    assert len(readings) == 3
    assert run.provider.rows_bought == ["one", "two"]


def test_batches_that_were_published_without_an_audit_are_doubtful_too(
    replay: Replays, caplog: pytest.LogCaptureFixture
) -> None:
    """Audits were off at first; when one finds a mismatch, those before are not passed over."""
    swap: list[Hook] = [lambda _job, blocks: blocks]
    run = replay(FakeProvider(on_results=lambda job, blocks: swap[0](job, blocks)), audit="off")
    while BatchState.PUBLISHED not in run.states():
        if run.step() is None:
            run.clock.advance(1.0)
    swap[0] = swapping()
    config = replace(run.context.config, audit=8)
    run.journal.update_run(run.context.run_id, now=run.clock(), config=config.to_json())
    run.context = replace(run.context, config=config)
    run.work()
    run.assert_right()
    assert quarantines(run) == 1
    assert "is not audited again" in caplog.text
    kinds = [event.kind for event in run.journal.events(run.context.run_id, limit=10_000)]
    assert kinds.count("audit_impossible") == 1


def test_a_batch_with_strange_keys_and_missing_rows_is_billed_for_what_it_reports(
    replay: Replays,
) -> None:
    """The results tell their tokens: the books hold these, and no estimate."""

    def strange(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label != run.provider.submitted[0]:
            return blocks
        (block,) = unknown("unknown-0")(job, blocks)
        kept = np.arange(1, len(block.keys))
        tokens = np.full(len(kept), 1000, dtype=np.int32)
        keys = block.keys[1:]
        return [replace(block, keys=keys, vectors=block.vectors[kept], tokens=tokens)]

    run = replay(FakeProvider(on_results=strange), [f"text {n}" for n in range(8)])
    run.work()
    run.assert_right()
    line = run.journal.ledger.find(run.provider.submitted[0])
    assert line is not None
    assert line.rows == 8
    assert 7 * 1000 <= line.tokens < 7 * 1000 + 100
