"""The fake engine tells every text from every other, in any company."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.errors import InvalidRequestError
from embatch.testing import FakeEngine

any_text = st.text(st.characters(codec=None), max_size=40)


@given(texts=st.lists(any_text, min_size=1, max_size=30), dims=st.integers(1, 64))
def test_vectors_are_bit_equal_in_any_company(texts: list[str], dims: int) -> None:
    """A text's vector is the same alone and among others, and has length 1."""
    engine = FakeEngine()
    together = engine.embed(texts, dims=dims).vectors
    alone = np.concatenate([engine.embed([text], dims=dims).vectors for text in texts])
    assert together.tobytes() == alone.tobytes()
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)


def test_no_two_texts_share_a_vector() -> None:
    """Ten thousand texts have ten thousand vectors, and none is near another."""
    vectors = FakeEngine(64).expected([f"text {number}" for number in range(10_000)])
    assert len(np.unique(vectors, axis=0)) == 10_000
    near = vectors[:1000] @ vectors[:1000].T - np.eye(1000)
    assert near.max() < 0.8


def test_the_prompt_is_part_of_the_text() -> None:
    """A prompt changes the vector exactly as the same words in the text do."""
    engine = FakeEngine()
    prompted = engine.embed(["what is it"], prompt="query: ")
    assert (prompted.vectors == engine.expected(["query: what is it"])).all()
    assert (prompted.vectors != engine.expected(["what is it"])).any()


def test_tokens_are_words_and_long_texts_are_cut() -> None:
    """Tokens count words and the special ones, up to the limit, where `truncated` says so."""
    made = FakeEngine(max_tokens=5).embed(["one two three", "one two three four", ""])
    assert made.tokens.tolist() == [5, 5, 2]
    assert made.truncated.tolist() == [False, True, False]


def test_poison_makes_the_whole_call_raise() -> None:
    """One poisoned text sinks its call, as with a real engine, and counts no text."""
    engine = FakeEngine(poison="POISON", poison_error=ValueError)
    with pytest.raises(ValueError, match="POISON"):
        engine.embed(["fine", "a POISON pill"])
    assert (engine.calls, engine.texts_embedded) == (1, 0)


def test_the_delay_is_slept_once_a_call() -> None:
    """Each call sleeps the delay through the function given."""
    slept: list[float] = []
    engine = FakeEngine(delay_s=0.5, sleep=slept.append)
    engine.embed(["a", "b"])
    engine.embed(["c"])
    assert slept == [0.5, 0.5]


def test_dims_out_of_range_are_refused() -> None:
    """More dims than the model has, or none, is the caller's mistake."""
    for dims in (0, 65):
        with pytest.raises(InvalidRequestError, match=r"1\.\.64"):
            FakeEngine(64).embed(["a"], dims=dims)
