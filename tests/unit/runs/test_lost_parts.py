"""Parts that are lost after they were journaled, and results that do not fit any more."""

from dataclasses import replace

import numpy as np
import pytest
from replaying import Replay, Replays
from spoiling import swapping, unknown

from embatch.errors import NotFoundError, ProviderUnavailableError
from embatch.runs.outcomes import Stuck
from embatch.runs.resolve import resolve_batch
from embatch.runs.trouble import UNREADABLE_FOR_S
from embatch.testing.provider import FakeProvider, Job
from embatch.types.results import ResultBlock

DAY_S = 24 * 3600.0


def losing(run: Replay, readings: list[str]) -> Replay:
    """The part of the first reading goes as soon as it is journaled."""

    def lose(name: str) -> None:
        if name == "part.journaled" and len(readings) == 1:
            for path in run.context.paths.parts.glob(".part-*"):
                path.unlink()

    run.context = replace(run.context, checkpoint=lose)
    return run


def lacking(block: ResultBlock, row: int) -> ResultBlock:
    """One row has no line."""
    kept = np.setdiff1d(np.arange(len(block.keys)), [row])
    keys = [block.keys[index] for index in kept]
    return replace(block, keys=keys, vectors=block.vectors[kept])


@pytest.mark.parametrize("for_good", [False, True])
def test_a_second_reading_with_other_errors_doubles_and_loses_no_row(
    replay: Replays, for_good: bool
) -> None:
    """Row 3 went on in a child when row 5 is the one without a line. When that does not end, the
    rows of the lost part are bought again after five days, and no others."""
    readings: list[str] = []

    def hook(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label != run.provider.submitted[0]:
            return blocks
        readings.append(job.label)
        run.clock.advance(DAY_S / 3)
        first_again = len(readings) > 3 and not for_good
        return [lacking(blocks[0], 3 if len(readings) == 1 or first_again else 5)]

    texts = [f"text {n}" for n in range(8)]
    run = losing(replay(FakeProvider(on_results=hook), texts), readings)
    began = run.clock()
    run.work()
    run.assert_right()
    bought = {text: run.provider.rows_bought.count(text) for text in texts}
    assert bought == {text: 2 if for_good or text == "text 3" else 1 for text in texts}
    assert (run.clock() - began > UNREADABLE_FOR_S) is for_good


@pytest.mark.parametrize("lost", [False, True])
def test_a_quarantined_batch_that_can_never_be_read_is_bought_again(
    replay: Replays, lost: bool
) -> None:
    """Its results held keys that nobody sent, and cannot be read to free it; with `lost`, its
    part was journaled and lost before."""
    readings: list[str] = []

    def hook(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label != run.provider.submitted[0]:
            return blocks
        readings.append(job.label)
        if len(readings) == 1 + lost:
            return unknown("unknown-0")(job, blocks)
        if lost and len(readings) == 1:
            return [lacking(blocks[0], 3)]
        run.clock.advance(DAY_S / 3)
        raise ProviderUnavailableError("503")

    texts = [f"text {n}" for n in range(8)]
    run = losing(replay(FakeProvider(on_results=hook), texts), readings)
    run.work()
    run.assert_right()
    assert 12 <= len(readings) < 24
    bought = {text: run.provider.rows_bought.count(text) for text in texts}
    assert bought == dict.fromkeys(texts, 2)


@pytest.mark.parametrize("trouble", ["unreadable", "foreign", "swapped", "gone"])
def test_a_lost_part_whose_results_never_fit_again_is_bought_again(
    replay: Replays, trouble: str
) -> None:
    """After five days, or when a person says that the job is gone; each row is written once."""
    readings: list[str] = []

    def hook(job: Job, blocks: list[ResultBlock]) -> list[ResultBlock]:
        if job.label != run.provider.submitted[0]:
            return blocks
        readings.append(job.label)
        if len(readings) == 1:
            return [lacking(blocks[0], 3)]
        run.clock.advance(DAY_S / 3)
        if trouble == "foreign":
            return unknown("0123456789ab:0")(job, blocks)
        if trouble == "swapped":
            return swapping()(job, blocks)
        if trouble == "unreadable":
            raise ProviderUnavailableError("503")
        run.provider.jobs.pop("jobs/0", None)
        raise NotFoundError("404")

    texts = [f"text {n}" for n in range(8)]
    run = losing(replay(FakeProvider(on_results=hook), texts, audit="all"), readings)
    last = run.work()[-1]
    assert isinstance(last, Stuck) is (trouble == "gone")
    if trouble == "gone":
        resolve_batch(run.context, 0, adopt=None)
        run.journal.batches.unblock(run.context.run_id, now=run.clock())
        run.work()
    run.assert_right()
    bought = {text: run.provider.rows_bought.count(text) for text in texts}
    assert bought == dict.fromkeys(texts, 2)
