"""Items, and the limits that cut them into batches."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One input row."""

    key: str
    """The user's key; the row number where no key column was named."""
    text: str
    """The text as it was read, unchanged."""
    row: int
    """Row number from 0 over all inputs in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one batch may hold and how many may be under way, for one provider and model."""

    max_batch_items: int
    max_batch_tokens: int
    """Estimated tokens, all items together."""
    max_batch_bytes: int
    """UTF-8 bytes of text, all items together."""
    max_in_flight_batches: int
    max_item_tokens: int
    """Longer texts are cut by the model; see `--too-long`."""
    poll_interval_s: float | None = None
    """Fixed seconds between polls; None adapts to the batch's size (spec.md section 5)."""
    settle_s: float = 600.0
    """How long after an ambiguous submit a batch may still turn up before it is held absent."""
    billed: bool = True
    """Embedding costs money here."""
