"""What `embatch watch` draws below the panel: what comes next, and what has happened last."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from embatch.dashboard.events import timeline
from embatch.dashboard.facts import EventLine, NextStep, Tone
from embatch.dashboard.run_page import next_step
from embatch.journal.store import Journal

STEPS: Final = 3
"""Steps to come that are shown."""
EVENTS: Final = 8
"""Events that are shown."""
_STYLES: Final[dict[Tone, str]] = {
    "good": "green",
    "bad": "red",
    "wait": "yellow",
    "person": "bold yellow",
    "ended": "dim",
    "work": "",
}
_MARKS: Final[dict[Tone, str]] = {
    "good": "✓",
    "bad": "✗",
    "wait": "…",
    "person": "!",
    "ended": "·",
    "work": "·",
}


def draw_history(journal: Journal, run_id: str, *, now: float, width: int) -> RenderableType:
    """The next steps and the latest events of a run, `width` characters wide."""
    steps = [next_step(batch, now) for batch in journal.views.next_steps(run_id, limit=STEPS)]
    found = journal.views.history(run_id, before=None, limit=EVENTS)
    events = timeline(found, before=None).events
    return draw_lines([step for step in steps if step is not None], events, now=now, width=width)


def draw_lines(
    steps: Sequence[NextStep], events: Sequence[EventLine], *, now: float, width: int
) -> RenderableType:
    """The same, of what was read already; events come the newest first."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", width=8)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for place, step in enumerate(steps):
        grid.add_row("" if place else "next", step.words)
    if steps and events:
        grid.add_row()
    for line in events:
        grid.add_row(_moment(line.at, now), _sentence(line))
    if not (steps or events):
        grid.add_row("", Text("nothing has happened yet", style="dim"))
    return Panel(
        grid,
        title=Text("history", style="bold"),
        title_align="left",
        border_style="dim",
        padding=(0, 2),
        width=width,
    )


def _sentence(line: EventLine) -> Text:
    style = _STYLES[line.tone]
    whose = "" if line.batch is None else f"batch {line.batch}: "
    return Text.assemble((f"{_MARKS[line.tone]} ", style), (whose, "dim"), (line.words, style))


def _moment(at: float, now: float) -> str:
    """The time of day, or the date where that is longer ago than a day."""
    local = datetime.fromtimestamp(at).astimezone()
    return local.strftime("%H:%M:%S" if now - at < 86_400.0 else "%d %b")
