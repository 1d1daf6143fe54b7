"""Cuts a stream of items into batches within limits. Pure: no files, no clock, no journal."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embatch.runs.tokens import DEFAULT_RATE, TokenRate, estimate_tokens
from embatch.types.batch import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The items of one batch-to-be."""

    items: pa.Table
    """As they came, columns `key`, `row`, `text` and the rest."""
    tokens: int
    """Estimated."""
    tokens_bound: int
    """More cannot be billed."""
    item_bound: int
    """More cannot be billed for any one of the items."""
    text_bytes: int
    probe: bool = False
    """The first batch, cut small on purpose."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Figures of items, `[n]` each."""

    text_bytes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def cut(self, start: int, end: int | None) -> "_Sizes":
        here = slice(start, end)
        return _Sizes(self.text_bytes[here], self.tokens[here], self.bounds[here])


def item_bounds(
    text_bytes: NDArray[np.int64], prompt_bytes: int, max_item_tokens: int
) -> NDArray[np.int64]:
    """The most tokens that each text can be billed, `[n]`: its UTF-8 bytes and those of the
    prompt around it, and no more than the model reads; at least 1."""
    return np.clip(text_bytes + prompt_bytes, 1, max_item_tokens)


class Cutter:
    """Takes items in order and gives batches that are as full as the limits allow."""

    def __init__(
        self,
        limits: Limits,
        *,
        prompt_bytes: int = 0,
        max_batch_bound: int | None = None,
        first_items: int | None = None,
        rate: TokenRate = DEFAULT_RATE,
    ) -> None:
        """`prompt_bytes` is what the service is sent around each text; `max_batch_bound` is the
        most tokens that one batch may be billed, None without a cap; `first_items` is the most
        items of the first batch; tokens are estimated by `rate`."""
        self._limits = limits
        self._rate = rate
        self._prompt_bytes = prompt_bytes
        self._max_bound = 2**62 if max_batch_bound is None else max(1, max_batch_bound)
        self._first_items = first_items
        self._waiting: list[pa.Table] = []
        self._sizes: list[_Sizes] = []

    @property
    def first_waiting_row(self) -> int | None:
        """Row of the first item that is in no batch yet."""
        return self._waiting[0]["row"][0].as_py() if self._waiting else None

    def add(self, items: pa.Table) -> Iterator[Cut]:
        """Takes more items; gives every batch that is full now."""
        if items.num_rows:
            text_bytes = pc.binary_length(items["text"]).to_numpy().astype(np.int64)
            most = self._limits.max_item_tokens
            self._waiting.append(items)
            self._sizes.append(
                _Sizes(
                    text_bytes,
                    estimate_tokens(text_bytes + self._prompt_bytes, most, self._rate),
                    item_bounds(text_bytes, self._prompt_bytes, most),
                )
            )
        while (end := self._full_batch()) is not None:
            yield self._take(end)

    def rest(self) -> Iterator[Cut]:
        """The last batch, full or not."""
        total = sum(table.num_rows for table in self._waiting)
        if total:
            yield self._take(total)

    def _full_batch(self) -> int | None:
        """Items of the next batch, None while more may still fit."""
        if not self._waiting:
            return None
        sizes = self._all_sizes()
        # An item that alone is over a limit goes alone: the service is the one to refuse it.
        end = min(
            self._most_items,
            _fitting(sizes.tokens, self._limits.max_batch_tokens),
            _fitting(sizes.bounds, self._max_bound),
            _fitting(sizes.text_bytes, self._limits.max_batch_bytes),
        )
        full = end < len(sizes.tokens) or end == self._most_items
        return end if full else None

    def _take(self, end: int) -> Cut:
        items, sizes = pa.concat_tables(self._waiting), self._all_sizes()
        if end < items.num_rows:
            self._waiting, self._sizes = [items.slice(end)], [sizes.cut(end, None)]
        else:
            self._waiting, self._sizes = [], []
        taken = sizes.cut(0, end)
        probe, self._first_items = self._first_items is not None, None
        return Cut(
            items=items.slice(0, end),
            tokens=int(taken.tokens.sum()),
            tokens_bound=int(taken.bounds.sum()),
            item_bound=int(taken.bounds.max()),
            text_bytes=int(taken.text_bytes.sum()),
            probe=probe,
        )

    @property
    def _most_items(self) -> int:
        return min(self._limits.max_batch_items, self._first_items or 2**62)

    def _all_sizes(self) -> _Sizes:
        if len(self._sizes) > 1:
            self._sizes = [
                _Sizes(
                    np.concatenate([one.text_bytes for one in self._sizes]),
                    np.concatenate([one.tokens for one in self._sizes]),
                    np.concatenate([one.bounds for one in self._sizes]),
                )
            ]
        return self._sizes[0]


def _fitting(sizes: NDArray[np.int64], most: int) -> int:
    """How many items, from the first on, stay within `most`; at least 1."""
    return max(1, int(np.searchsorted(np.cumsum(sizes), most, "right")))
