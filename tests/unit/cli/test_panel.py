"""The panel and the lines say what the status says."""

import io

import pytest
from rich.console import Console

from embatch.cli.panel import LivePanel, Pace, PlainLines, draw_panel, open_view, plain_line
from embatch.runs.quota_status import QuotaStatus
from embatch.types.state import RunState


def drawn(status, width: int = 80, now: float = 1094.0) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(draw_panel(status, now=now, width=width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_panel_fits_its_width(make_status, width: int) -> None:
    """No line is longer than the terminal, nor broken in two."""
    text = drawn(make_status(name="nightly"), width)
    lines = text.rstrip("\n").split("\n")
    assert {len(line) for line in lines} == {width}
    assert len(lines) == 8


def test_the_panel_shows_pace_and_counts(make_status) -> None:
    """Rows, rate, elapsed and remaining time, batches by state, failed, copies, cost."""
    text = drawn(make_status(failed=3, copies=40, cost_usd=1.5, saved_usd=0.75))
    for words in (
        "50%",
        "10,000 of 20,000 rows",
        "212 rows/s",
        "1:34 elapsed",
        "0:47 left",
        "1 planned · 2 submitted · 2 published",
        "3 failed",
        "40 copies",
        "$1.50 so far",
        "$0.75 saved",
    ):
        assert words in text


def test_the_panel_says_what_it_waits_for(make_status) -> None:
    """A blocked run tells why."""
    assert "quota" in drawn(make_status(waiting="batch 3 waits 12 s more (quota): slow down"))


def test_the_panel_shows_the_quota_while_the_run_goes_on(make_status) -> None:
    """One line of it, and none once the run has ended."""
    quota = QuotaStatus(
        scope="gemini/key/model",
        ceiling_tokens=2_140_000,
        ceiling_jobs=None,
        tokens_in_flight=1_900_000,
        jobs_in_flight=33,
        accepted=90,
        refused=4,
        last_refused_at=374.0,
        waits_for=None,
        waits_until=None,
        words="ceiling ≈ 2.1 M tokens, last 429 12 min ago",
    )
    assert quota.words in drawn(make_status(quota=quota))
    ended = make_status(quota=quota, state=RunState.COMPLETED, finished_at=1090.0)
    assert quota.words not in drawn(ended)


def test_an_error_is_shown_as_it_is(make_status) -> None:
    """Brackets in a message are no markup."""
    status = make_status(state=RunState.FAILED, error="key '[red]x[/red]' stands twice")
    assert "'[red]x[/red]'" in drawn(status)


def test_a_run_that_is_read_through_has_no_percentage(make_status) -> None:
    """Before the rows are counted nothing is promised."""
    status = make_status(state=RunState.PLANNING, rows=None, done=0, written=0, batches={})
    text = drawn(status)
    assert "%" not in text
    assert "reading the input" in text


def test_only_a_complete_run_is_full(make_status) -> None:
    """All rows are done, and the output is still put together: 99 %."""
    running = make_status(done=20_000, written=20_000)
    assert " 99%" in drawn(running)
    completed = make_status(state=RunState.COMPLETED, done=20_000, finished_at=1090.0)
    assert "100%" in drawn(completed)


def test_the_pace_is_that_of_the_last_seconds(make_status) -> None:
    """The rate is counted over a sliding window, and the time left follows from it."""
    now = 0.0
    pace = Pace(clock=lambda: now)
    pace.measured(make_status(done=0))
    now = 10.0
    pace.measured(make_status(done=1000))
    now = 35.0
    status = pace.measured(make_status(done=6000))
    assert status.rows_per_s == pytest.approx(200.0)
    assert status.eta_s == pytest.approx(70.0)


def test_plain_lines_come_on_change(make_status) -> None:
    """Without a terminal: a line at first, none for the same state, one for a new state."""
    console = Console(file=io.StringIO(), force_terminal=False)
    view = open_view(console, quiet=False)
    assert isinstance(view, PlainLines)
    with view:
        view.show(make_status())
        view.show(make_status(done=10_001))
        view.show(make_status(state=RunState.COMPLETED, done=20_000))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 2
    assert "running, 50%" in lines[0]
    assert "completed, 100%" in lines[1]


def test_quiet_lines_are_none(make_status) -> None:
    """With --json and no terminal nothing is printed beside the object."""
    console = Console(file=io.StringIO(), force_terminal=False)
    with open_view(console, quiet=True) as view:
        view.show(make_status())
        view.note("stopping")
    assert console.file.getvalue() == ""


def test_a_terminal_gets_the_panel(make_status) -> None:
    """On a terminal the panel is drawn over itself."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={"TERM": "xterm"})
    view = open_view(console, quiet=True)
    assert isinstance(view, LivePanel)
    with view:
        view.show(make_status())
    assert "10,000 of 20,000 rows" in console.file.getvalue()


def test_a_line_names_failures_and_waits(make_status) -> None:
    """The plain line carries what the panel does."""
    line = plain_line(make_status(failed=2, waiting="no process works on it"))
    assert "2 failed" in line
    assert "no process works on it" in line
    assert "212 rows/s" in line
