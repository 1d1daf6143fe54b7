"""The pages that are drawn say what the code does."""

import importlib.util
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).parents[3] / "docs"


def drawer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", DOCS / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    return draw


def test_the_page_of_states_is_drawn_from_the_tables() -> None:
    """Run `make docs` after a change of types/state.py."""
    assert (DOCS / "states.md").read_text(encoding="utf-8") == drawer().states_page()


def test_the_page_of_alignment_has_the_chances_as_they_are() -> None:
    """Run `make docs` after a change of runs/sampling.py."""
    page = (DOCS / "alignment.md").read_text(encoding="utf-8")
    assert page == drawer().alignment_page(page)
    assert page.count("% wrong") == 6
