"""Cuts a stream of items into batches within limits. Pure: no files, no clock, no journal."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embatch.runs.tokens import estimate_tokens
from embatch.types.batch import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The items of one batch-to-be."""

    items: pa.Table
    """As they came, columns `key`, `row`, `text` and the rest."""
    tokens: int
    """Estimated."""
    text_bytes: int


class Cutter:
    """Takes items in order and gives batches that are as full as the limits allow."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: list[pa.Table] = []
        self._tokens: list[NDArray[np.int64]] = []
        self._bytes: list[NDArray[np.int64]] = []

    @property
    def first_waiting_row(self) -> int | None:
        """Row of the first item that is in no batch yet."""
        return self._waiting[0]["row"][0].as_py() if self._waiting else None

    def add(self, items: pa.Table) -> Iterator[Cut]:
        """Takes more items; gives every batch that is full now."""
        if items.num_rows:
            sizes = pc.binary_length(items["text"]).to_numpy().astype(np.int64)
            self._waiting.append(items)
            self._bytes.append(sizes)
            self._tokens.append(estimate_tokens(sizes, self._limits.max_item_tokens))
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
        tokens, sizes = np.concatenate(self._tokens), np.concatenate(self._bytes)
        # An item that alone is over a limit goes alone: the service is the one to refuse it.
        end = min(
            self._limits.max_batch_items,
            max(1, int(np.searchsorted(np.cumsum(tokens), self._limits.max_batch_tokens, "right"))),
            max(1, int(np.searchsorted(np.cumsum(sizes), self._limits.max_batch_bytes, "right"))),
        )
        return end if end < len(tokens) or end == self._limits.max_batch_items else None

    def _take(self, end: int) -> Cut:
        items = pa.concat_tables(self._waiting)
        tokens, sizes = np.concatenate(self._tokens), np.concatenate(self._bytes)
        if end < items.num_rows:
            self._waiting = [items.slice(end)]
            self._tokens, self._bytes = [tokens[end:]], [sizes[end:]]
        else:
            self._waiting, self._tokens, self._bytes = [], [], []
        return Cut(
            items=items.slice(0, end),
            tokens=int(tokens[:end].sum()),
            text_bytes=int(sizes[:end].sum()),
        )
