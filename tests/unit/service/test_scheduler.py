"""The scheduler computes what matters most, goes on whatever happens, and says how it does."""

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from embatch.errors import ConfigError, ProviderUnavailableError
from embatch.service.claims import Claim, claim_next
from embatch.service.files import ResultFile, SliceResult
from embatch.service.scheduler import Scheduler
from embatch.testing import FakeEngine
from embatch.types.results import Embedded
from embatch.types.state import JobState

TEXTS = [f"text {row}" for row in range(35)]


class Gated(FakeEngine):
    """An engine whose calls wait until they are let through, one by one."""

    def __init__(self) -> None:
        self._gate = threading.Semaphore(0)
        self.waiting = threading.Event()
        self.order: list[str] = []
        super().__init__(8, delay_s=1.0, sleep=self._wait)

    def _wait(self, _: float) -> None:
        self.waiting.set()
        assert self._gate.acquire(timeout=20)

    def let_through(self, calls: int = 1) -> None:
        self._gate.release(calls)

    def embed(self, texts: Sequence[str], **options: Any) -> Embedded:
        self.order.append(texts[0])
        return super().embed(texts, **options)


def test_a_batch_is_computed_to_the_end(service: Any) -> None:
    """All rows have the vectors of their texts, with prompt and dims, and health tells so."""
    batch = service.create(TEXTS, prompt="p: ", dims=5)
    scheduler = service.scheduler()
    ended = service.finished(batch.id)
    assert ended.state is JobState.COMPLETED
    assert ended.items_redone == 0
    assert ended.started_at is not None
    assert (service.vectors(batch.id) == service.engine.expected(TEXTS, prompt="p: ", dims=5)).all()
    health = scheduler.health()
    assert health.alive
    assert health.last_progress_at == ended.updated_at
    assert service.engine.calls == 4


def test_a_wake_up_is_answered_at_once(
    service: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """A scheduler that would look again in an hour starts a batch when woken, then rests again."""
    looks: list[Claim | None] = []

    def look(*given: Any, **options: Any) -> Claim | None:
        looks.append(claim_next(*given, **options))
        return looks[-1]

    monkeypatch.setattr("embatch.service.scheduler.claim_next", look)
    scheduler = service.scheduler(idle_poll_s=3600.0)
    batch = service.create(TEXTS)
    scheduler.wake()
    assert service.finished(batch.id).state is JobState.COMPLETED
    eventually(lambda: looks[-1] is None)
    other = service.create(TEXTS, label="other")
    time.sleep(0.1)  # it rests
    assert service.store.get(other.id).state is JobState.PENDING
    scheduler.wake()
    assert service.finished(other.id).state is JobState.COMPLETED


def test_batches_of_other_processes_are_found_without_a_wake_up(service: Any) -> None:
    """An idle scheduler notices what another store created."""
    service.scheduler(idle_poll_s=0.01)
    batch = service.open_store().create(
        label="x", requests=service.requests(TEXTS), items=len(TEXTS), model="fake", dims=8
    )
    assert service.finished(batch.id).state is JobState.COMPLETED


def test_an_urgent_batch_goes_first_between_slices(
    service: Any, eventually: Callable[..., None]
) -> None:
    """A batch of higher priority waits for one slice of the running batch only."""
    engine = Gated()
    slow = service.create([f"slow {row}" for row in range(30)], "slow")
    service.scheduler(engine_for=lambda _: engine)
    assert engine.waiting.wait(10)
    urgent = service.create([f"urgent {row}" for row in range(20)], "urgent", priority=1)
    engine.let_through(3)
    eventually(lambda: service.store.get(urgent.id).done)
    assert service.store.get(slow.id).rows_done == 10
    engine.let_through(2)
    assert service.finished(slow.id).items_redone == 0
    assert engine.order == ["slow 0", "urgent 0", "urgent 10", "slow 10", "slow 20"]


def test_a_raised_priority_counts_from_the_next_slice(service: Any) -> None:
    """Changing the priority of a waiting batch brings it before the running one."""
    engine = Gated()
    first = service.create([f"first {row}" for row in range(20)], "first")
    second = service.create([f"second {row}" for row in range(10)], "second", priority=-1)
    service.scheduler(engine_for=lambda _: engine)
    assert engine.waiting.wait(10)
    service.store.set_priority(second.id, 8)
    engine.let_through(3)
    service.finished(first.id)
    assert engine.order == ["first 0", "second 0", "first 10"]


def test_interactive_calls_go_ahead_of_slices(
    service: Any, eventually: Callable[..., None]
) -> None:
    """While an interactive call runs, the next slice waits; the running one is not disturbed."""
    engine = Gated()
    batch = service.create([f"batch {row}" for row in range(20)])
    scheduler: Scheduler = service.scheduler(engine_for=lambda _: engine)
    assert engine.waiting.wait(10)
    interactive = Gated()
    scheduler._engine_for = lambda model: interactive if model == "now" else engine
    made: list[Embedded] = []
    caller = threading.Thread(
        target=lambda: made.append(scheduler.embed_now("now", ["now"], prompt="q: ", dims=4))
    )
    caller.start()
    assert interactive.waiting.wait(10)
    engine.let_through(2)
    eventually(lambda: bool(scheduler._gate._waiters) or len(engine.order) > 1)
    assert engine.order == ["batch 0"]
    assert service.store.get(batch.id).rows_done == 10
    interactive.let_through(1)
    caller.join(10)
    assert (made[0].vectors == engine.expected(["now"], prompt="q: ", dims=4)).all()
    assert service.finished(batch.id).state is JobState.COMPLETED


def test_cancelling_stops_within_a_slice_and_keeps_what_is_done(
    service: Any, eventually: Callable[..., None]
) -> None:
    """A cancelled batch ends at once; the scheduler takes the next one."""
    engine = Gated()
    batch = service.create(TEXTS, "one")
    other = service.create(["other"], "other")
    service.scheduler(engine_for=lambda _: engine)
    engine.let_through(1)
    eventually(lambda: service.store.get(batch.id).rows_done == 10)
    assert service.store.cancel(batch.id).state is JobState.CANCELLED
    engine.let_through(2)
    assert service.finished(other.id).state is JobState.COMPLETED
    assert (service.vectors(batch.id) == engine.expected(TEXTS[:10])).all()


def test_a_deleted_batch_does_not_stop_the_rest(service: Any) -> None:
    """Deleting the batch in work loses its slice and nothing else."""
    engine = Gated()
    batch = service.create(TEXTS, "one")
    other = service.create(["other"], "other")
    service.scheduler(engine_for=lambda _: engine)
    assert engine.waiting.wait(10)
    service.store.delete(batch.id)
    engine.let_through(2)
    assert service.finished(other.id).state is JobState.COMPLETED
    assert [found.label for found in service.store.page()] == ["other"]


def test_a_model_that_cannot_be_loaded_fails_its_batch_only(service: Any) -> None:
    """The batch says why, foreign words are not quoted, and other batches are computed."""

    def engine_for(model: str) -> FakeEngine:
        if model == "missing":
            raise ConfigError("model 'missing' is not installed: pip install it")
        if model == "broken":
            raise ValueError("something private")
        return service.engine

    missing = service.create(TEXTS, "a", model="missing")
    broken = service.create(TEXTS, "b", model="broken")
    sound = service.create(TEXTS, "c")
    service.scheduler(engine_for=engine_for)
    assert service.finished(sound.id).state is JobState.COMPLETED
    failed = service.store.get(missing.id)
    assert failed.state is JobState.FAILED
    assert failed.error == (
        "the model cannot be loaded: model 'missing' is not installed: pip install it"
    )
    assert service.store.get(broken.id).error == "the model cannot be loaded: unexpected ValueError"


def test_an_engine_that_breaks_fails_the_batch_with_its_reason(
    service: Any, eventually: Callable[..., None]
) -> None:
    """A batch whose engine embeds nothing fails; the rows done before stay."""
    batch = service.create(TEXTS)
    engine = Gated()
    service.scheduler(engine_for=lambda _: engine)
    engine.let_through(1)
    eventually(lambda: service.store.get(batch.id).rows_done == 10)
    engine._poison = ""
    engine.let_through(2)
    failed = service.finished(batch.id)
    assert failed.state is JobState.FAILED
    assert "embeds no text at all" in (failed.error or "")
    assert len(service.vectors(batch.id)) == failed.rows_done


def test_a_full_disk_pauses_and_nothing_is_computed_again(
    service: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """While the disk is full the reason is in health; with room again, work goes on as it was."""
    full = threading.Event()
    full.set()
    write = ResultFile.write

    def refusing(file: ResultFile, start: int, part: SliceResult) -> None:
        if full.is_set() and start == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, start, part)

    monkeypatch.setattr(ResultFile, "write", refusing)
    batch = service.create(TEXTS)
    scheduler: Scheduler = service.scheduler(retry_s=0.01)
    eventually(lambda: scheduler.health().paused_reason is not None)
    assert scheduler.health().paused_reason == "the disk refused: No space left on device"
    assert scheduler.health().current_batches == (batch.id,)
    assert service.store.get(batch.id).rows_done == 10
    full.clear()
    assert service.finished(batch.id).state is JobState.COMPLETED
    eventually(lambda: scheduler.health().paused_reason is None)
    assert service.engine.texts_embedded == len(TEXTS)
    assert service.store.items_redone() == 0


def test_a_full_disk_under_the_database_pauses_too(
    service: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """A commit that the database refuses is tried again with the slice in hand."""
    commit, refusals = Claim.commit, iter(range(3))

    def refusing(claim: Claim, part: SliceResult, *, next_items: int) -> None:
        if next(refusals, None) is not None:
            raise ProviderUnavailableError("database or disk is full")
        commit(claim, part, next_items=next_items)

    monkeypatch.setattr(Claim, "commit", refusing)
    batch = service.create(TEXTS)
    service.scheduler(retry_s=0.001)
    assert service.finished(batch.id).state is JobState.COMPLETED
    assert next(refusals, None) is None
    assert service.engine.texts_embedded == len(TEXTS)


def test_trouble_with_one_batchs_files_is_that_batchs_only(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the disk that room does not heal fails the batch instead of holding up all."""
    write = ResultFile.write
    broken = service.create(TEXTS[:5], "broken")
    sound = service.create(TEXTS, "sound")

    def refusing(file: ResultFile, start: int, part: SliceResult) -> None:
        if len(part.tokens) == 5 and start == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        write(file, start, part)

    monkeypatch.setattr(ResultFile, "write", refusing)
    service.scheduler()
    assert service.finished(sound.id).state is JobState.COMPLETED
    assert service.store.get(broken.id).error == "the disk refused: Input/output error"


def test_stopping_ends_after_the_slice_in_hand(service: Any) -> None:
    """What is stopped gives its batch back; the next scheduler goes on, and nothing is redone."""
    engine = Gated()
    batch = service.create(TEXTS)
    scheduler = service.scheduler(engine_for=lambda _: engine)
    assert engine.waiting.wait(10)
    assert not scheduler.stop(0.0)
    engine.let_through(1)
    assert scheduler.stop(10.0)
    assert not scheduler.health().alive
    assert service.store.get(batch.id).rows_done == 10
    service.scheduler()
    assert service.finished(batch.id).items_redone == 0
    assert service.engine.texts_embedded == len(TEXTS) - 10


def test_stopping_twice_or_before_the_start_is_fine(service: Any) -> None:
    """A scheduler that never ran has nothing to end."""
    scheduler = Scheduler(service.store, lambda _: service.engine)
    assert scheduler.stop()
    assert not scheduler.health().alive
    running = service.scheduler()
    running.start()
    assert running.stop(10.0)
    assert running.stop(10.0)


def test_two_batches_are_under_way_at_once(service: Any, eventually: Callable[..., None]) -> None:
    """While a slice of one ends, a slice of the other keeps the engine busy; never three."""
    engine = Gated()
    batches = [service.create([f"{name} {n}" for n in range(10)], label=name) for name in "abc"]
    scheduler = service.scheduler(engine_for=lambda _: engine, workers=2)
    eventually(lambda: len(engine.order) == 2)
    assert set(scheduler.health().current_batches) == {batch.id for batch in batches[:2]}
    engine.let_through(3)
    for batch in batches:
        assert service.finished(batch.id).items_redone == 0
    assert sorted(engine.order) == ["a 0", "b 0", "c 0"]


def test_no_worker_goes_on_with_lesser_batches_beside_an_urgent_one(
    service: Any, eventually: Callable[..., None]
) -> None:
    """Both workers leave theirs: one takes the urgent batch, the other waits for its last slice."""
    engine = Gated()
    for name in "ab":
        service.create([f"{name} {n}" for n in range(40)], label=name)
    service.scheduler(engine_for=lambda _: engine, workers=2)
    eventually(lambda: len(engine.order) == 2)
    urgent = service.create([f"urgent {n}" for n in range(30)], label="urgent", priority=9)
    engine.let_through(2)
    for slices in (1, 2, 3):
        eventually(lambda slices=slices: f"urgent {10 * slices - 10}" in engine.order)
        if slices < 3:
            time.sleep(0.1)  # time in which the other worker could do wrong
            assert len(engine.order) == 2 + slices
            engine.let_through()
    eventually(lambda: len(engine.order) == 6)
    engine.let_through(100)
    assert service.finished(urgent.id).items_redone == 0


def test_the_reason_of_a_pause_outlives_idle_workers(
    service: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    """A worker with nothing to do does not say that the other one's disk is fine."""

    def refusing(file: ResultFile, start: int, part: SliceResult) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ResultFile, "write", refusing)
    service.create(TEXTS)
    scheduler = service.scheduler(workers=2, retry_s=30.0, idle_poll_s=0.01)
    eventually(lambda: scheduler.health().paused_reason is not None)
    for _ in range(20):
        time.sleep(0.01)  # the idle worker looks around
        assert "No space left" in str(scheduler.health().paused_reason)


def test_the_end_of_a_batch_is_foreseen_by_its_last_slice(service: Any) -> None:
    """Rows left at the rate of the last slice, less the time since this one began."""
    now = [0.0]
    foreseen: list[float | None] = []

    class Timed(FakeEngine):
        def embed(self, texts: Sequence[str], **options: Any) -> Embedded:
            foreseen.append(scheduler.remaining_s(service.store.get(batch.id)))
            now[0] += 2.0
            return super().embed(texts, **options)

    batch = service.create(["x"] * 40)
    engine = Timed(8)
    scheduler = Scheduler(
        service.store, lambda _: engine, slice_items=10, slice_s=None, clock=lambda: now[0]
    )
    scheduler.start()
    service.finished(batch.id)
    assert scheduler.stop(10.0)
    assert foreseen == [None, 6.0, 4.0, 2.0]
    assert scheduler.remaining_s(service.store.get(batch.id)) is None


def test_slices_shrink_for_a_slow_engine(service: Any) -> None:
    """An engine that needs long for a slice gets smaller ones, so that urgent batches wait less."""
    now = [0.0]

    class Slow(FakeEngine):
        sizes: list[int] = []  # noqa: RUF012 - one instance

        def embed(self, texts: Sequence[str], **options: Any) -> Embedded:
            now[0] += len(texts) / 20
            self.sizes.append(len(texts))
            return super().embed(texts, **options)

    engine = Slow(8)
    batch = service.create(["x"] * 1000)
    service.scheduler(
        engine_for=lambda _: engine, slice_items=1024, slice_s=2.0, clock=lambda: now[0]
    )
    service.finished(batch.id)
    assert engine.sizes[:4] == [256, 40, 40, 40]
