"""A first small batch is decided before anything else is sent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from replaying import Replay, Replays

from embatch.errors import InvalidRequestError
from embatch.runs.outcomes import Stuck
from embatch.runs.probe import PROBE_ROWS, WORTH_ROWS
from embatch.testing.provider import FakeProvider, Job
from embatch.types.embedding import RowError
from embatch.types.results import ResultBlock
from embatch.types.state import BatchState, JobState

TEXTS = [f"text {n}" for n in range(WORTH_ROWS)]


def big(**hooks: object) -> FakeProvider:
    return FakeProvider(**hooks).limited(max_batch_items=60)


def sizes(run: Replay) -> list[int]:
    return [batch.items for batch in run.journal.batches.walk(run.context.run_id)]


def test_the_first_batch_is_small_and_goes_alone(replay: Replays) -> None:
    """Nothing else is begun until its part is published."""
    run = replay(big(), TEXTS)
    assert sizes(run) == [PROBE_ROWS, 60, 60, 60]
    while BatchState.PUBLISHED not in run.states():
        assert run.states()[1:] == [BatchState.PLANNED] * 3
        assert run.journal.leases.is_probing(run.context.run_id)
        if run.step() is None:
            run.clock.advance(1.0)
    assert not run.journal.leases.is_probing(run.context.run_id)
    run.work()
    run.assert_right()


@pytest.mark.parametrize(
    ("rows", "settings", "billed"),
    [(WORTH_ROWS - 1, {}, True), (WORTH_ROWS, {"probe": False}, True), (WORTH_ROWS, {}, False)],
)
def test_small_runs_free_ones_and_those_that_ask_for_none_have_no_probe(
    replay: Replays, rows: int, settings: dict[str, bool], billed: bool
) -> None:
    """All batches are cut full, and begun at once."""
    run = replay(big().limited(billed=billed), TEXTS[:rows], **settings)
    assert sizes(run)[0] == 60
    assert not run.journal.leases.is_probing(run.context.run_id)
    run.work()
    run.assert_right()


def test_copies_and_empty_texts_count_for_no_probe(replay: Replays) -> None:
    """What need not be bought makes no run large."""
    run = replay(big(), [*TEXTS[: WORTH_ROWS - 2], TEXTS[0], TEXTS[1]])
    assert sizes(run)[0] == 60


def test_a_planner_that_goes_on_cuts_no_second_probe(tmp_path: Path) -> None:
    """A crash after the first batch was journaled."""
    run = Replay(tmp_path, big(), TEXTS, planned=False)
    run.plan_once()
    token = run.journal.leases.claim_planning(run.context.run_id, owner="test", lease_s=60)
    assert token is not None
    from embatch.runs.planning import advance_planning

    advance_planning(run.context, token, lambda: True)
    run.journal.leases.release_planning(run.context.run_id, token)
    assert sizes(run) == [PROBE_ROWS]
    run.plan()
    assert sizes(run) == [PROBE_ROWS, 60, 60, 60]
    run.work()
    run.assert_right()
    run.journal.close()


def test_a_probe_that_is_sent_again_holds_the_rest_back_longer(replay: Replays) -> None:
    """Its child is the probe then, wait and all."""
    bad = iter([JobState.FAILED, JobState.EXPIRED])

    def spoil(job: Job) -> None:
        job.state = next(bad, JobState.COMPLETED)
        job.has_results = job.state is JobState.COMPLETED

    run = replay(big(on_job=spoil), TEXTS)
    while BatchState.PUBLISHED not in run.states():
        assert run.states()[1:4] == [BatchState.PLANNED] * 3
        if run.step() is None:
            due = run.journal.leases.next_due(run.context.run_id)
            run.clock.advance(max(0.01, due - run.clock()))
    run.work()
    run.assert_right()


def test_bad_rows_in_the_probe_fail_alone(replay: Replays) -> None:
    """One row in it is refused, and the run goes on."""
    run = replay(big(), TEXTS)

    def refuse(label: str) -> None:
        if "text 5" in run.provider._uploads[f"file-{label}"]:
            raise InvalidRequestError("bad row")

    run.provider.before_submit = refuse
    run.work()
    run.assert_right(failed={5})


def test_a_probe_without_a_single_vector_stops_the_run_with_its_reason(replay: Replays) -> None:
    """Twenty rows are refused one by one; not one more is sent."""
    error = RowError(code="invalid_argument", message="output_dimensionality: not supported")

    def fail(_job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        nothing = np.empty((0, 8), np.float32)
        return [ResultBlock(keys=[], vectors=nothing, errors=[(key, error) for key in block.keys])]

    run = replay(big(on_results=fail), TEXTS)
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    assert last.hopeless
    assert "output_dimensionality: not supported" in last.error
    assert "--no-probe" in last.error
    assert len(run.provider.rows_bought) == PROBE_ROWS


def test_a_probe_that_is_billed_more_than_can_be_in_it_stops_the_run(replay: Replays) -> None:
    """Tokens that no count of these texts can reach: the quote would not hold."""

    def overcharge(_job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        (block,) = blocks
        return [replace(block, tokens=np.full(len(block.keys), 500, np.int32))]

    run = replay(big(on_results=overcharge), TEXTS)
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    assert last.hopeless
    assert "10,000 tokens" in last.error
    assert len(run.provider.rows_bought) == PROBE_ROWS
    run.context = replace(run.context, config=replace(run.context.config, probe=False))
    run.journal.update_run(run.context.run_id, now=run.clock(), config=run.context.config.to_json())
    run.journal.batches.unblock(run.context.run_id, now=run.clock())
    run.work()
    run.assert_right()


def test_a_probe_whose_vectors_are_all_another_model_s_stops_for_a_person(
    replay: Replays,
) -> None:
    """The audit compares all twenty rows before it says so; nothing else is bought."""
    run = replay(big(on_embed=lambda matrix: np.roll(matrix, 1, axis=1)), TEXTS)
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    assert "20 of 20 rows" in last.error
    assert len(run.provider.rows_bought) == PROBE_ROWS
    assert run.states() == [BatchState.QUARANTINED] + [BatchState.PLANNED] * 3
    assert run.journal.leases.waits_for_person(run.context.run_id)
