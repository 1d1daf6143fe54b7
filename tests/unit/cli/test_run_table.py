"""The list of runs can be read on any terminal."""

import io

import pytest
from rich.console import Console

from embatch.cli.inspect import run_table
from embatch.types.state import RunState

LONG = "/data/of/the/people/who/name/their/folders/at/length/vectors"


def drawn(statuses, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(run_table(statuses, width))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.fixture
def statuses(make_status):
    """A plain one, a huge one, one that failed in part, one that nobody works on."""
    return [
        make_status(out=LONG),
        make_status(name="nightly", rows=10_000_000, done=9_999_999, written=9_999_999),
        make_status(state=RunState.COMPLETED_WITH_FAILURES, failed=12_345, finished_at=1090.0),
        make_status(state=RunState.RUNNING, worked=False),
        make_status(state=RunState.NEEDS_PERSON, rows=None),
    ]


def test_on_80_columns_each_run_is_one_line(statuses) -> None:
    """Nothing is folded or cut; outputs are left out but for their names."""
    lines = drawn(statuses, 80)
    assert len(lines) == 1 + len(statuses)
    assert max(len(line) for line in lines) <= 80
    assert "…" not in "".join(lines)
    for words in ("r0123456789", "vectors", "running", "50%", "20,000"):
        assert words in lines[1]
    assert "99%" in lines[2]
    assert "12,345" in lines[3]
    assert "unattended" in lines[4]
    assert "needs person" in lines[5]


def test_on_wide_screens_outputs_are_shown(statuses) -> None:
    """The whole path, where there is room."""
    assert LONG in drawn(statuses, 160)[1]


def test_a_very_narrow_screen_still_shows_ids(statuses) -> None:
    """Ids are what other commands take: they are never cut."""
    assert sum("r0123456789" in line for line in drawn(statuses, 60)) == len(statuses)
