"""Puts results where they belong: by the keys that the submission wrote, never by their order."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embatch.client.results import TEXT_KEY, Gauge, Row, RowBlock
from embatch.errors import AlignmentError, InvalidRequestError
from embatch.types.batch import EmbedContentBatch
from embatch.types.embedding import BatchEmbeddings, RowError
from embatch.types.label import Label, keys_digest, label_hash
from embatch.types.models import MODELS

MISSING: Final = RowError(
    code="missing", message="the results hold no row for this input", transient=True
)
MOST_ROWS: Final = (2 << 30) // 64
"""More rows than the largest input file holds: 2 GB, and no row is shorter than 64 bytes."""


def tagged_rows(batch: EmbedContentBatch) -> int | None:
    """How many rows a submission of ours wrote, as the tag of its label says; None without one."""
    label = Label.parse(batch.label)
    return None if label is None else label.rows


def own_index(own: str, key: str) -> int | None:
    """The index of the input sent under `key`, None for no key of the batch of label hash `own`."""
    prefix, _, digits = key.partition(":")
    if prefix != own or not 0 < len(digits) <= len(str(MOST_ROWS)):
        return None
    if not (digits.isascii() and digits.isdigit()) or (digits[0] == "0" and digits != "0"):
        return None
    index = int(digits)
    return index if index < MOST_ROWS else None


def last_own_index(batch: EmbedContentBatch, blocks: Iterable[RowBlock]) -> int | None:
    """The highest index among keys that a caller wrote as we do; None when no key is ours."""
    own = label_hash(batch.label)
    indices = (own_index(own, key) for block in blocks for key in block.all_keys)
    return max((index for index in indices if index is not None), default=None)


def checked_keys(
    batch: EmbedContentBatch, keys: Sequence[str] | None, rows: int | None
) -> Sequence[str] | None:
    """The user's keys for the rows of this batch; InvalidRequestError when they are others."""
    known = batch.keys if keys is None else tuple(keys)
    if known is None or rows is None:
        return known
    label = Label.parse(batch.label)
    digest = label.keys if label is not None else None
    if len(known) != rows or (digest is not None and digest != keys_digest(known)):
        raise InvalidRequestError(
            f"these {len(known)} keys are not the ones that batch {batch.name} was submitted with: "
            "give the same keys in the same order"
        )
    return known


def expected_dims(batch: EmbedContentBatch) -> int | None:
    """The length that the batch's vectors should have, None when it is not known.

    Only a submission of ours says what was asked for; others may ask row by row.
    """
    label = Label.parse(batch.label)
    if label is None or label.rows is None:
        return None
    known = MODELS.get(batch.model)
    return label.dims or (known.dims if known else None)


class Aligner:
    """Takes rows in any order; gives `rows` results in the order of the inputs."""

    def __init__(
        self,
        batch: EmbedContentBatch,
        rows: int,
        *,
        cut: bool = False,
        by_text: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """`cut` as a Gauge takes it. `by_text` maps the key of a text to the places that hold it,
        for services that give no key back; None while it is not known."""
        self._name, self._own = batch.name, label_hash(batch.label)
        self.rows = rows
        self.by_text = by_text
        self._gauge = Gauge(dims=expected_dims(batch), cut=cut)
        self._used: dict[str, int] = {}
        self._vectors: NDArray[np.float32] | None = None
        self._tokens: NDArray[np.int64] | None = None
        self._filled = bytearray(rows)
        self._errors: dict[int, RowError] = {}

    def add(self, rows: Iterable[Row]) -> None:
        """Takes rows. AlignmentError for a key that is unknown, foreign or there twice."""
        for row in rows:
            values = self._gauge.fitted(row)
            if not isinstance(values, RowError):
                place = self._claimed(row.key or "")
                if self._vectors is None:
                    # Not filled: each page is touched once, rows without a vector at the end.
                    self._vectors = np.empty((self.rows, len(values)), dtype=np.float32)
                self._vectors[place] = values
                if row.tokens >= 0:
                    self._count(place, row.tokens)
            elif row.key:  # else it could not be read: its input turns up as missing
                self._errors[self._claimed(row.key)] = values

    def _count(self, place: int, tokens: int) -> None:
        if self._tokens is None:
            self._tokens = np.full(self.rows, -1, dtype=np.int64)
        self._tokens[place] = tokens

    def _claimed(self, key: str) -> int:
        place = self._place(key)
        if self._filled[place]:
            raise self._misaligned("a key stands there twice")
        self._filled[place] = 1
        return place

    def _place(self, key: str) -> int:
        if key.startswith(TEXT_KEY):
            return self._place_of_text(key)
        index = own_index(self._own, key)
        if index is not None and index < self.rows:
            return index
        if key.startswith(f"{self._own}:"):
            raise self._misaligned("a key is among them that this batch never sent")
        said = "a row without a key" if not key else "a key of another batch"
        raise self._misaligned(f"{said} is among them")

    def _place_of_text(self, key: str) -> int:
        """Equal texts have equal vectors: they are given out in the order of the inputs."""
        places = (self.by_text or {}).get(key, ())
        used = self._used.get(key, 0)
        if used >= len(places):
            raise self._misaligned("a text is among them that this batch never sent so often")
        self._used[key] = used + 1
        return places[used]

    def _misaligned(self, what: str) -> AlignmentError:
        return AlignmentError(
            f"the results of {self._name} do not fit its {self.rows} inputs: {what}. Do not use "
            "them; submit the texts again, or read them unaligned with read_batch_results()."
        )

    def finish(self, *, keys: Sequence[str] | None) -> BatchEmbeddings:
        """Every input's result; one that never came is a RowError in its place."""
        place = -1
        while (place := self._filled.find(0, place + 1)) >= 0:
            self._errors[place] = MISSING
        vectors = self._vectors
        if vectors is None:
            vectors = np.empty((self.rows, self._gauge.dims or 0), dtype=np.float32)
        vectors[list(self._errors)] = np.nan
        return BatchEmbeddings(
            vectors=vectors, errors=self._errors, aligned=True, keys=keys, tokens=self._tokens
        )


def in_file_order(blocks: Iterable[RowBlock], *, dims: int | None) -> BatchEmbeddings:
    """The results of a batch that others made, in the order in which they came."""
    held = list(blocks)
    rows = sum(block.rows for block in held)
    width = next((b.block.vectors.shape[1] for b in held if len(b.places)), dims or 0)
    vectors = np.full((rows, width), np.nan, dtype=np.float32)
    tokens = np.full(rows, -1, dtype=np.int64)
    keys = [""] * rows
    errors: dict[int, RowError] = {}
    for entry in held:
        block = entry.block
        if len(entry.places):
            vectors[entry.places] = block.vectors
        if block.tokens is not None:
            tokens[entry.places] = block.tokens
        for place, key in _keyed(entry):
            keys[place] = key
        for place, (_, error) in zip(entry.error_places, block.errors, strict=True):
            errors[place] = error
    return BatchEmbeddings(
        vectors=vectors,
        errors=errors,
        aligned=False,
        keys=keys if any(keys) else None,
        tokens=tokens if (tokens >= 0).any() else None,
    )


def _keyed(entry: RowBlock) -> Iterator[tuple[int, str]]:
    yield from zip(entry.places.tolist(), entry.block.keys, strict=True)
    yield from zip(entry.error_places, (key for key, _ in entry.block.errors), strict=True)
