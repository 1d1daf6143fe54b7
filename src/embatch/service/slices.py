"""One slice of a batch through the engine: a poisoned row fails alone."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from embatch.errors import BatchFailedError, EmbatchError, InputError, InvalidRequestError
from embatch.service.files import SliceResult
from embatch.types.embedding import RowError
from embatch.types.results import Embedded, TextEngine

PROBE_TEXT: Final = "probe"
"""A text that every working engine embeds: tells a bad row from a broken engine."""

SMALLEST_SLICE: Final = 32
"""Rows: below, the engine has too little to sort by length."""


def embed_slice(engine: TextEngine, texts: Sequence[str], *, prompt: str, dims: int) -> SliceResult:
    """Vectors of `texts`; rows that the engine refuses are found by halving and become errors.

    Raises `BatchFailedError` when it is not the rows: the engine cannot embed any text.
    """
    whole = _attempt(engine, texts, prompt, dims)
    if isinstance(whole, RowError):
        probed = _attempt(engine, [PROBE_TEXT], prompt, dims)
        if isinstance(probed, RowError):
            raise BatchFailedError(f"model {engine.model} embeds no text at all: {probed.message}")
        return _halved(engine, texts, prompt, dims, whole)
    return _checked(whole)


def _halved(
    engine: TextEngine, texts: Sequence[str], prompt: str, dims: int, refusal: RowError
) -> SliceResult:
    """The slice in halves, down to single rows. `refusal` is what all of it together met."""
    if len(texts) == 1:
        return SliceResult(
            vectors=np.zeros((1, dims), dtype=np.float32),
            tokens=np.zeros(1, dtype=np.int32),
            truncated=np.zeros(1, dtype=np.bool_),
            errors={0: refusal},
        )
    middle = len(texts) // 2
    halves: list[SliceResult] = []
    for half in (texts[:middle], texts[middle:]):
        made = _attempt(engine, half, prompt, dims)
        if isinstance(made, RowError):
            halves.append(_halved(engine, half, prompt, dims, made))
        else:
            halves.append(_checked(made))
    first, second = halves
    return SliceResult(
        vectors=np.concatenate([first.vectors, second.vectors]),
        tokens=np.concatenate([first.tokens, second.tokens]),
        truncated=np.concatenate([first.truncated, second.truncated]),
        errors={
            **first.errors,
            **{middle + place: error for place, error in second.errors.items()},
        },
    )


def _attempt(
    engine: TextEngine, texts: Sequence[str], prompt: str, dims: int
) -> Embedded | RowError:
    try:
        made = engine.embed(texts, prompt=prompt, dims=dims)
    except Exception as error:  # noqa: BLE001 - whatever the engine raises, these rows met it
        return _refusal(error)
    if made.vectors.shape != (len(texts), dims):
        return RowError(
            code="internal",
            message=f"the model gave {made.vectors.shape} for {len(texts)} texts of {dims} values",
        )
    return made


def _refusal(error: Exception) -> RowError:
    """The row error for what an engine raised. Foreign messages may quote the text: not kept."""
    if isinstance(error, (InvalidRequestError, InputError)):
        return RowError(code="invalid_argument", message=str(error))
    if isinstance(error, EmbatchError):
        return RowError(code="internal", message=str(error))
    return RowError(code="internal", message=f"the model raised {type(error).__name__}")


def _checked(made: Embedded) -> SliceResult:
    """Rows whose vector is not finite are errors, not results."""
    finite = np.asarray(np.isfinite(made.vectors).all(axis=1))
    if finite.all():
        return SliceResult(
            vectors=made.vectors, tokens=made.tokens, truncated=made.truncated, errors={}
        )
    broken = RowError(code="internal", message="the model gave values that are not finite")
    return SliceResult(
        vectors=np.where(finite[:, None], made.vectors, np.float32(0)),
        tokens=np.where(finite, made.tokens, np.int32(0)),
        truncated=made.truncated & finite,
        errors={int(place): broken for place in np.flatnonzero(~finite)},
    )


def next_slice_items(
    items: int, rows: int, elapsed_s: float, *, target_s: float, largest: int
) -> int:
    """Rows for the next slice, so that one takes about `target_s`; at most twice as many as before.

    `items` is the size so far; `rows` the last slice had, fewer at a batch's end, where a fast
    one says little about a full one.
    """
    fast = rows * target_s >= largest * elapsed_s
    fitting = largest if fast else int(rows * target_s / elapsed_s)
    if fitting >= items > rows:
        return items
    return max(min(items, SMALLEST_SLICE), min(fitting, items * 2, largest))


def slice_end(start: int, wanted: int, items: int) -> int:
    """Where the slice that begins at row `start` ends: about `wanted` rows on, no crumb left."""
    return items if items - start < wanted * 5 // 4 else start + wanted
