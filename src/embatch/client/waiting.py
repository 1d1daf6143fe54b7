"""Waiting for a batch: how often to look, how long, and through what trouble."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from embatch.client.cloud import Cloud
from embatch.client.flow import Flow, Notify, Sleep, perform
from embatch.errors import (
    BatchTimeoutError,
    InvalidRequestError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.types.batch import EmbedContentBatch

POLL_STEPS_S: Final = ((100, 2.0), (1_000, 5.0), (10_000, 10.0))
"""Batches of fewer rows are looked at every so many seconds."""
SLOWEST_START_S: Final = 30.0
BACKOFF: Final = 1.5
LONGEST_POLL_S: Final = 600.0
LEAST_TIMEOUT_S: Final = 600.0
TIMEOUT_PER_ROW_S: Final = 1.0
TIMEOUT_MARGIN_S: Final = 120.0
STOP_TIMEOUT_S: Final = 600.0
"""Longest wait for a cancelled batch to end before it is deleted."""
_log = logging.getLogger("embatch.client")

Trouble = ProviderUnavailableError | RateLimitError
"""Errors of a look that pass by themselves."""


def first_interval_s(rows: int) -> float:
    """Seconds between polls of a batch of so many rows, while it moves."""
    return next((seconds for most, seconds in POLL_STEPS_S if rows < most), SLOWEST_START_S)


def adapted_timeout_s(rows: int) -> float:
    """How long a batch of so many rows is waited for when nothing else is asked."""
    return max(LEAST_TIMEOUT_S, rows * TIMEOUT_PER_ROW_S + TIMEOUT_MARGIN_S)


def _rows(batch: EmbedContentBatch | None) -> int:
    return 0 if batch is None else batch.batch_stats.request_count


@dataclass(slots=True, kw_only=True)
class _Pace:
    """When to look next: by the batch's size, and ever more rarely while nothing moves."""

    fixed_s: float | None
    jitter: Callable[[], float]
    interval_s: float = 0.0
    seen: object = None

    def pause_s(self, batch: EmbedContentBatch | None) -> float:
        """Seconds until the next look, after one that showed `batch`."""
        if self.fixed_s is not None:
            return self.fixed_s
        seen = None if batch is None else (batch.state, batch.batch_stats)
        moved = seen != self.seen or not self.interval_s
        self.seen = seen
        grown = min(self.interval_s * BACKOFF, LONGEST_POLL_S)
        self.interval_s = first_interval_s(_rows(batch)) if moved else grown
        return min(self.interval_s * (0.9 + 0.2 * self.jitter()), LONGEST_POLL_S)


def await_completion(
    cloud: Cloud,
    name: str,
    *,
    poll_interval: float | None,
    timeout: float | None,
    on_progress: Callable[[EmbedContentBatch], object] | None,
) -> Flow[EmbedContentBatch]:
    """Polls a batch to its end.

    Trouble that passes (a quota, an outage) does not end the wait. A look is tried once: the next
    one is its second try, after the wait that the service asked for.
    """
    if poll_interval is not None and not 0.0 < poll_interval < math.inf:
        raise InvalidRequestError(f"poll_interval must be seconds over 0, not {poll_interval!r}")
    if timeout is not None and not timeout >= 0.0:
        raise InvalidRequestError(f"timeout must be seconds from 0 on, not {timeout!r}")
    clock = cloud.calls.clock
    begun = clock()
    pace = _Pace(fixed_s=poll_interval, jitter=cloud.calls.jitter)
    looking = cloud.trying_once()
    batch: EmbedContentBatch | None = None
    while True:
        found, trouble = yield from _look(looking, name)
        batch = found or batch
        if batch is not None and on_progress is not None:
            yield from perform(Notify(call=partial(on_progress, batch)))
        if batch is not None and batch.is_terminal:
            return batch
        limit = adapted_timeout_s(_rows(batch)) if timeout is None else timeout
        left = begun + limit - clock()
        if left <= 0:
            raise _too_late(name, batch, limit, trouble)
        asked = (trouble.retry_after_s or 0.0) if trouble is not None else 0.0
        yield from perform(Sleep(seconds=min(max(pace.pause_s(batch), asked), left)))
        if asked > left:
            raise _too_late(name, batch, limit, trouble)  # the service wants no look so soon


def _look(cloud: Cloud, name: str) -> Flow[tuple[EmbedContentBatch | None, Trouble | None]]:
    """The batch as it is now, or the trouble that hides it."""
    try:
        return (yield from cloud.get(name)), None
    except (ProviderUnavailableError, RateLimitError) as error:
        _log.warning("%s The wait for %s goes on.", error, name)
        return None, error


def _too_late(
    name: str, batch: EmbedContentBatch | None, limit: float, trouble: Trouble | None
) -> BatchTimeoutError:
    advice = "wait again with a longer timeout, or ask for its status later."
    if batch is None:
        said = f"{name} could not be looked at for {limit:g} seconds. {trouble} Once it can be, "
        return BatchTimeoutError(said + advice, name=name)
    said = f"{batch.name} is still {batch.state} after {limit:g} seconds. It goes on: {advice}"
    if trouble is not None:
        said += f" The last look failed: {trouble}"
    return BatchTimeoutError(said, name=batch.name)


def wait_until_stopped(cloud: Cloud, name: str) -> Flow[EmbedContentBatch]:
    """Cancels a running batch and waits for its end: deleting it would not stop its bill."""
    batch = yield from cloud.get(name)
    if batch.is_terminal:
        return batch
    try:
        yield from cloud.cancel(name)
    except InvalidRequestError:
        batch = yield from cloud.get(name)
        if not batch.is_terminal:
            raise
        return batch  # it ended in between: services may refuse to cancel what has
    return (
        yield from await_completion(
            cloud, name, poll_interval=None, timeout=STOP_TIMEOUT_S, on_progress=None
        )
    )
