"""How many rows are audited, which, and how likely that is to find what is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.runs.sampling import (
    RAISED_ROWS,
    chance_in_a_run,
    chance_of_catching,
    drawn,
    rows_to_audit,
)

SIMULATED = 4_000


@pytest.mark.parametrize(
    ("audit", "rows", "raised", "wanted"),
    [
        (8, 50_000, None, 8),
        (8, 800, None, 8),
        (8, 500, None, 5),
        (8, 250, None, 2),
        (8, 20, None, 2),
        (8, 1, None, 1),
        (50, 2_000, None, 20),
        (1, 2_000, None, 2),
        (8, 50_000, RAISED_ROWS, 200),
        (8, 90, RAISED_ROWS, 90),
        (500, 60_000, RAISED_ROWS, 500),
        ("all", 5_000, None, 5_000),
        ("off", 5_000, RAISED_ROWS, 0),
    ],
)
def test_a_sample_is_a_hundredth_at_most_and_two_rows_at_least(
    audit: object, rows: int, raised: int | None, wanted: int
) -> None:
    """Unless a mismatch elsewhere asks for more."""
    assert rows_to_audit(audit, rows, raised=raised) == wanted


@given(st.integers(0, 300), st.integers(0, 300), st.text(max_size=8))
def test_a_sample_is_of_the_candidates_and_the_same_again(
    candidates: int, rows: int, seed: str
) -> None:
    """No row twice, ascending; a crash between drawing and journaling changes nothing."""
    pool = np.arange(candidates, dtype=np.int64) * 3
    sample = drawn(seed, pool, rows)
    assert len(sample) == min(rows, candidates)
    assert np.isin(sample, pool).all()
    assert (np.diff(sample) > 0).all()
    assert np.array_equal(sample, drawn(seed, pool, rows))


def test_every_row_is_as_likely_as_any_other() -> None:
    """Over many labels each of 50 rows is drawn about 8 times in 50."""
    hits = np.zeros(50)
    for label in range(SIMULATED):
        hits[drawn(f"embatch:j:r:{label}:1", np.arange(50), 8)] += 1
    expected = SIMULATED * 8 / 50
    assert np.abs(hits - expected).max() < 5 * math.sqrt(expected)


@pytest.mark.parametrize("rows", [200, 800, 20_000])
@pytest.mark.parametrize("share", [0.02, 0.10, 0.60])
@pytest.mark.parametrize("raised", [None, RAISED_ROWS])
def test_the_chance_computed_is_the_chance_seen(
    rows: int, share: float, raised: int | None
) -> None:
    """Misaligned rows at random places of thousands of batches, each with its own sample."""
    wrong, sample = round(rows * share), rows_to_audit(8, rows, raised=raised)
    computed = chance_of_catching(rows=rows, wrong=wrong, sample=sample)
    exact = 1 - math.comb(rows - wrong, sample) / math.comb(rows, sample)
    assert computed == pytest.approx(exact, abs=1e-12)
    chance, times = np.random.default_rng([rows, wrong, sample]), SIMULATED // 4
    everything, caught = np.arange(rows), 0
    for label in range(times):
        misaligned = chance.permutation(rows) < wrong
        caught += bool(misaligned[drawn(f"label {label}", everything, sample)].any())
    spread = math.sqrt(max(computed * (1 - computed), 1 / times) / times)
    assert abs(caught / times - computed) < 5 * spread


@pytest.mark.parametrize("batches", [1, 5, 20])
def test_the_chance_over_a_run_computed_is_the_chance_seen(batches: int) -> None:
    """Every batch of a run is misaligned by 2 %: one of them at least is caught."""
    rows, wrong = 800, 16
    sample = rows_to_audit(8, rows)
    computed = chance_in_a_run(chance_of_catching(rows=rows, wrong=wrong, sample=sample), batches)
    times = SIMULATED // 4
    caught = sum(
        any(
            (drawn(f"run {run} batch {batch}", np.arange(rows), sample) < wrong).any()
            for batch in range(batches)
        )
        for run in range(times)
    )
    spread = math.sqrt(max(computed * (1 - computed), 1 / times) / times)
    assert abs(caught / times - computed) < 5 * spread


def test_auditing_every_row_misses_nothing() -> None:
    """`--audit all`: two rows in a million are found."""
    sample = rows_to_audit("all", 1_000_000)
    assert chance_of_catching(rows=1_000_000, wrong=2, sample=sample) == 1.0
