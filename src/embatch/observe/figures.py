"""The figures that are measured, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

RowCounts = Mapping[str, int]
"""Rows by where they stand: `ROW_STATES`."""
ROW_STATES = ("waiting", "in_flight", "collecting", "written", "failed")
"""`waiting` for their turn · `in_flight` at the provider · `collecting`: there are results, that
are not written yet · `written` in parts · `failed` for good. Together all rows that are planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """All runs that embed with one model of one provider."""

    provider: str
    model: str
    batches: Mapping[str, int]
    """By state."""
    rows: RowCounts
    oldest_pending_s: float | None
    """Age of the batch that has been at the provider for the longest time; None without one."""
    spent_usd: float | None
    """None where nobody knows the price."""
    reserved_usd: float | None
    saved_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """A run that is not over."""

    id: str
    provider: str
    model: str
    state: str
    expected_rows: int | None
    """Rows of the dataset; None while it is read through."""
    rows: RowCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaFigures:
    """What is believed of a quota, and what counts against it."""

    provider: str
    account: str
    """Project, or a mark of the key."""
    model: str
    tokens: int
    """In flight, as estimated."""
    jobs: int
    ceiling_tokens: int | None
    """None: never met."""
    ceiling_jobs: int | None
    wait_s: float
    """Until something may be created again; 0.0 when it may."""
    accepted: int
    refused: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A journal at one moment."""

    runs: Mapping[str, int] = field(default_factory=dict)
    """By state."""
    models: Sequence[ModelFigures] = ()
    open_runs: Sequence[RunFigures] = ()
    quotas: Sequence[QuotaFigures] = ()
    retries: Mapping[str, int] = field(default_factory=dict)
    """By what went wrong before."""
    notifications_waiting: int = 0
    notifications_given_up: int = 0
    """Within the last day."""
    workers_alive: int = 0
