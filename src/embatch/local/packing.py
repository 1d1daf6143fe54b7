"""Which texts go through the model together: pure planning over token counts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH_MULTIPLE = 16
"""Batches are padded to a multiple of so many tokens: fewer shapes, fewer compiled kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """Texts that go through the model together."""

    rows: NDArray[np.int64]
    """Their places in the window."""
    width: int
    """Tokens that each is padded to."""


def pack(lengths: Sequence[int], *, budget: int, max_width: int, lanes: int = 1) -> Iterator[Pack]:
    """Packs of at most `budget` padded tokens, longest texts first, each text in one pack.

    `lengths` are token counts, at most `max_width`. A text longer than the budget goes alone.
    The packs are made even for `lanes` workers, so that none waits long for the last.
    """
    if not len(lengths):
        return
    tokens = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-tokens, kind="stable")
    widths = np.minimum(-(-tokens[order] // WIDTH_MULTIPLE) * WIDTH_MULTIPLE, max_width)
    rounds = -(-int(widths.sum()) // (lanes * budget))
    even = min(budget, -(-int(widths.sum()) // (lanes * rounds)))
    start = 0
    while start < len(order):
        width = int(widths[start])
        count = max(1, even // width)
        yield Pack(rows=order[start : start + count], width=width)
        start += count
