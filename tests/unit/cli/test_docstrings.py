"""The demo's texts."""

from embatch.cli.docstrings import MAX_CHARS, MIN_CHARS, library_docstrings


def test_the_library_gives_thousands_of_documented_names() -> None:
    """Some thousands of real texts, each under a name of its own, short enough to embed quickly."""
    found = list(library_docstrings())
    texts = dict(found)
    assert len(texts) == len(found) > 2000
    assert all(MIN_CHARS <= len(text) <= MAX_CHARS for text in texts.values())
    assert texts["textwrap.dedent"].startswith("Remove any common leading whitespace")
    assert not any(name.startswith(("test.", "idlelib.")) for name in texts)
