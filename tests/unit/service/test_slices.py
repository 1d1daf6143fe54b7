"""A poisoned row fails alone, and a broken engine is told from a bad row."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.errors import BatchFailedError, InvalidRequestError
from embatch.service.slices import SMALLEST_SLICE, embed_slice, next_slice_items, slice_end
from embatch.testing import FakeEngine
from embatch.types.results import Embedded


@given(poisoned=st.lists(st.booleans(), min_size=1, max_size=70))
def test_exactly_the_poisoned_rows_fail(poisoned: list[bool]) -> None:
    """Whatever rows are poisoned, those and no others fail, and the rest is bit-equal."""
    engine = FakeEngine(8, poison="POISON")
    texts = [f"{row} {'POISON' if bad else ''}" for row, bad in enumerate(poisoned)]
    made = embed_slice(engine, texts, prompt="p: ", dims=5)
    good = ~np.array(poisoned)
    assert sorted(made.errors) == np.flatnonzero(poisoned).tolist()
    assert (made.vectors[good] == engine.expected(texts, prompt="p: ", dims=5)[good]).all()
    assert not made.vectors[~good].any()
    assert made.tokens[~good].sum() == 0
    assert len(made.tokens) == len(made.truncated) == len(texts)


def test_one_poisoned_row_costs_few_calls() -> None:
    """A bad row among 1,024 is found by halving, not by a call for each row."""
    engine = FakeEngine(8, poison="POISON")
    embed_slice(engine, ["fine"] * 700 + ["POISON"] + ["fine"] * 323, prompt="", dims=8)
    assert engine.calls <= 2 + 2 * 10


def test_foreign_messages_are_not_kept() -> None:
    """What a library says may quote the text: the row error names the exception's type only."""
    engine = FakeEngine(8, poison="secret")
    made = embed_slice(engine, ["a secret text"], prompt="", dims=8)
    assert made.errors[0].code == "internal"
    assert made.errors[0].message == "the model raised RuntimeError"


def test_a_refused_text_is_an_invalid_argument() -> None:
    """An engine that refuses a text says so in its row's code."""
    engine = FakeEngine(8, poison="POISON", poison_error=InvalidRequestError)
    made = embed_slice(engine, ["a", "POISON"], prompt="", dims=8)
    assert made.errors[1].code == "invalid_argument"


def test_a_broken_engine_fails_the_batch_not_its_rows() -> None:
    """An engine that embeds no text at all is not a thousand bad rows, and is asked twice only."""
    engine = FakeEngine(8, poison="")
    with pytest.raises(BatchFailedError, match="embeds no text at all: the model raised Runtime"):
        embed_slice(engine, ["private"] * 1000, prompt="", dims=8)
    assert engine.calls == 2


def test_values_that_are_not_finite_are_row_errors() -> None:
    """A vector with NaN or infinity is no vector."""

    class Overflowing(FakeEngine):
        def embed(self, texts: Sequence[str], **options: Any) -> Embedded:
            made = super().embed(texts, **options)
            made.vectors[1, 2] = np.nan
            made.vectors[3, 0] = np.inf
            return made

    made = embed_slice(Overflowing(8), list("abcde"), prompt="", dims=8)
    assert sorted(made.errors) == [1, 3]
    assert np.isfinite(made.vectors).all()
    assert (made.vectors[[0, 2, 4]] == FakeEngine(8).expected(["a", "c", "e"])).all()
    assert made.tokens[[1, 3]].tolist() == [0, 0]


def test_an_engine_that_gives_too_few_vectors_is_broken() -> None:
    """A matrix of another shape than asked for never reaches a result."""

    class Forgetful(FakeEngine):
        def embed(self, texts: Sequence[str], **options: Any) -> Embedded:
            return super().embed(texts[1:], **options)

    with pytest.raises(BatchFailedError, match="embeds no text at all"):
        embed_slice(Forgetful(8), ["a", "b"], prompt="", dims=8)


@given(
    items=st.integers(1, 1024),
    rows=st.integers(1, 1024),
    elapsed_s=st.floats(0, 100),
)
def test_slices_stay_within_bounds(items: int, rows: int, elapsed_s: float) -> None:
    """A slow slice makes the next one smaller, a fast full one larger, never beyond the limits."""
    rows = min(items, rows)
    size = next_slice_items(items, rows, elapsed_s, target_s=2.0, largest=1024)
    assert min(items, SMALLEST_SLICE) <= size <= min(items * 2, 1024)
    if elapsed_s < 1.0 and rows == items:
        assert size >= items
    elif elapsed_s > 2.0:
        assert size <= max(rows, SMALLEST_SLICE)


@given(items=st.integers(1, 10_000), wanted=st.integers(1, 4096))
def test_slices_cover_a_batch_without_a_crumb(items: int, wanted: int) -> None:
    """Every slice but the only one has a quarter of what is wanted at least, at most one more."""
    ends = [0]
    while ends[-1] < items:
        ends.append(slice_end(ends[-1], wanted, items))
    sizes = [after - before for before, after in pairwise(ends)]
    assert ends[-1] == items
    assert all(wanted - 3 <= 4 * size < 5 * wanted + 4 for size in sizes) or len(sizes) == 1


def test_a_short_batch_that_was_slow_counts_too() -> None:
    """A slice cut short by its batch's end tells as much about the engine as a full one."""
    assert next_slice_items(1024, 600, 10.0, target_s=2.0, largest=1024) == 120
    assert next_slice_items(256, 10, 0.001, target_s=2.0, largest=1024) == 256
