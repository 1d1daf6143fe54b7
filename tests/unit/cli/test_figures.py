"""Numbers as people read them."""

import pytest

from embatch.cli import figures


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42, "0:42"), (725, "12:05"), (11_400, "3:10:00")],
)
def test_durations(seconds: float, text: str) -> None:
    """Tenths at first, then clock time."""
    assert figures.duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")]
)
def test_sizes(size: float, text: str) -> None:
    """Powers of 1000."""
    assert figures.size(size) == text


@pytest.mark.parametrize(
    ("usd", "text"), [(0, "$0.00"), (0.0012, "$0.0012"), (1234.5, "$1,234.50")]
)
def test_money(usd: float, text: str) -> None:
    """Fractions of a cent are not hidden."""
    assert figures.money(usd) == text


def test_counts_and_rates() -> None:
    """One row, two rows; slow paces keep a decimal."""
    assert (figures.counted(1, "row"), figures.counted(1200, "row")) == ("1 row", "1,200 rows")
    assert (figures.rate(1.44), figures.rate(212.4)) == ("1.4 rows/s", "212 rows/s")
