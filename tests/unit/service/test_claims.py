"""A batch is worked on by one at a time, in order, and never written by who lost it."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embatch.errors import LeaseLostError
from embatch.service.claims import Claim, claim_next, is_outranked
from embatch.service.slices import embed_slice
from embatch.types.state import JobState

TEXTS = [f"text {row}" for row in range(25)]


def work(service: Any, claim: Claim, next_items: int = 10) -> None:
    """One slice, as the scheduler does it."""
    batch = claim.batch
    part = embed_slice(service.engine, claim.texts(), prompt=batch.prompt, dims=batch.dims)
    claim.commit(part, next_items=next_items)


def test_claims_come_by_priority_then_age(service: Any) -> None:
    """The highest priority goes first; among equals the oldest."""
    wanted = [("d", 5), ("b", 1), ("a", 0), ("c", 0), ("e", -3)]
    for label, priority in sorted(wanted):
        service.create(TEXTS, label, priority=priority)
    claims = []
    while claim := claim_next(service.store, slice_items=10):
        claims.append(claim)
    assert [(claim.batch.label, claim.batch.priority) for claim in claims] == wanted
    for claim in claims:
        claim.close()


def test_a_held_batch_is_not_given_to_another(service: Any) -> None:
    """While one holds a batch, no other store or thread gets it."""
    service.create(TEXTS)
    claim = claim_next(service.store, slice_items=10)
    assert claim is not None
    assert claim.batch.state is JobState.PROCESSING
    assert claim_next(service.open_store(), slice_items=10) is None
    assert claim_next(service.store, slice_items=10) is None
    claim.close()


def test_only_the_named_models_are_taken(service: Any) -> None:
    """A worker that has one model leaves batches of others alone."""
    service.create(TEXTS, "other", model="other")
    assert claim_next(service.store, slice_items=10, models=["fake"]) is None
    assert not is_outranked(service.store, -1, models=["fake"])
    claim = claim_next(service.store, slice_items=10, models=["fake", "other"])
    assert claim is not None
    claim.close()


def test_counts_move_with_every_slice(service: Any) -> None:
    """Rows done, failures and tokens are true after each slice, seen by any process."""
    texts = [*TEXTS]
    texts[12] = "POISON pill"
    batch = service.create(texts)
    claim = claim_next(service.store, slice_items=10)
    assert claim is not None
    seen = []
    for _ in range(3):
        work(service, claim)
        now = service.open_store().get(batch.id)
        seen.append((now.rows_done, now.failed, now.tokens, now.state.value))
    claim.close()
    assert seen == [
        (10, 0, 40, "processing"),
        (20, 1, 76, "processing"),
        (25, 1, 96, "completed"),
    ]


def test_a_released_batch_goes_on_and_nothing_is_redone(service: Any) -> None:
    """Who gives a batch back between slices leaves no work undone and none to count."""
    batch = service.create(TEXTS)
    claim = claim_next(service.store, slice_items=10)
    assert claim is not None
    work(service, claim)
    claim.release()
    claim.close()
    again = claim_next(service.store, slice_items=100)
    assert again is not None
    assert again.texts() == TEXTS[10:]
    work(service, again)
    again.close()
    assert service.store.get(batch.id).state is JobState.COMPLETED
    assert service.store.items_redone() == 0
    assert (service.vectors(batch.id) == service.engine.expected(TEXTS)).all()


def test_a_slice_lost_with_its_worker_is_counted_once(service: Any) -> None:
    """Who takes over from the dead computes the slice again, and the store counts its rows."""
    batch = service.create(TEXTS)
    for _ in range(2):
        claim = claim_next(service.store, slice_items=10)
        assert claim is not None
        claim.close()  # as the kernel does when the process dies
    claim = claim_next(service.store, slice_items=4)
    assert claim is not None
    assert claim.texts() == TEXTS[:4]
    claim.close()
    assert service.store.get(batch.id).items_redone == 20
    service.store.delete(batch.id)
    assert service.store.items_redone() == 20


def test_cancelling_keeps_what_is_done_and_refuses_the_rest(service: Any) -> None:
    """The slice in hand at the moment of cancelling is not recorded; those before stay."""
    batch = service.create(TEXTS)
    claim = claim_next(service.store, slice_items=10)
    assert claim is not None
    work(service, claim)
    service.store.cancel(batch.id)
    with pytest.raises(LeaseLostError, match="cancelled"):
        work(service, claim)
    for call in (claim.release, lambda: claim.fail("late")):
        with pytest.raises(LeaseLostError):
            call()
    claim.close()
    ended = service.store.get(batch.id)
    assert (ended.state, ended.rows_done, ended.error) == (JobState.CANCELLED, 10, None)
    assert (service.vectors(batch.id) == service.engine.expected(TEXTS[:10])).all()


def test_a_deleted_batch_does_not_come_back(service: Any) -> None:
    """A worker whose batch was deleted writes nothing and learns of it."""
    batch = service.create(TEXTS)
    claim = claim_next(service.store, slice_items=10)
    assert claim is not None
    service.store.delete(batch.id)
    with pytest.raises(LeaseLostError, match="deleted"):
        work(service, claim)
    claim.close()
    assert not service.store.folder(batch.id).exists()
    assert service.store.page() == []


@pytest.mark.parametrize("name", ["requests.arrow", "results.bin", "lock"])
def test_a_batch_whose_files_are_gone_fails_and_holds_up_nobody(service: Any, name: str) -> None:
    """Lost files end their batch with a reason, and the next batch is taken."""
    broken = service.create(TEXTS, "broken", priority=9)
    service.create(TEXTS, "sound")
    (service.store.folder(broken.id) / name).unlink()
    claim = claim_next(service.store, slice_items=10)
    assert claim is not None
    assert claim.batch.label == "sound"
    claim.close()
    failed = service.store.get(broken.id)
    assert failed.state is JobState.FAILED
    assert "submit it again" in (failed.error or "")


def test_only_a_free_batch_of_higher_priority_outranks(service: Any) -> None:
    """A batch that somebody works on, or one of equal priority, is no reason to give way."""
    service.create(TEXTS, "equal", priority=5)
    assert not is_outranked(service.store, 5)
    assert is_outranked(service.store, 4)
    claim = claim_next(service.store, slice_items=10)
    assert claim is not None
    assert not is_outranked(service.store, 4)
    claim.close()
    assert is_outranked(service.store, 4)


step = st.tuples(st.sampled_from(["commit", "release", "die", "die written"]), st.integers(1, 9))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(step, max_size=12), poisoned=st.sets(st.integers(0, 24)))
def test_any_history_ends_in_the_same_results(
    service: Any, steps: list[tuple[str, int]], poisoned: set[int]
) -> None:
    """Slices of any size, deaths before and after writing: the results are always the truth."""
    texts = [f"{row} POISON" if row in poisoned else text for row, text in enumerate(TEXTS)]
    batch = service.create(texts)
    lost = 0
    for deed, items in [*steps, ("commit", 25)]:
        claim = claim_next(service.store, slice_items=items)
        if claim is None:
            break
        if deed == "release":
            claim.release()
        elif deed == "commit":
            work(service, claim, next_items=1)
            if not claim.batch.done:
                claim.release()
        else:
            lost += claim.slice_items
            if deed == "die written":
                part = embed_slice(service.engine, claim.texts(), prompt="", dims=8)
                claim._results.write(claim.batch.rows_done, part)
        claim.close()
    ended = service.store.get(batch.id)
    blocks = list(service.store.results(batch.id, block_rows=4))
    service.store.delete(batch.id)
    truth = service.engine.expected(texts)
    assert ended.state is JobState.COMPLETED
    assert ended.items_redone == lost
    assert {row for block in blocks for row, _ in block.errors} == poisoned
    assert sum(len(block.rows) for block in blocks) == len(texts) - len(poisoned)
    for block in blocks:
        assert block.vectors.tobytes() == truth[block.rows].tobytes()
