"""Packing: which texts go through the model together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embatch.local.packing import WIDTH_MULTIPLE, pack

LENGTHS = st.lists(st.integers(min_value=1, max_value=256), max_size=300)


@given(lengths=LENGTHS, budget=st.integers(16, 4096), lanes=st.integers(1, 8))
def test_every_text_is_in_one_pack_that_it_fits(
    lengths: list[int], budget: int, lanes: int
) -> None:
    """No text is lost, doubled or cut, whatever the lengths."""
    packs = list(pack(lengths, budget=budget, max_width=256, lanes=lanes))
    rows = [int(row) for planned in packs for row in planned.rows]
    assert sorted(rows) == list(range(len(lengths)))
    for planned in packs:
        assert planned.width >= max(lengths[row] for row in planned.rows)


@given(lengths=LENGTHS, budget=st.integers(16, 4096), lanes=st.integers(1, 8))
def test_a_pack_stays_within_the_budget_unless_one_text_exceeds_it(
    lengths: list[int], budget: int, lanes: int
) -> None:
    """The budget bounds the memory that a pack takes."""
    for planned in pack(lengths, budget=budget, max_width=256, lanes=lanes):
        assert len(planned.rows) == 1 or len(planned.rows) * planned.width <= budget


def test_widths_are_few() -> None:
    """Padding goes to multiples of 16, so that a model meets few shapes."""
    packs = pack(range(1, 250), budget=512, max_width=256)
    assert {planned.width % WIDTH_MULTIPLE for planned in packs} == {0}


def test_no_text_is_padded_beyond_what_the_model_reads() -> None:
    """A limit that is no multiple of the step stays the limit."""
    assert [planned.width for planned in pack([20], budget=512, max_width=20)] == [20]


def test_real_lengths_waste_little_on_padding() -> None:
    """Sorted by length, a window of 1,024 texts is padded by less than a tenth."""
    lengths = np.random.default_rng(1).triangular(20, 80, 256, 1024).astype(int).tolist()
    padded = sum(
        len(planned.rows) * planned.width
        for planned in pack(lengths, budget=2048, max_width=256, lanes=2)
    )
    assert padded < 1.1 * sum(lengths)


def test_packs_are_even_for_the_lanes() -> None:
    """Texts for a pack and a bit are cut into two halves, not into a whole and a rest."""
    sizes = [len(planned.rows) for planned in pack([16] * 40, budget=512, max_width=256, lanes=2)]
    assert sizes == [20, 20]
