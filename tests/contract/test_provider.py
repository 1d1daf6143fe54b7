"""What every provider must do, whatever service stands behind it."""

from typing import Any

import numpy as np
import pytest

from embatch.errors import NotFoundError
from embatch.providers.base import wire_key
from embatch.types.embedding import RowError
from embatch.types.results import Matrix
from embatch.types.state import JobState

TEXTS = [f"text number {row} {'long ' * (row % 7)}" for row in range(350)]
LABEL = "embatch-run-0-1"


def submit(case: Any, staged: Any, label: str = LABEL, priority: int = 0) -> str:
    """Uploads and submits; the batch's name."""
    ref = case.provider.upload(staged, label)
    batch = case.provider.submit(ref, label, items=staged.items, priority=priority)
    assert batch.label == label
    return batch.name


def collect(case: Any, name: str) -> tuple[dict[str, np.ndarray], dict[str, RowError]]:
    """All vectors and errors by wire key, each key once."""
    vectors: dict[str, np.ndarray] = {}
    errors: dict[str, RowError] = {}
    for block in case.provider.results(name):
        assert block.vectors.dtype == np.float32
        assert block.vectors.flags.c_contiguous
        assert block.tokens is None or len(block.tokens) == len(block.keys)
        assert block.truncated is None or len(block.truncated) == len(block.keys)
        for key, vector in zip(block.keys, block.vectors, strict=True):
            assert key not in vectors
            vectors[key] = vector
        for key, error in block.errors:
            assert key not in errors
            errors[key] = error
    assert not vectors.keys() & errors.keys()
    return vectors, errors


def rows_of(vectors: dict[str, np.ndarray], label: str, rows: list[int]) -> Matrix:
    """The vectors of `rows`, joined by wire key."""
    return np.stack([vectors[wire_key(label, row)] for row in rows])


def test_every_row_comes_back_once_under_its_key(case: Any, stage: Any, ended: Any) -> None:
    """Submitted, found, polled, read: each key once, each vector its own text's."""
    name = submit(case, stage(TEXTS))
    found = case.provider.find(LABEL)
    assert (found.name, found.label) == (name, LABEL)
    status = ended(name)
    assert status.state is JobState.COMPLETED
    assert status.has_results
    assert status.error is None
    assert (status.progress.total, status.progress.succeeded) == (len(TEXTS), len(TEXTS))
    vectors, errors = collect(case, name)
    assert errors == {}
    assert len(vectors) == len(TEXTS)
    everything = rows_of(vectors, LABEL, list(range(len(TEXTS))))
    assert everything.tobytes() == case.truth(TEXTS).tobytes()


def test_results_can_be_read_again(case: Any, stage: Any, ended: Any) -> None:
    """Reading is not taking: a second reader gets the same."""
    name = submit(case, stage(TEXTS))
    ended(name)
    first, second = collect(case, name)[0], collect(case, name)[0]
    assert first.keys() == second.keys()
    assert all((first[key] == second[key]).all() for key in first)


def test_two_batches_do_not_mix(case: Any, stage: Any, ended: Any) -> None:
    """Batches submitted side by side have their own texts' vectors, under their own keys."""
    reverse = TEXTS[::-1]
    one = submit(case, stage(TEXTS, "00001"), "label-1")
    two = submit(case, stage(reverse, "00002"), "label-2", priority=3)
    assert ended(one).done
    assert ended(two).done
    for name, label, texts in ((one, "label-1", TEXTS), (two, "label-2", reverse)):
        vectors, _ = collect(case, name)
        everything = rows_of(vectors, label, list(range(len(texts))))
        assert everything.tobytes() == case.truth(texts).tobytes()


def test_a_poisoned_row_fails_alone(case: Any, stage: Any, ended: Any) -> None:
    """The bad row is an error under its key; all others have their vectors."""
    texts = [*TEXTS]
    texts[123] = "a POISON text"
    name = submit(case, stage(texts))
    status = ended(name)
    assert (status.progress.succeeded, status.progress.failed) == (len(texts) - 1, 1)
    vectors, errors = collect(case, name)
    assert list(errors) == [wire_key(LABEL, 123)]
    assert "POISON" not in errors[wire_key(LABEL, 123)].message
    good = [row for row in range(len(texts)) if row != 123]
    assert rows_of(vectors, LABEL, good).tobytes() == case.truth(texts)[good].tobytes()


def test_an_unknown_label_is_not_found(case: Any, stage: Any) -> None:
    """A label that was never submitted gives None, beside others that were."""
    assert case.provider.find("never submitted") is None
    submit(case, stage(TEXTS))
    assert case.provider.find("never submitted") is None
    assert case.provider.find(LABEL + "0") is None


def test_an_unknown_name_is_an_error(case: Any, stage: Any, ended: Any) -> None:
    """Polling what the service does not know, or knows no longer, raises NotFoundError."""
    name = submit(case, stage(TEXTS))
    ended(name)
    with pytest.raises(NotFoundError):
        case.provider.poll(name + "0")
    case.provider.discard(name, None)
    with pytest.raises(NotFoundError):
        case.provider.poll(name)


def test_a_batch_under_way_says_so(case: Any, stage: Any, ended: Any) -> None:
    """Until its end a batch is not done and has no results."""
    case.hold()
    name = submit(case, stage(TEXTS))
    status = case.provider.poll(name)
    assert status.state in {JobState.PENDING, JobState.PROCESSING}
    assert not status.done
    assert not status.has_results
    assert status.progress.total == len(TEXTS)
    case.release()
    assert ended(name).state is JobState.COMPLETED


def test_cancelling_ends_a_batch_and_keeps_what_is_done(case: Any, stage: Any, ended: Any) -> None:
    """A cancelled batch ends; whatever results it has are right, and cancelling again is fine."""
    case.hold()
    name = submit(case, stage(TEXTS))
    case.provider.cancel(name)
    case.provider.cancel(name)
    case.release()
    status = ended(name)
    assert status.state is JobState.CANCELLED
    if status.has_results:
        vectors, _ = collect(case, name)
        rows = sorted(int(key.rpartition(":")[2]) for key in vectors)
        assert rows_of(vectors, LABEL, rows).tobytes() == case.truth(TEXTS)[rows].tobytes()


def test_cancelling_a_finished_batch_changes_nothing(case: Any, stage: Any, ended: Any) -> None:
    """A batch that completed stays completed, with its results."""
    name = submit(case, stage(TEXTS))
    ended(name)
    case.provider.cancel(name)
    assert case.provider.poll(name).state is JobState.COMPLETED
    assert len(collect(case, name)[0]) == len(TEXTS)


def test_discarding_is_complete_and_may_be_repeated(case: Any, stage: Any, ended: Any) -> None:
    """A discarded batch is not found any more; doing it again, or without a name, is fine."""
    staged = stage(TEXTS)
    ref = case.provider.upload(staged, LABEL)
    name = case.provider.submit(ref, LABEL, items=staged.items, priority=0).name
    ended(name)
    for _ in range(2):
        case.provider.discard(name, ref)
    case.provider.discard(None, ref)
    case.provider.discard(None, None)
    assert case.provider.find(LABEL) is None
    assert staged.path.exists()


def test_an_upload_may_be_discarded_before_it_is_submitted(case: Any, stage: Any) -> None:
    """An input that no batch will use can be taken back, and given again."""
    staged = stage(TEXTS)
    case.provider.discard(None, case.provider.upload(staged, LABEL))
    assert case.provider.find(LABEL) is None
    assert submit(case, staged)


def test_interactive_vectors_are_in_the_same_space(case: Any) -> None:
    """A few texts embedded now have the vectors that a batch would give, in order."""
    texts = TEXTS[:20]
    assert case.provider.embed(texts).vectors.tobytes() == case.truth(texts).tobytes()


def test_queries_use_the_query_side(case: Any) -> None:
    """With documents in the space, a query is embedded for the query task."""
    made = case.provider.embed(["what is it"], query=True)
    assert made.vectors.tobytes() == case.truth(["what is it"], query=True).tobytes()
    assert (made.vectors != case.provider.embed(["what is it"]).vectors).any()


def test_space_and_limits_are_sound(case: Any) -> None:
    """The space says what the vectors are, and every limit allows at least one item."""
    space, limits = case.provider.space, case.provider.limits
    assert space.dims == case.truth(["a"]).shape[1]
    assert space.task_type == "retrieval_document"
    assert (
        min(
            limits.max_batch_items,
            limits.max_batch_tokens,
            limits.max_batch_bytes,
            limits.max_in_flight_batches,
            limits.max_item_tokens,
        )
        > 0
    )


def test_closing_twice_is_fine(case: Any, stage: Any, ended: Any) -> None:
    """A provider can be closed after work and again."""
    ended(submit(case, stage(TEXTS)))
    case.provider.close()
    case.provider.close()
