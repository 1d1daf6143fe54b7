"""A quote is what planning then does."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embatch.api import submit
from embatch.config import Settings, journal_url
from embatch.datasets.source import open_source
from embatch.datasets.spool import spool_data
from embatch.environment import Environment
from embatch.hooks import Hooks
from embatch.providers.local import open_local
from embatch.runs.quote import SAMPLE_TEXTS, quote_source
from embatch.testing.engine import FakeEngine
from embatch.types.state import BatchState


@pytest.fixture
def provider(tmp_path: Path):
    opened = open_local(
        model=None, folder=tmp_path / "service", open_engine=lambda _model, **_: FakeEngine(dims=8)
    )
    yield opened
    opened.close()


def quoted(texts, provider, folder: Path, **limits):
    return quote_source(open_source([str(spool_data(texts, folder))]), provider, **limits)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(st.sampled_from(["", "a", "bb", "a longer text", "x" * 100]), min_size=1),
    items=st.integers(1, 7),
)
def test_rows_add_up(texts: list[str], items: int, provider, tmp_path: Path) -> None:
    """Every row is empty, a copy, or embedded; batches hold at most what was asked."""
    quote = quoted(texts, provider, tmp_path, max_batch_items=items)
    distinct = len(set(texts) - {""})
    assert quote.rows == len(texts)
    assert quote.empty == texts.count("")
    assert quote.to_embed == distinct
    assert quote.copies == len(texts) - texts.count("") - distinct
    assert quote.batches == -(-distinct // items)
    assert quote.vector_bytes == 4 * 8 * (len(texts) - texts.count(""))


def test_a_quote_is_what_planning_does(provider, tmp_path: Path) -> None:
    """The batches and tokens of the quote are those that the run then has."""
    texts = [f"text {'long ' * (n % 40)}{n % 90}" for n in range(300)]
    quote = quoted(texts, provider, tmp_path, max_batch_items=17, max_batch_tokens=400)
    home = Settings(home=tmp_path / "home", journal=journal_url(str(tmp_path / "j.db")))
    hooks = Hooks(open_engine=lambda _model, **_: FakeEngine(dims=8))
    with Environment.open(home, hooks=hooks) as world:
        run = submit(
            texts,
            tmp_path / "out",
            environment=world,
            max_batch_items=17,
            max_batch_tokens=400,
        )
        status = run.wait(60)
        batches = [
            batch
            for batch in world.journal.batches.walk(run.id, states=[BatchState.PUBLISHED])
            if batch.kind == "embed"
        ]
    assert status.copies == quote.copies
    assert len(batches) == quote.batches
    assert sum(batch.tokens_estimated for batch in batches) == quote.tokens


def test_the_pace_is_measured_on_a_sample_from_everywhere(provider, tmp_path: Path) -> None:
    """64 texts, timed after a warm-up; the time follows from the pace."""
    moments = iter([10.0, 12.0])
    quote = quoted([f"text {n}" for n in range(1000)], provider, tmp_path, clock=moments.__next__)
    assert quote.sample_texts == SAMPLE_TEXTS
    assert quote.texts_per_s == pytest.approx(32.0)
    assert quote.seconds == pytest.approx(1000 / 32.0)
    assert not quote.too_small


def test_a_small_dataset_is_called_small(provider, tmp_path: Path) -> None:
    """Under 200 rows the interactive API is as good."""
    assert quoted(["a", "b"], provider, tmp_path).too_small
