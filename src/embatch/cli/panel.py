"""How a run shows itself while it works: a live panel, or plain lines without a terminal."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import PurePath
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from embatch.cli import figures
from embatch.runs.accounts import summary
from embatch.runs.cost import FREE
from embatch.runs.status import RunStatus
from embatch.types.state import BatchState, RunState

PACE_S = 30.0
"""The pace is that of so many last seconds."""
LINE_EVERY_S = 5.0
"""Seconds between two plain lines while nothing but the numbers changes."""
MAX_WIDTH = 100
SHOWN_BATCH_STATES = tuple(BatchState)
STATE_STYLES: Mapping[RunState, str] = {
    RunState.PLANNING: "cyan",
    RunState.RUNNING: "cyan",
    RunState.PARKED: "yellow",
    RunState.NEEDS_PERSON: "yellow",
    RunState.OVER_BUDGET: "yellow",
    RunState.CANCELLED: "yellow",
    RunState.COMPLETED: "green",
    RunState.COMPLETED_WITH_FAILURES: "yellow",
    RunState.FAILED: "red",
}


def state_style(status: RunStatus) -> str:
    """The colour of a run's state."""
    return STATE_STYLES[status.state] if status.worked else "yellow"


class Pace:
    """Rows a second as seen here: finer than the journal's, which knows whole batches only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def measured(self, status: RunStatus) -> RunStatus:
        """The status with the rate and the time left of the last `PACE_S` seconds."""
        if status.finished or status.rows is None:
            return status
        now, decided = self._clock(), status.done + status.failed
        self._seen.append((now, decided))
        while now - self._seen[0][0] > PACE_S:
            self._seen.popleft()
        since, before = self._seen[0]
        if now - since < PACE_S / 10 or decided <= before:
            return status
        rate = (decided - before) / (now - since)
        return replace(status, rows_per_s=rate, eta_s=(status.rows - decided) / rate)


class View(AbstractContextManager["View"], Protocol):
    """Shows a run's status again and again."""

    def show(self, status: RunStatus) -> None:
        """Takes the newest status."""
        ...

    def note(self, text: str) -> None:
        """A line beside it, that stays."""
        ...


Below = Callable[[int], RenderableType]
"""What is drawn below the panel, so many characters wide."""


def open_view(console: Console, *, quiet: bool, below: Below | None = None) -> View:
    """The view that suits `console`: the panel on a terminal, else lines; `quiet` drops lines."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LivePanel(console, below)
    return PlainLines(console, every_s=None if quiet else LINE_EVERY_S)


class LivePanel:
    """A panel that is drawn over itself."""

    def __init__(self, console: Console, below: Below | None = None) -> None:
        self._console = console
        self._below = below
        self._live = Live(console=console, auto_refresh=False)
        self._pace = Pace()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(self, status: RunStatus) -> None:
        """Draws the panel anew."""
        width = min(self._console.width, MAX_WIDTH)
        panel = draw_panel(self._pace.measured(status), now=time.time(), width=width)
        if self._below is not None:
            panel = Group(panel, self._below(width))
        self._live.update(panel, refresh=True)

    def note(self, text: str) -> None:
        """A line above the panel."""
        self._live.console.print(text, markup=False)


class PlainLines:
    """A line when the state changes, and one every few seconds; none at all for `every_s` None."""

    def __init__(self, console: Console, *, every_s: float | None) -> None:
        self._console = console
        self._every_s = every_s
        self._pace = Pace()
        self._state: str | None = None
        self._next_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        return None

    def show(self, status: RunStatus) -> None:
        """Prints a line if one is due."""
        status, now = self._pace.measured(status), time.monotonic()
        due = status.state != self._state or now >= self._next_at
        if self._every_s is None or not due:
            return
        self._state, self._next_at = status.state, now + self._every_s
        self.note(plain_line(status))

    def note(self, text: str) -> None:
        """A line as it is."""
        if self._every_s is not None:
            self._console.print(text, markup=False, soft_wrap=True)


def plain_line(status: RunStatus) -> str:
    """A status on one line, for logs and pipes."""
    parts = [f"{status.id} {status.words}"]
    if status.rows is not None:
        parts.append(f"{share(status):.0%}, {figures.count(status.done)} of {_rows(status)}")
    if status.rows_per_s:
        parts.append(figures.rate(status.rows_per_s))
    if status.eta_s is not None:
        parts.append(f"{figures.duration(status.eta_s)} left")
    if status.failed:
        parts.append(f"{figures.count(status.failed)} failed")
    if status.waiting:
        parts.append(status.waiting)
    return ", ".join(parts)


def draw_panel(status: RunStatus, *, now: float, width: int) -> RenderableType:
    """The panel of one moment, `width` characters wide."""
    style = state_style(status)
    title = Text.assemble((status.name or status.id, "bold"), "  ", (status.words, style))
    body = Group(_bar(status, width - 6, style), _pace(status, now), Text(), _facts(status))
    return Panel(
        body,
        title=title,
        title_align="left",
        subtitle=Text(_space(status), style="dim"),
        subtitle_align="right",
        border_style="dim",
        padding=(0, 2),
        width=width,
    )


def _bar(status: RunStatus, width: int, style: str) -> RenderableType:
    decided = share(status)
    percent = Text(f"{decided:>6.0%}", style="bold") if status.rows is not None else Text()
    bar = ProgressBar(
        total=1.0,
        completed=decided,
        pulse=status.rows is None and not status.finished,
        width=width - 7,
        complete_style=style,
        finished_style=style,
    )
    grid = Table.grid(expand=True)
    grid.add_column(ratio=1)
    grid.add_column(justify="right", width=7)
    grid.add_row(bar, percent)
    return grid


def _pace(status: RunStatus, now: float) -> Text:
    """Rows, pace, time gone and time left, on one line."""
    elapsed = (status.finished_at or now) - status.created_at
    parts = [_rows_done(status)]
    if status.rows_per_s:
        parts.append(figures.rate(status.rows_per_s))
    parts.append(f"{figures.duration(elapsed)} elapsed")
    if status.eta_s is not None:
        parts.append(f"{figures.duration(status.eta_s)} left")
    return Text(" · ".join(parts), no_wrap=True, overflow="ellipsis")


def _rows_done(status: RunStatus) -> str:
    if status.rows is None:
        return "reading the input" if not status.finished else "nothing read"
    return f"{figures.count(status.done)} of {_rows(status)}"


def _facts(status: RunStatus) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", width=8)
    grid.add_column()
    grid.add_row("batches", _batches(status))
    grid.add_row("rows", _row_facts(status))
    if (cost := _cost(status)) is not None:
        grid.add_row("cost", cost)
    if status.quota is not None and not status.finished:
        grid.add_row("quota", status.quota.words)
    if (messages := _messages(status)) is not None:
        grid.add_row("notify", messages)
    if status.error:
        grid.add_row("error", Text(status.error, style="red"))
    elif status.waiting:
        grid.add_row("waits", Text(status.waiting, style="yellow"))
    if status.unseen:
        grid.add_row("output", Text(status.unseen, style="yellow"))
    return grid


def _messages(status: RunStatus) -> Text | None:
    """Notifications that have not arrived; None when all have."""
    counts = status.notifications
    if counts is None or not (counts.waiting or counts.given_up):
        return None
    parts = [f"{counts.waiting} waiting"] if counts.waiting else []
    if counts.given_up:
        parts.append(f"{counts.given_up} given up")
    why = f": {counts.error}" if counts.error else ""
    return Text(f"{', '.join(parts)}{why}", style="yellow")


def _cost(status: RunStatus) -> str | None:
    """Money in one or two lines; None where nothing is known of it."""
    if status.cost is not None and status.cost.price != FREE:
        return "\n".join(summary(status.cost))
    if status.cost_usd is None or status.saved_usd is None:
        return None
    return f"{figures.money(status.cost_usd)} so far, {figures.money(status.saved_usd)} saved"


def _batches(status: RunStatus) -> Text:
    """The count of each state that holds a batch, in the order in which they are passed."""
    shown = [
        (f"{count} {state.value}", "green" if state is BatchState.PUBLISHED else "")
        for state in SHOWN_BATCH_STATES
        if (count := status.batches.get(state.value, 0))
    ]
    if not shown:
        return Text("none yet", style="dim")
    return Text(" · ").join(Text(words, style=style) for words, style in shown)


def _row_facts(status: RunStatus) -> Text:
    failed = Text(f"{figures.count(status.failed)} failed", style="red" if status.failed else "")
    facts = [failed, Text(f"{figures.count(status.copies)} copies of others")]
    if status.reused:
        facts.append(Text(f"{figures.count(status.reused)} reused"))
    if status.truncated:
        facts.append(Text(f"{figures.count(status.truncated)} cut"))
    if status.failed:
        low = status.success_pct < status.alert_below_pct
        rate = f"{status.success_pct:.1f} % succeed, alert below {status.alert_below_pct:g} %"
        facts.append(Text(rate, style="red" if low else ""))
    return Text(" · ").join(facts)


def _space(status: RunStatus) -> str:
    model = PurePath(status.model).name if PurePath(status.model).is_absolute() else status.model
    parts = [status.provider, model, status.precision, f"{status.dims} dims"]
    if status.name:
        parts.append(status.id)
    return " · ".join(part for part in parts if part)


def share(status: RunStatus) -> float:
    """Rows that are decided, of all, 0..1. Full only when the run says that it is complete."""
    if not status.rows:
        return 0.0
    share = (status.done + status.failed) / status.rows
    complete = status.state in (RunState.COMPLETED, RunState.COMPLETED_WITH_FAILURES)
    return min(share, 1.0 if complete else 0.99)


def _rows(status: RunStatus) -> str:
    return figures.counted(status.rows or 0, "row")
