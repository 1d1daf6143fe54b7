"""Waiting: how often a batch is looked at, and how long, by a clock that never sleeps."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from embatch.client.auth import NoAuthorization
from embatch.client.calls import Calls
from embatch.client.cloud import Cloud
from embatch.client.flow import Flow, Thread, drive
from embatch.client.waiting import (
    adapted_timeout_s,
    await_completion,
    first_interval_s,
    wait_until_stopped,
)
from embatch.errors import (
    AuthenticationError,
    BatchTimeoutError,
    EmbatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.transport import Transport
from embatch.types.batch import EmbedContentBatch, EmbedContentBatchStats
from embatch.types.state import JobState

_BATCH = EmbedContentBatch(
    name="batches/x", display_name="x", label="x", model="m", state=JobState.PENDING
)


@dataclass
class _Clock:
    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class _Cloud:
    """One batch whose look depends on the time."""

    def __init__(self, clock: _Clock, look: Callable[[float], EmbedContentBatch]) -> None:
        self.calls = Calls(
            base_url="",
            authorization=NoAuthorization(),
            clock=lambda: clock.now,
            jitter=lambda: 0.5,
        )
        self._clock, self._look = clock, look

    def trying_once(self) -> "_Cloud":
        return self

    def cancel(self, _: str) -> Flow[None]:
        raise InvalidRequestError("cancelling batches/x: 400 FAILED_PRECONDITION.")
        yield  # a flow without effects

    def get(self, _: str) -> Flow[EmbedContentBatch]:
        return self._look(self._clock.now)
        yield  # a flow without effects


def _wait(look: Callable[[float], EmbedContentBatch], **asked: Any) -> tuple[Any, _Clock]:
    clock = _Clock()
    cloud = cast(Cloud, _Cloud(clock, look))
    asked = {"poll_interval": None, "timeout": 600.0, "on_progress": None, **asked}
    flow = await_completion(cloud, "batches/x", **asked)
    try:
        return drive(flow, Thread(Transport(), sleep=clock.sleep)), clock
    except BatchTimeoutError as error:
        return error, clock


def _stuck(rows: int) -> EmbedContentBatch:
    return replace(_BATCH, batch_stats=EmbedContentBatchStats(request_count=rows))


@pytest.mark.parametrize(
    ("rows", "seconds"),
    [(1, 2), (99, 2), (100, 5), (999, 5), (1_000, 10), (9_999, 10), (10_000, 30), (10**6, 30)],
)
def test_interval_by_size(rows: int, seconds: float) -> None:
    """2, 5, 10 or 30 seconds by the number of rows."""
    assert first_interval_s(rows) == seconds


def test_backs_off_while_nothing_moves() -> None:
    """Times 1.5 up to ten minutes."""
    _, clock = _wait(lambda _: _stuck(50), timeout=20_000.0)
    assert clock.slept[:4] == [2.0, 3.0, 4.5, 6.75]
    assert max(clock.slept) == 600.0


def test_returns_to_its_pace_when_the_batch_moves() -> None:
    """Progress brings the short interval back."""

    def look(now: float) -> EmbedContentBatch:
        done = int(now // 20)
        stats = EmbedContentBatchStats(request_count=50, successful_request_count=done)
        state = JobState.COMPLETED if done >= 3 else JobState.PROCESSING
        return replace(_BATCH, state=state, batch_stats=stats)

    batch, clock = _wait(look)
    assert batch.state is JobState.COMPLETED
    assert clock.slept.count(2.0) == 3


def test_fixed_interval_is_kept() -> None:
    """A given interval is what is slept, but for the end."""
    error, clock = _wait(lambda _: _stuck(50), poll_interval=7.0, timeout=30.0)
    assert clock.slept == [7.0, 7.0, 7.0, 7.0, 2.0]
    assert isinstance(error, BatchTimeoutError)
    assert error.name == "batches/x"


def test_outages_are_waited_through() -> None:
    """A service out of reach for a while does not end a wait of hours; its end is still seen."""

    def look(now: float) -> EmbedContentBatch:
        if 10 < now < 200:
            raise ProviderUnavailableError("looking at batches/x: 503. Try again later.")
        return replace(_BATCH, state=JobState.COMPLETED if now >= 200 else JobState.PENDING)

    batch, clock = _wait(look)
    assert batch.state is JobState.COMPLETED
    assert clock.now >= 200


def _passing(error: EmbatchError, until: float) -> Callable[[float], EmbedContentBatch]:
    def look(now: float) -> EmbedContentBatch:
        if now < until:
            raise error
        return replace(_BATCH, state=JobState.COMPLETED)

    return look


@pytest.mark.parametrize(
    "error",
    [
        ProviderUnavailableError("looking at batches/x: 503."),
        RateLimitError("looking at batches/x: 429."),
        RateLimitError("looking at batches/x: 429.", per_day=True),
    ],
)
def test_trouble_that_passes_is_outlived(error: EmbatchError) -> None:
    """From the first look on, up to the wait's own timeout."""
    seen: list[EmbedContentBatch] = []
    batch, clock = _wait(_passing(error, 500), on_progress=seen.append)
    assert batch.state is JobState.COMPLETED
    assert clock.slept[:3] == [2.0, 3.0, 4.5]
    assert seen == [batch]
    late, clock = _wait(_passing(error, 700))
    assert isinstance(late, BatchTimeoutError)
    assert late.name == "batches/x"
    assert str(error) in str(late)
    assert clock.now == 600


@pytest.mark.parametrize("poll_interval", [None, 1.0])
def test_waits_that_services_ask_for_are_kept(poll_interval: float | None) -> None:
    """No look comes before the time that the service named; the timeout stands all the same."""
    asked = RateLimitError("looking at batches/x: 429.", retry_after_s=100.0)
    looks: list[float] = []

    def look(now: float) -> EmbedContentBatch:
        looks.append(now)
        return _passing(asked, 250)(now)

    batch, _ = _wait(look, poll_interval=poll_interval)
    assert batch.state is JobState.COMPLETED
    assert looks == [0.0, 100.0, 200.0, 300.0]
    looks.clear()
    late, clock = _wait(look, poll_interval=poll_interval, timeout=150.0)
    assert isinstance(late, BatchTimeoutError)
    assert looks == [0.0, 100.0]
    assert clock.now == 150.0


@pytest.mark.parametrize(
    "error", [AuthenticationError, PermissionDeniedError, NotFoundError, InvalidRequestError]
)
def test_trouble_that_stays_ends_the_wait(error: type[EmbatchError]) -> None:
    """Waiting mends no key, no right and no name."""
    with pytest.raises(error):
        _wait(_passing(error("x"), 10))


def test_looks_are_tried_once() -> None:
    """The next look is the second try: tries within a look would overrun the timeout."""
    calls = Calls(base_url="", authorization=NoAuthorization())
    assert calls.policy.attempts > 1
    assert calls.trying_once().policy.attempts == 1


@pytest.mark.parametrize("ends", [True, False])
def test_cancels_refused_because_a_batch_has_ended(ends: bool) -> None:
    """A batch that ends between look and cancel is stopped; a refusal of other cause is told."""
    looks = iter([_BATCH, replace(_BATCH, state=JobState.COMPLETED) if ends else _BATCH])
    clock = _Clock()
    cloud = _Cloud(clock, lambda _: next(looks))
    flow = wait_until_stopped(cast(Cloud, cloud), "batches/x")
    performer = Thread(Transport(), sleep=clock.sleep)
    if ends:
        assert drive(flow, performer).is_terminal
        return
    with pytest.raises(InvalidRequestError):
        drive(flow, performer)


@pytest.mark.parametrize(("rows", "limit"), [(10, 600.0), (481, 601.0), (10_000, 10_120.0)])
def test_timeout_adapts(rows: int, limit: float) -> None:
    """A second a row and two minutes, at least ten minutes."""
    assert adapted_timeout_s(rows) == limit
    _, clock = _wait(lambda _: _stuck(rows), timeout=None)
    assert clock.now == pytest.approx(limit)
