"""How long steps take in this process, by step and outcome. Needs no library."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

BOUNDS_S: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0)
"""Upper ends of the buckets, in seconds; the last bucket is above all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """The steps of one kind that ended in one way."""

    step: str
    outcome: str
    buckets: tuple[int, ...]
    """Counts of each bucket alone, one more than there are bounds."""
    seconds: float
    """All of them together."""


class StepClock:
    """Counts durations. Safe in threads."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        self._counting = threading.Lock()

    def observe(self, step: str, outcome: str, seconds: float) -> None:
        """Counts one step."""
        key = (step, outcome)
        with self._counting:
            counts = self._counts.setdefault(key, [0] * (len(BOUNDS_S) + 1))
            counts[bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds[key] = self._seconds.get(key, 0.0) + seconds

    def time(self, step: str, work: Callable[[], T]) -> T:
        """Does `work` and counts how long it took; the outcome is called after what it gave."""
        began = time.perf_counter()
        outcome = "broke"
        try:
            result = work()
            outcome = "done" if result is None else type(result).__name__.lower()
            return result
        finally:
            self.observe(step, outcome, time.perf_counter() - began)

    def read(self) -> list[Durations]:
        """Everything counted so far."""
        with self._counting:
            return [
                Durations(
                    step=step,
                    outcome=outcome,
                    buckets=tuple(counts),
                    seconds=self._seconds[step, outcome],
                )
                for (step, outcome), counts in sorted(self._counts.items())
            ]


STEPS: Final = StepClock()
"""The steps of this process."""
