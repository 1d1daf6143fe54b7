"""Joins results to items by key, and checks each vector. Nothing is ever joined by position."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from embatch import vectors
from embatch.errors import AlignmentError
from embatch.providers.base import label_hash
from embatch.types.embedding import RowError, Space
from embatch.types.label import LABEL_HASH_CHARS
from embatch.types.results import Matrix, ResultBlock

MISSING = RowError(code="missing", message="the results hold no line for this row", transient=True)
NOT_FINITE = RowError(
    code="not_finite", message="the vector holds NaN or infinite values", transient=True
)
ZERO_VECTOR = RowError(
    code="zero_vector", message="the vector is all zeros and has no direction", transient=True
)

_WIRE_KEY = re.compile(rf"[0-9a-f]{{{LABEL_HASH_CHARS}}}:\d+")
"""A key as any batch of ours has it."""
MAX_DIGITS = 12
"""More than the index of any item has."""
UNIT_TOLERANCE = 1e-5
"""Vectors so near to length 1 stay as they came, to the bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A batch's results, each at its item's place."""

    vectors: Matrix
    """`[items, dims]`; rows that have an error are undefined."""
    errors: dict[int, RowError]
    """By item index."""
    tokens: int
    """Billed for the rows with a vector that tell."""
    uncounted: int
    """Rows with a vector that do not tell their tokens."""
    truncated: NDArray[np.bool_]
    """`[items]`."""
    repeated: int
    """Lines that came again with the identical vector."""
    unknown: int = 0
    """Lines under keys that nobody sent; nothing of them is kept."""


class Join:
    """Takes result blocks in any order and puts each row where its key says."""

    def __init__(self, *, label: str, items: int, space: Space, into: Matrix) -> None:
        self._prefix = f"{label_hash(label)}:"
        self._items = items
        self._space = space
        self._vectors = into
        self._seen = np.zeros(items, dtype=bool)
        self._truncated = np.zeros(items, dtype=bool)
        self._errors: dict[int, RowError] = {}
        self._tokens = 0
        self._uncounted = 0
        self._repeated = 0
        self._unknown = 0

    def add(self, block: ResultBlock) -> None:
        """Places a block; lines under keys that nobody sent are counted and dropped.

        Raises AlignmentError for a key of another batch, or one that is doubled differently.
        """
        places = self._places(block.keys)
        if (places < 0).any():
            known = places >= 0
            self._unknown += int((~known).sum())
            places, block = places[known], _only(block, known)
        if len(places):
            self._place(places, block)
        for key, error in block.errors:
            index = int(self._places([key])[0])
            if index < 0:
                self._unknown += 1
                continue
            if self._seen[index] and index not in self._errors:
                raise AlignmentError(f"item {index} came both as a vector and as an error")
            self._seen[index] = True
            self._errors[index] = error

    def finish(self) -> Joined:
        """The whole batch; items that no line spoke of are errors in their place."""
        for index in np.flatnonzero(~self._seen).tolist():
            self._errors[index] = MISSING
        return Joined(
            vectors=self._vectors,
            errors=self._errors,
            tokens=self._tokens,
            uncounted=self._uncounted,
            truncated=self._truncated,
            repeated=self._repeated,
            unknown=self._unknown,
        )

    def _places(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """The item of each key, -1 for a key that nobody sent."""
        prefix, start = self._prefix, len(self._prefix)
        digits = [key[start:] for key in keys]
        if not all(key.startswith(prefix) for key in keys) or not _are_indices(digits):
            return np.array([self._place_of(key) for key in keys], dtype=np.int64)
        places = np.array(list(map(int, digits)), dtype=np.int64)
        places[places >= self._items] = -1
        return places

    def _place_of(self, key: str) -> int:
        if key.startswith(self._prefix):
            digits = key[len(self._prefix) :]
            place = int(digits) if _is_index(digits) else -1
            return place if place < self._items else -1
        if _WIRE_KEY.fullmatch(key):
            raise AlignmentError("the results hold a key of another batch")
        return -1

    def _place(self, places: NDArray[np.int64], block: ResultBlock) -> None:
        if block.vectors.shape != (len(places), self._space.dims):
            raise AlignmentError(
                f"the results hold {block.vectors.shape[0]} vectors of {block.vectors.shape[1]} "
                f"values for {len(places)} keys of {self._space.dims}"
            )
        checked = self._checked(places, block.vectors)
        first = self._first_of_each(places, checked)
        self._vectors[places[first]] = checked if first.all() else checked[first]
        self._seen[places] = True
        told = np.full(len(places), -1) if block.tokens is None else block.tokens
        told = told[first & self._usable(places)]
        self._tokens += int(np.maximum(told, 0).sum())
        self._uncounted += int((told <= 0).sum())
        if block.truncated is not None:
            self._truncated[places[first]] = block.truncated[first]

    def _usable(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which places have no error."""
        if not self._errors:
            return np.ones(len(places), dtype=bool)
        return ~np.isin(places, np.fromiter(self._errors, dtype=np.int64))

    def _checked(self, places: NDArray[np.int64], block: Matrix) -> Matrix:
        lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
        # Squares of finite values may be too large or too small to tell.
        doubtful = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0.0)))
        finite = np.ones(len(places), dtype=bool)
        finite[doubtful] = np.isfinite(block[doubtful]).all(axis=1)
        zero = doubtful[finite[doubtful] & ~block[doubtful].any(axis=1)]
        for index in places[~finite].tolist():
            self._errors[index] = NOT_FINITE
        for index in places[zero].tolist():
            self._errors[index] = ZERO_VECTOR
        if not self._space.normalized:
            return block
        off = finite & (np.abs(lengths - 1.0) > UNIT_TOLERANCE)
        if not off.any():
            return block
        mended = block.copy()
        mended[off] = vectors.normalize(block[off])
        return mended

    def _first_of_each(self, places: NDArray[np.int64], block: Matrix) -> NDArray[np.bool_]:
        """Which lines are the first for their item; the others must bear the same vector."""
        first = np.zeros(len(places), dtype=bool)
        first[np.unique(places, return_index=True)[1]] = True
        first &= ~self._seen[places]
        if first.all():
            return first
        kept = dict(zip(places[first].tolist(), np.flatnonzero(first).tolist(), strict=True))
        for line in np.flatnonzero(~first).tolist():
            index = int(places[line])
            known = block[kept[index]] if index in kept else self._vectors[index]
            if not np.array_equal(known, block[line], equal_nan=True):
                raise AlignmentError(f"item {index} came twice with different vectors")
            self._repeated += 1
        return first


def _is_index(digits: str) -> bool:
    return len(digits) <= MAX_DIGITS and digits.isascii() and digits.isdigit()


def _are_indices(several: Sequence[str]) -> bool:
    together = "".join(several)
    sizes = set(map(len, several)) or {1}
    sound = not together or (together.isascii() and together.isdigit())
    return sound and min(sizes) > 0 and max(sizes) <= MAX_DIGITS


def _only(block: ResultBlock, rows: NDArray[np.bool_]) -> ResultBlock:
    """Some vectors of a block, with all of its errors."""
    return replace(
        block,
        keys=[key for key, kept in zip(block.keys, rows.tolist(), strict=True) if kept],
        vectors=block.vectors[rows],
        tokens=None if block.tokens is None else block.tokens[rows],
        truncated=None if block.truncated is None else block.truncated[rows],
    )
