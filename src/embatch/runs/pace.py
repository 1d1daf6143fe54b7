"""When to come back: to a batch that is computed, and to a service that fails."""

import math
from typing import Final

from embatch.journal.records import BatchRecord
from embatch.runs.context import RunContext

MAX_DELAY_S: Final = 600.0
"""Longest wait between two steps (spec.md section 5)."""
BUDGET_DELAY_S: Final = 15.0
"""Wait of a batch for money, which what is under way may free."""
RETRY_DELAY_S: Final = 2.0
"""Wait before the second attempt; grows with each one."""
POLL_BACKOFF: Final = 1.5
_POLL_BY_ITEMS: Final = ((100, 2.0), (1_000, 5.0), (10_000, 10.0))
_POLL_LARGEST_S: Final = 30.0


def poll_interval(batch: BatchRecord, context: RunContext, *, polls: int = 0) -> float:
    """Seconds until the next poll: by the batch's size, longer while nothing moves."""
    fixed = context.config.poll_interval_s or context.provider.limits.poll_interval_s
    if fixed is not None:
        return fixed
    base = next(
        (seconds for items, seconds in _POLL_BY_ITEMS if batch.items < items), _POLL_LARGEST_S
    )
    jitter = 1.0 + 0.2 * context.chance.random()
    return min(MAX_DELAY_S, base * math.pow(POLL_BACKOFF, min(polls, 20)) * jitter)


def backoff(failures: int, context: RunContext) -> float:
    """Seconds to wait after `failures` failures in a row: doubling, with jitter."""
    jitter = 1.0 + 0.2 * context.chance.random()
    return min(MAX_DELAY_S, RETRY_DELAY_S * math.pow(2.0, min(failures, 10))) * jitter
