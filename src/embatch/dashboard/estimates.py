"""When a run may be done, and between which bounds: pure arithmetic over what ended of late."""

from collections.abc import Sequence
from typing import Final

from embatch.dashboard.facts import Eta

WINDOWS: Final = (5, 10, 20, 40, 60)
"""Batches over whose ends a pace is taken; the range is that of these paces."""
SPREAD: Final = 1.5
"""Where fewer batches ended than the smallest window, the range is this wide to either side."""


def eta_of(left: int, rate: float, ended: Sequence[tuple[int, float]], *, now: float) -> Eta:
    """When `left` rows may be done at `rate` rows a second.

    `ended` are rows and end of the batches that ended last, the latest first.
    """
    paces = [pace for pace in (_pace(ended, window, now) for window in WINDOWS) if pace]
    if not paces:
        paces = [rate * SPREAD, rate / SPREAD]
    seconds = left / rate
    return Eta(
        seconds=seconds,
        least_s=left / max(rate, *paces),
        most_s=left / min(rate, *paces),
        at=now + seconds,
    )


def _pace(ended: Sequence[tuple[int, float]], window: int, now: float) -> float | None:
    """Rows a second of the last `window` batches, up to now; None where fewer have ended."""
    if len(ended) <= window:
        return None
    rows = sum(count for count, _ in ended[:window])
    return rows / max(0.001, now - ended[window][1]) if rows else None
