"""Pages to HTML: the templates, and the words, numbers and times that they write."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from embatch.dashboard import drawing
from embatch.dashboard.facts import OVERDUE_S, Grid, RunRow, Series
from embatch.dashboard.views import Frame, View
from embatch.journal.purchases import dollars

UNKNOWN: Final = "—"
_SPANS: Final = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))
_SIZES: Final = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_AMOUNTS: Final = ((1e9, " G"), (1e6, " M"), (1e3, " k"))
_LAYERS: Final = (
    ("published", "published", ("published",)),
    ("returning", "coming back", ("ready", "collected")),
    ("submitted", "at the provider", ("submitted",)),
    ("sending", "being sent", ("uploading", "uploaded", "submitting")),
    ("planned", "planned", ("planned",)),
    ("failed", "stopped", ("failed", "expired", "cancelled", "quarantined")),
)
_TABLE_MOMENTS: Final = 12
_FLAG: Final = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_STOPPED: Final = ("parked", "needs_person", "over_budget")
_PHASES: Final = {
    "planned": "wait",
    "uploading": "send",
    "uploaded": "send",
    "submitting": "send",
    "submitted": "away",
    "ready": "back",
    "collected": "back",
    "published": "done",
    "failed": "bad",
    "expired": "bad",
    "quarantined": "bad",
}


def render(page: View, frame: Frame) -> str:
    """The page as a whole HTML document."""
    return _environment().get_template(page.template).render(page=page, frame=frame)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("embatch.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        count=count,
        counted=counted,
        amount=amount,
        duration=duration,
        usd=usd,
        rate=rate,
        size=size,
        percent=percent,
        iso=iso,
        clock=clock,
        words=words,
        whole=whole,
    )
    made.globals.update(draw=drawing, looks=looks, layers=layers, moments=moments)
    made.globals.update(ago=ago, due=due, at=at, phase=phase, parts=parts)
    made.globals.update(stands_still=stands_still, reads=reads, uncounted=uncounted)
    return made


def count(value: int | None) -> str:
    """12345 as "12,345"; a dash for what is unknown."""
    return UNKNOWN if value is None else f"{value:,}"


def counted(value: int, noun: str) -> str:
    """ "1 row", "2 rows", "3 batches"."""
    if value == 1:
        return f"1 {noun}"
    return f"{value:,} {noun}{'es' if noun.endswith('ch') else 's'}"


def amount(value: float | None) -> str:
    """2,140,000 as "2.1 M"; a dash for what is unknown."""
    if value is None:
        return UNKNOWN
    for unit, sign in _AMOUNTS:
        if value >= unit:
            scaled = value / unit
            return f"{scaled:.1f}{sign}" if scaled < 10 else f"{scaled:.0f}{sign}"
    return f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as "40 s", "12 min 5 s", "3 h 10 min" or "2 d 4 h"; a dash for what is unknown."""
    if seconds is None:
        return UNKNOWN
    whole = max(0, round(seconds))
    for large, large_unit, small, small_unit in _SPANS:
        if whole >= large:
            first, rest = divmod(whole, large)
            second = rest // small
            return f"{first} {large_unit}" + (f" {second} {small_unit}" if second else "")
    return f"{seconds:.1f} s" if 0 < seconds < 1 else f"{whole} s"


def usd(value: float | None) -> str:
    """Dollars with two decimals or more; a dash for a price that nobody knows."""
    if value is None:
        return UNKNOWN
    whole, _, decimals = dollars(value).partition(".")
    return f"{whole}.{decimals.rstrip('0'):0<2}"


def rate(rows_per_s: float | None) -> str:
    """Rows a second, without the unit: "212", "1.4"."""
    if rows_per_s is None:
        return UNKNOWN
    return f"{rows_per_s:,.0f}" if rows_per_s >= 10 else f"{rows_per_s:.1f}"


def size(size_bytes: float | None) -> str:
    """Bytes as "1.5 MB"; a dash for what is unknown."""
    if size_bytes is None:
        return UNKNOWN
    for unit, sign in _SIZES:
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {sign}"
    return f"{size_bytes:.0f} B"


def percent(share: float, decimals: int = 0) -> str:
    """0.125 as "12 %". What is not whole is never rounded up to 100."""
    value = 100.0 * share
    most = 100.0 - 10.0**-decimals
    return f"{value if value >= 100.0 or value <= most else most:.{decimals}f} %"


def iso(at: float) -> str:
    """A time as HTML wants it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock(at: float, now: float) -> str:
    """A time of this machine's zone: "14:05:12", with the day where it is another one."""
    local, today = (datetime.fromtimestamp(one).astimezone() for one in (at, now))
    if local.date() == today.date():
        return local.strftime("%H:%M:%S")
    return local.strftime("%d %b %H:%M" if local.year == today.year else "%Y-%m-%d %H:%M")


def words(name: str) -> str:
    """ "completed_with_failures" as "completed with failures"."""
    return name.replace("_", " ")


def whole(sentence: str) -> Markup:
    """A sentence whose flags are not broken at their dashes."""
    return Markup(_FLAG.sub(r'<span class="nowrap">\g<0></span>', str(escape(sentence))))  # noqa: S704 - escaped


def due(at: float, now: float) -> Markup:
    """A time to come as "in 40 s", one past as "due since 5 min"; the page's script goes on."""
    left = at - now
    overdue = f"due since {duration(-left)}" if left <= -OVERDUE_S else "now"
    return _time(at, "due", f"in {duration(left)}" if left >= 1.0 else overdue)


def ago(at: float, now: float) -> Markup:
    """A time past as "40 s ago"; the page's script lets it grow."""
    return _time(at, "ago", f"{duration(now - at)} ago" if now - at >= 1.0 else "just now")


def at(moment: float, now: float) -> Markup:
    """A time as it stands on the clock."""
    return _time(moment, "at", clock(moment, now))


def phase(state: str, blocked: str | None = None) -> str:
    """What a batch's state is part of: "wait", "send", "away", "back", "done", "bad" or "gone"."""
    return "held" if blocked else _PHASES.get(state, "gone")


def stands_still(run: RunRow) -> bool:
    """Nothing of the run moves, whatever its pace was before."""
    if run.finished_at is not None or run.why is None:
        return False
    return run.state in _STOPPED or run.why.kind in ("unattended", "workers")


def reads(run: RunRow) -> bool:
    """The input is read through for the first time, at this moment."""
    return run.state == "planning" and run.words != "unattended"


def uncounted(run: RunRow) -> str:
    """Of a run whose rows nobody knows: why."""
    if run.finished_at is not None:
        return "it ended before its rows were counted"
    return "the input is read for the first time" if reads(run) else "its rows are not counted yet"


def parts(run: RunRow) -> list[tuple[str, float]]:
    """A run's bar: rows written, rows that are done and not written yet, and rows that failed."""
    if not run.rows:
        return []
    live = max(0, run.done - run.written)
    shares = (("published", run.written), ("returning", live), ("failed", run.failed))
    return [(name, rows / run.rows) for name, rows in shares]


def _time(at: float, kind: str, said: str) -> Markup:
    full = datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    return Markup('<time datetime="{}" data-kind="{}" data-at="{}" title="{}">{}</time>').format(
        iso(at), kind, f"{at:.0f}", full, said
    )


def looks(grid: Grid) -> list[str]:
    """How each cell of the grid is shown: its state, "held" where blocked, "" for no batch."""
    states = {**{letter: str(state) for letter, state in grid.legend.items()}, ".": ""}
    return [states.get(letter, "held") for letter in grid.letters]


def layers(series: Series) -> list[drawing.Series]:
    """The states of the series gathered into the few that a chart can tell apart."""
    rows = {layer.state: layer.rows for layer in series.layers}
    found = []
    for name, said, states in _LAYERS:
        held = [rows[state] for state in states if state in rows]
        if held:
            values = [float(sum(at_once)) for at_once in zip(*held, strict=True)]
            found.append(drawing.Series(name=name, words=said, values=values))
    return found


def moments(count: int) -> Sequence[int]:
    """Some of `count` moments, the first and the last among them, for a table."""
    if count <= _TABLE_MOMENTS:
        return range(count)
    step = (count - 1) / (_TABLE_MOMENTS - 1)
    return [round(step * at) for at in range(_TABLE_MOMENTS)]
