"""Rows of the journal as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from embatch.types.state import BatchState, RunState

BatchKind = Literal["embed", "copies", "reused"]
"""`embed` goes to the provider; `copies` takes the vectors of the same texts from parts of this
run, `reused` from an earlier output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run."""

    id: str
    name: str | None
    state: RunState
    out: str
    config: Mapping[str, Any] = field(repr=False)
    """Not shown: it names who is notified, by URLs that may hold secrets."""
    space: Mapping[str, Any]
    tags: Mapping[str, str]
    priority: int
    plan: Mapping[str, Any] | None
    """Where planning stands, as the planner wrote it."""
    rows: int | None
    """Rows of the dataset, known once it was read through."""
    error_code: str | None
    """Name of the error's class in embatch.errors."""
    error: str | None
    created_at: float
    updated_at: float
    started_at: float | None
    finished_at: float | None
    resume_at: float | None
    """When a parked run goes on."""
    audit_rows: int | None
    """Rows of each batch to audit since a mismatch was found; None: as the config says."""
    watched_at: float | None
    """When the provider's list was last walked for jobs that were held absent."""
    twins: int
    """Jobs that turned up after they were held absent."""
    lease_owner: str | None
    lease_token: str | None
    lease_expires_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch to be entered; everything else starts empty."""

    kind: BatchKind
    items: int
    row_min: int
    row_max: int
    stage: str | None = None
    tokens_estimated: int = 0
    tokens_bound: int = 0
    """More tokens cannot be billed for it."""
    item_bound: int = 0
    """More tokens cannot be billed for any one of its items."""
    bought: int = 0
    """Items that were billed before, by a batch that gave no usable vector for them."""
    bought_why: str | None = None
    """What became of them there: "missing", "misaligned", "unreadable", …"""
    text_bytes: int = 0
    owner_min: int | None = None
    owner_max: int | None = None
    parent_id: int | None = None
    attempt: int = 0
    delay_s: float = 0.0
    """Seconds until its first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedPart:
    """A part found in an output whose journal is gone, entered as a published batch."""

    number: int
    kind: BatchKind
    name: str
    sha256: str
    size_bytes: int
    rows: int
    row_min: int
    row_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """One batch. Counts are rows; times are seconds since 1970."""

    id: int
    run_id: str
    number: int
    kind: BatchKind
    parent_id: int | None
    state: BatchState
    attempt: int
    items: int
    tokens_estimated: int
    tokens_bound: int
    item_bound: int
    bought: int
    bought_why: str | None
    text_bytes: int
    row_min: int
    row_max: int
    owner_min: int | None
    owner_max: int | None
    stage: str | None
    label: str | None
    input_ref: str | None
    remote_name: str | None
    succeeded: int
    failed: int
    tokens: int
    truncated: int
    repeated: int
    part_temp: str | None
    part: str | None
    part_sha256: str | None
    part_bytes: int | None
    part_rows: int | None
    part_row_min: int | None
    part_row_max: int | None
    error_code: str | None
    """Why the batch gave no results: "refused" blames its rows, other words do not."""
    error: str | None
    blocked_reason: str | None
    blocked_detail: str | None
    next_at: float
    polls: int
    """Looks in a row that found nothing new."""
    absences: int
    """Complete looks for the label that did not find it."""
    created_at: float
    updated_at: float
    submitted_at: float | None
    finished_at: float | None
    cleared_at: float | None
    """When what the provider held of it was removed there."""
    moved_at: float | None
    """When its counts or its state at the provider last changed."""
    cancel_asked_at: float | None
    """When the provider was asked to stop it, because it did not move."""
    remote_state: str | None
    """The provider's last word for the job's state."""
    results_until: float | None
    """When the provider lets go of the results, as far as is known."""
    audited: int | None
    """Rows that were embedded again to compare; None: not yet."""
    audit_least: float | None
    """Least cosine among them."""
    part_good: bytes | None
    """Which items its part holds, packed."""
    lease_owner: str | None
    lease_token: str | None
    lease_expires_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A row that has no vector, and why."""

    row: int
    key: str
    code: str
    message: str
    attempts: int
    batch_id: int | None = None
    kept: bool = False
    """Its text is kept for `retry`."""
    kept_in: str | None = None
    """The stage file that keeps it, below the run's work folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """One line of a run's history."""

    id: int
    run_id: str
    batch_id: int | None
    at: float
    kind: str
    source: str | None
    target: str | None
    data: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """Sums over a run's batches and failures. All but `batches` and `tokens` are rows."""

    batches: Mapping[BatchState, int] = field(default_factory=dict)
    """How many batches stand in each state."""
    planned: int = 0
    """Rows in batches, each counted once."""
    written: int = 0
    """Rows in published parts."""
    live: int = 0
    """Rows done in batches that are not published yet."""
    failed: int = 0
    """Rows that have failed for good."""
    copies: int = 0
    """Rows whose vector is that of the same text elsewhere in the run."""
    reused: int = 0
    """Rows whose vector comes from an earlier output."""
    truncated: int = 0
    """Rows cut at the model's limit."""
    repeated: int = 0
    """Result lines that came twice with the same vector."""
    tokens: int = 0
    """Tokens read, as the provider reported them."""
    part_bytes: int = 0
    """Bytes of the published parts."""
