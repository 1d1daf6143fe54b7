"""Numbers as people read them."""

from datetime import datetime

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def count(value: int) -> str:
    """12345 as "12,345"."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """ "1 row", "2 rows", "12,345 rows"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as "0:42", "12:05" or "3:10:00"; under ten seconds with a tenth."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(size_bytes: float) -> str:
    """Bytes as "1.5 MB", in powers of 1000."""
    value, unit = float(size_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def money(usd: float) -> str:
    """Dollars as "$0.00"; fractions of a cent are not hidden."""
    return f"${usd:,.4f}" if 0 < usd < 0.01 else f"${usd:,.2f}"


def rate(rows_per_s: float) -> str:
    """Rows a second: "212 rows/s", "1.4 rows/s"."""
    return f"{rows_per_s:,.0f} rows/s" if rows_per_s >= 10 else f"{rows_per_s:.1f} rows/s"


def moment(seconds: float) -> str:
    """A time since 1970 as "2026-11-23 10:35" of this machine's time zone."""
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")
