"""Batches are cut full, within limits, in order, and nothing is left out."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from embatch.runs.plan import Cutter
from embatch.types.batch import Limits


def limits(items: int, tokens: int = 10**9, size: int = 10**9) -> Limits:
    return Limits(
        max_batch_items=items,
        max_batch_tokens=tokens,
        max_batch_bytes=size,
        max_in_flight_batches=1,
        max_item_tokens=256,
    )


def table(first: int, texts: list[str]) -> pa.Table:
    rows = list(range(first, first + len(texts)))
    return pa.table({"key": [str(row) for row in rows], "row": rows, "text": texts})


@given(
    blocks=st.lists(st.lists(st.text(max_size=40), max_size=12), max_size=8),
    items=st.integers(1, 9),
    tokens=st.integers(3, 60),
    size=st.integers(1, 200),
)
def test_every_item_is_in_one_batch_in_order_and_within_limits(
    blocks: list[list[str]], items: int, tokens: int, size: int
) -> None:
    """However the blocks fall, the batches hold all items in order and keep the limits."""
    cutter = Cutter(limits(items, tokens, size))
    cuts = []
    first = 0
    for texts in blocks:
        cuts += cutter.add(table(first, texts))
        first += len(texts)
        waiting = cutter.first_waiting_row
        done = sum(cut.items.num_rows for cut in cuts)
        assert waiting == (done if done < first else None)
    cuts += cutter.rest()
    assert [row for cut in cuts for row in cut.items["row"].to_pylist()] == list(range(first))
    for cut in cuts:
        texts = cut.items["text"].to_pylist()
        assert cut.text_bytes == sum(len(text.encode()) for text in texts)
        assert len(texts) <= items
        assert len(texts) == 1 or (cut.tokens <= tokens and cut.text_bytes <= size)


def test_a_batch_is_full_before_the_next_begins() -> None:
    """Only the last batch may have room."""
    cutter = Cutter(limits(4))
    cuts = [*cutter.add(table(0, ["a"] * 10)), *cutter.rest()]
    assert [cut.items.num_rows for cut in cuts] == [4, 4, 2]


def test_an_item_over_the_limits_goes_alone() -> None:
    """The service is the one to refuse it; its neighbours are not held up."""
    cutter = Cutter(limits(9, size=10))
    cuts = [*cutter.add(table(0, ["aa", "b" * 50, "cc"])), *cutter.rest()]
    assert [cut.items.num_rows for cut in cuts] == [1, 1, 1]
