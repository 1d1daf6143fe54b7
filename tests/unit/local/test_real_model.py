"""The engine on all-MiniLM-L6-v2: what only real weights can show."""

from collections.abc import Iterator

import numpy as np
import pytest

from embatch.local.calibration import TEXTS
from embatch.local.engine import Engine

pytestmark = pytest.mark.engine

KNOWN = [0.13024, -0.01577, -0.03672, 0.05799, -0.05979, 0.03305]
"""First values for "The cat sat on the mat." by sentence-transformers 6.2, float32."""


@pytest.fixture(scope="module", params=["f32", "bf16", "int8"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The default model in each precision that this processor has."""
    from embatch.local.precision import capabilities

    if request.param == "bf16" and "BF16" not in capabilities():
        pytest.skip("this processor has no bf16")
    with Engine.open(precision=request.param, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of many lengths, none of which calibration saw in this form."""
    joined = " ".join(reversed(TEXTS)).split()
    return [" ".join(joined[start : start + 1 + start % 150]) for start in range(0, 900, 11)]


def test_a_vector_does_not_depend_on_its_neighbours(engine: Engine, texts: list[str]) -> None:
    """Alone, in other company and in another order a text keeps its vector."""
    together = engine.embed(texts).vectors
    alone = np.concatenate([engine.embed([text]).vectors for text in texts[::8]])
    turned = engine.embed(texts[::-1] * 2).vectors[: len(texts)][::-1]
    least = 0.9995 if engine.precision == "int8" else 0.9999
    assert np.einsum("ij,ij->i", together[::8], alone).min() >= least
    assert np.einsum("ij,ij->i", together, turned).min() >= least


def test_vectors_are_near_those_of_float32(engine: Engine, texts: list[str]) -> None:
    """Each precision keeps the accuracy that the docs promise."""
    with Engine.open(precision="f32") as reference:
        expected = reference.embed(texts).vectors
    cosines = np.einsum("ij,ij->i", engine.embed(texts).vectors, expected)
    assert cosines.mean() >= (0.997 if engine.precision == "int8" else 0.9999)


def test_meaning_shows_in_cosines(engine: Engine) -> None:
    """A paraphrase is nearer than a text about something else."""
    vectors = engine.embed(
        [
            "The cat sat on the mat.",
            "A cat was sitting on a rug.",
            "Interest rates rose by half a point.",
        ]
    ).vectors
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3


def test_known_values(engine: Engine) -> None:
    """The vector of one sentence is that of sentence-transformers 6.2 in float32."""
    vector = engine.embed(["The cat sat on the mat."]).vectors[0]
    assert abs(np.linalg.norm(vector) - 1) < 1e-5
    np.testing.assert_allclose(vector[:6], KNOWN, atol=0.02 if engine.precision == "int8" else 2e-3)
