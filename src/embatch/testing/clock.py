"""Time that passes when a test says so."""


class FakeClock:
    """Seconds since 1970, standing still between calls of `advance`."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass."""
        self.now += seconds
