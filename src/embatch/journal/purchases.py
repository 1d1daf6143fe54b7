"""Purchases: what is about to be bought, what was, and what all of them come to."""

import math
from dataclasses import dataclass
from typing import Literal

PurchaseKind = Literal["batch", "audit", "probe", "direct"]
"""`batch` at the batch price; the others at the interactive one."""
LineState = Literal["reserved", "settled", "void"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """What is about to be bought."""

    ref: str
    """Unique: the job's label, or `audit:…`, `probe:…`, `direct:…`."""
    run_id: str
    kind: PurchaseKind
    rows: int
    tokens_bound: int
    """More cannot be billed."""
    tokens_estimated: int
    usd_bound: float | None
    """The price of `tokens_bound`; None where nobody knows the price."""
    batch_id: int | None = None
    rows_again: int = 0
    """Rows among them that were billed before."""
    again_why: str | None = None
    replaces: str | None = None
    """A reservation that this purchase draws on; what is left of it stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bought:
    """What a purchase came to."""

    rows: int
    """Rows that were billed."""
    tokens: int
    """Tokens that were billed."""
    rows_failed: int = 0
    """Billed rows that gave no usable vector."""
    estimated: bool = False
    """The service did not count all of the tokens."""
    most: int | None = None
    """More tokens cannot have been billed, where they are estimated; None: the purchase's bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerLine:
    """One purchase as the journal keeps it."""

    ref: str
    run_id: str
    batch_id: int | None
    kind: PurchaseKind
    state: LineState
    rows: int
    rows_failed: int
    rows_again: int
    again_why: str | None
    tokens_bound: int
    tokens_estimated: int
    tokens: int | None
    usd_bound: float | None
    usd: float | None
    estimated: bool
    at: float
    settled_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSums:
    """Sums over the lines of one kind. Dollars count priced lines only."""

    rows: int = 0
    """Billed."""
    rows_failed: int = 0
    rows_again: int = 0
    tokens: int = 0
    usd: float = 0.0
    usd_estimated: float = 0.0
    """The part of `usd` that the service did not count."""
    open_rows: int = 0
    """In purchases that are not settled yet."""
    usd_open: float = 0.0
    """What these may come to."""
    unpriced: int = 0
    """Lines without a price."""


def dollars(usd: float) -> str:
    """Dollars with at least two decimals, and so many that three figures show: "$0.0375"."""
    decimals = 2 if usd <= 0.0 else max(2, 2 - math.floor(math.log10(usd)))
    return f"${usd:,.{decimals}f}"


def audit_ref(label: str) -> str:
    """The reservation for the audit of the job `label`, made together with the job's own."""
    return f"audit:{label}"


def call_ref(kind: PurchaseKind, nonce: str) -> str:
    """The line of one interactive call."""
    return f"{kind}:call:{nonce}"
