"""Charts as SVG: signs for every state, light grids, nothing unescaped, no inline style."""

import re
from xml.etree import ElementTree

import pytest

from embatch.dashboard import drawing
from embatch.dashboard.drawing import Series
from embatch.dashboard.facts import GRID_LETTERS, Grid
from embatch.dashboard.rendering import (
    amount,
    count,
    counted,
    duration,
    looks,
    percent,
    rate,
    size,
    usd,
)
from embatch.types.state import BatchState, RunState

MOST_GRID_BYTES = 150_000


def test_every_state_has_a_sign_and_a_cell_of_its_own() -> None:
    """No two states of batches look alike without their colours."""
    cells = [drawing.TILES[state] for state in BatchState]
    assert len(set(cells)) == len(cells)
    signs = [drawing.SHAPES[state] for state in BatchState]
    assert len(set(signs)) == len(signs)
    runs = [drawing.SHAPES[state] for state in RunState]
    assert len(set(runs)) == len(runs)


def test_a_grid_holds_each_cell_once() -> None:
    """Strokes of all states together cover the cells, and leave free what has no batch."""
    shown = ["published"] * 30 + [""] + ["failed", "published"] * 3
    grid = str(drawing.batch_grid(shown, label="37 batches"))
    cells = []
    for look, path in re.findall(r'stroke="url\(#tile-(\w+)\)" d="([^"]+)"', grid):
        for x, y, length in re.findall(r"M(\d+) (\d+)h(\d+)", path):
            cells += [(int(y) * 25 + int(x) + step, look) for step in range(int(length))]
    assert sorted(cells) == [(at, look) for at, look in enumerate(shown) if look]


def test_the_worst_grid_of_10_000_is_light() -> None:
    """No two neighbours are equal: the grid, its run lengths and its words stay small."""
    states = list(BatchState)
    shown = [str(states[at % len(states)]) for at in range(10_000)]
    grid = drawing.batch_grid(shown, label="10,000 batches")
    assert len(grid) < MOST_GRID_BYTES
    assert len(drawing.ranges(shown)) == 10_000


def test_a_grid_in_words_counts_what_a_cell_stands_for() -> None:
    """Neighbours are one span; with several batches to a cell the numbers say so."""
    shown = ["published", "published", "failed", "planned"]
    spans = drawing.ranges(shown, first=0, each=3)
    assert spans == [("published", 0, 5), ("failed", 6, 8), ("planned", 9, 11)]
    assert drawing.run_lengths(shown) == "published*2 failed*1 planned*1"


def test_letters_of_the_grid_are_states() -> None:
    """A capital waits, a full stop is no batch."""
    letters = GRID_LETTERS[BatchState.PUBLISHED] + GRID_LETTERS[BatchState.PLANNED].upper() + "."
    legend = {letter: state for state, letter in GRID_LETTERS.items()}
    grid = Grid(total=2, first=0, per_cell=1, letters=letters, legend=legend, counts={}, blocked=1)
    assert looks(grid) == ["published", "held", ""]


HOSTILE = '"><script>alert(1)</script>'


@pytest.mark.parametrize(
    "drawn",
    [
        drawing.batch_grid(["published"], label=HOSTILE),
        drawing.bar([(HOSTILE, 0.5)], label=HOSTILE, now=0.5),
        drawing.sparkline([1, 2], label=HOSTILE),
        drawing.burn([0.0, 1.0], top=2.0, cap=1.5, label=HOSTILE),
        drawing.scale(97.0, low=80.0, high=100.0, mark=95.0, label=HOSTILE, look=HOSTILE),
        drawing.stacked(
            [Series(name=HOSTILE, words=HOSTILE, values=[1.0, 2.0])], total=2.0, label=HOSTILE
        ),
        drawing.key(HOSTILE),
        drawing.swatch(HOSTILE),
        drawing.glyph(HOSTILE),
    ],
)
def test_charts_are_well_formed_and_escaped(drawn: str) -> None:
    """Whatever words come in: one element of SVG, no script, and no style that a CSP forbids."""
    ElementTree.fromstring(str(drawn))
    assert "<script" not in drawn
    assert "style=" not in drawn


def test_a_bar_never_leaves_its_frame() -> None:
    """Shares over one are cut, those below zero are none."""
    widths = re.findall(
        r' width="([\d.]+)%"', drawing.bar([("a", 0.8), ("b", -1.0), ("c", 0.9)], label="x")
    )
    assert [float(width) for width in widths] == [80.0, 20.0]


def test_layers_stand_on_one_another() -> None:
    """The upper edge of the second layer is the sum of both."""
    layers = [
        Series(name="published", words="", values=[0.0, 5.0, 10.0]),
        Series(name="planned", words="", values=[20.0, 15.0, 10.0]),
    ]
    chart = str(drawing.stacked(layers, total=20.0, label="rows"))
    edges = re.findall(r'class="edge look-(\w+)" d="([^"]+)"', chart)
    assert edges == [("published", "M0 100L50 75L100 50"), ("planned", "M0 0L100 0")]
    assert drawing.height(layers) == 20.0


def test_too_few_values_draw_nothing() -> None:
    """A chart of one moment says nothing."""
    assert drawing.sparkline([3], label="x") == ""
    assert drawing.burn([1.0], top=1.0, cap=None, label="x") == ""
    assert drawing.stacked([], total=1.0, label="x") == ""


def test_numbers_are_written_for_people() -> None:
    """Units beside the figure; what is not known is a dash, and almost all is not all."""
    assert [duration(s) for s in (0.4, 40, 725, 11_400, 100_000)] == [
        "0.4 s",
        "40 s",
        "12 min 5 s",
        "3 h 10 min",
        "1 d 3 h",
    ]
    assert [percent(share) for share in (0.625, 0.9999, 1.0)] == ["62 %", "99 %", "100 %"]
    assert percent(0.99999, 2) == "99.99 %"
    assert [usd(value) for value in (18.42, 0.41, 0.0375, 0.0)] == [
        "$18.42",
        "$0.41",
        "$0.0375",
        "$0.00",
    ]
    assert [amount(value) for value in (812, 2_140_000, 43_000_000)] == ["812", "2.1 M", "43 M"]
    assert [rate(1.42), rate(1_210.4), size(1_720_000)] == ["1.4", "1,210", "1.7 MB"]
    assert [counted(1, "batch"), counted(1_200, "batch"), counted(2, "row")] == [
        "1 batch",
        "1,200 batches",
        "2 rows",
    ]
    assert {duration(None), usd(None), amount(None), rate(None), size(None), count(None)} == {"—"}
