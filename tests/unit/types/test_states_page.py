"""The page of states says what the code does."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_states_is_drawn_from_the_tables() -> None:
    """Run `make docs` after a change of types/state.py."""
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    assert (DOCS / "states.md").read_text(encoding="utf-8") == draw.states_page()
