"""What the tests of steps share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replaying import Replay, Replays

from embatch.testing.provider import FakeProvider


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[Replays]:
    """Makes replays of ten texts, unless the test has others."""
    made: list[Replay] = []

    def make(provider: FakeProvider, texts: list[str] | None = None, **settings: Any) -> Replay:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        texts = texts or [f"text {n}" for n in range(10)]
        made.append(Replay(folder, provider, texts, **settings))
        return made[-1]

    yield make
    for one in made:
        one.journal.close()
