"""Estimates of tokens before anyone has counted them."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embatch.journal.calibrations import Calibration
from embatch.journal.records import BatchRecord
from embatch.journal.store import Journal
from embatch.types.embedding import Space

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes a token in English prose, the usual rule of thumb of the Gemini docs (2026-11)."""
SPECIAL_TOKENS = 2
"""Marks that models put around a text."""
TELLING_BYTES: Final = 4096
"""A count over fewer bytes of text says little about other texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRate:
    """How many tokens texts have."""

    per_byte: float = 1.0 / BYTES_PER_TOKEN
    """Tokens for each UTF-8 byte."""
    per_item: int = SPECIAL_TOKENS
    """Tokens for each text beside those."""


DEFAULT_RATE: Final = TokenRate()
"""Before a service has counted any."""


def token_rate(counted: Calibration | None) -> TokenRate:
    """The rate that a service's own counts show; the rule of thumb while they tell too little."""
    if counted is None or counted.text_bytes < TELLING_BYTES or counted.tokens <= 0:
        return DEFAULT_RATE
    return TokenRate(per_byte=counted.tokens / counted.text_bytes, per_item=0)


def counted_rate(journal: Journal, space: Space) -> TokenRate:
    """The rate of a space's model, as its service has counted for runs of this journal so far."""
    return token_rate(journal.calibrations.find(calibration_name(space)))


def calibration_name(space: Space) -> str:
    """What the counts of a space's model are kept under."""
    return f"{space.provider}/{space.model}"


def estimate_tokens(
    text_bytes: NDArray[np.int64], max_item_tokens: int, rate: TokenRate = DEFAULT_RATE
) -> NDArray[np.int64]:
    """Tokens that the model will read of texts of these sizes, `[n]`; at least 1 each."""
    estimated: NDArray[np.int64] = np.ceil(text_bytes * rate.per_byte).astype(np.int64)
    estimated = estimated + rate.per_item
    return np.minimum(np.maximum(estimated, 1), max_item_tokens)


def batch_tokens(
    batch: BatchRecord, max_item_tokens: int, rate: TokenRate, *, prompt_bytes: int = 0
) -> int:
    """Tokens of a batch that is planned already, by what is known now; no more than can be billed.

    `prompt_bytes` is what the service is sent around each text.
    """
    if rate == DEFAULT_RATE or not batch.text_bytes:
        return batch.tokens_estimated
    sent_bytes = batch.text_bytes + batch.items * prompt_bytes
    estimated = math.ceil(sent_bytes * rate.per_byte) + batch.items * rate.per_item
    most = min(batch.items * max_item_tokens, batch.tokens_bound or 2**62)
    return max(batch.items, min(estimated, most))
