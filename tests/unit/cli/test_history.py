"""What `embatch watch` draws below the panel."""

import io

import pytest
from rich.console import Console

from embatch.cli.history import draw_lines
from embatch.dashboard.facts import EventLine, NextStep

NOW = 1_800_000_000.0


def drawn(*, steps: list[NextStep], events: list[EventLine], width: int = 60) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(draw_lines(steps, events, now=NOW, width=width))
    return console.export_text()


def line(words: str, *, batch: int | None = None, ago_s: float = 5.0) -> EventLine:
    return EventLine(
        id=1,
        at=NOW - ago_s,
        batch=batch,
        kind="published",
        source=None,
        target=None,
        words=words,
        tone="good",
        data={},
    )


def test_steps_come_first_then_events() -> None:
    """What comes next, then what was, each line whole."""
    step = NextStep(
        batch=12,
        at=NOW + 40,
        doing="next poll",
        words="batch 12: next poll in 40 s",
        reason=None,
        under_way=False,
    )
    text = drawn(steps=[step], events=[line("its part is published", batch=3), line("planned")])
    assert text.index("next poll in 40 s") < text.index("batch 3: its part is published")
    assert "✓ planned" in text


def test_a_day_old_event_shows_its_date() -> None:
    """A time of day would be taken for today's."""
    text = drawn(steps=[], events=[line("planned", ago_s=3 * 86_400.0)])
    assert ":" not in text.split("✓")[0]


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_line_is_wider_than_the_panel(width: int) -> None:
    """Long words end in an ellipsis, and markup in them is text."""
    text = drawn(steps=[], events=[line("[red]a label[/] " + "x" * 200)], width=width)
    assert max(map(len, text.splitlines())) == width
    assert "[red]" in text


def test_a_run_without_history_says_so() -> None:
    """Not an empty frame."""
    assert "nothing has happened yet" in drawn(steps=[], events=[])
