"""The cloud's clock: it runs with real time, or stands until it is moved."""

import threading
import time
from datetime import UTC, datetime

MANUAL_START_S = 1_793_527_200.0
"""Where a clock that stands begins: 2026-11-01T10:00:00Z."""


class CloudClock:
    """Seconds since the epoch, as the cloud tells them."""

    def __init__(self, *, manual: bool, offset_s: float = 0.0) -> None:
        self.manual = manual
        self._offset_s = offset_s
        self._lock = threading.Lock()

    @property
    def offset_s(self) -> float:
        """How far the clock was moved, in seconds."""
        return self._offset_s

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._offset_s + (MANUAL_START_S if self.manual else time.time())

    def advance(self, seconds: float) -> None:
        """Moves the clock forward; both kinds of clock can be moved."""
        with self._lock:
            self._offset_s += seconds


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with nanoseconds, as Google writes it."""
    whole = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{round((seconds % 1) * 1e6) % 1_000_000:06d}789Z"
