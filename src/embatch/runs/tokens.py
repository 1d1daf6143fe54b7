"""Estimates of tokens before anyone has counted them."""

import numpy as np
from numpy.typing import NDArray

BYTES_PER_TOKEN = 4.0
"""UTF-8 bytes a token in English prose, the usual rule of thumb of the Gemini docs (2026-11)."""
SPECIAL_TOKENS = 2
"""Marks that models put around a text."""


def estimate_tokens(text_bytes: NDArray[np.int64], max_item_tokens: int) -> NDArray[np.int64]:
    """Tokens that the model will read of texts of these sizes, `[n]`; at least 1 each."""
    estimated = np.ceil(text_bytes / BYTES_PER_TOKEN).astype(np.int64) + SPECIAL_TOKENS
    return np.minimum(estimated, max_item_tokens)
