"""What each page of the dashboard shows, as frozen values; its JSON twin is `to_json()`.

A template is drawn with two values: `page`, one of these, and `frame`, a `Frame`. Templates are
runs.html, run.html, batch.html, workers.html, provider.html, confirm.html, login.html and
error.html. With `frame.fragment` the page was fetched by the script of an open page: what stands
outside of <main> may be left out.

Counts are rows where nothing else is said, times seconds since 1970, durations seconds, money US
dollars. None means unknown or not there. A `tone` is how a thing is to be looked at: "work" (goes
on), "wait", "good", "bad", "person" (somebody must act) or "ended".
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from embatch.dashboard.facts import (
    ActionName,
    Attempt,
    AuditFacts,
    Bill,
    Blocked,
    Choice,
    Eta,
    FailureGroup,
    Grid,
    NextStep,
    Offer,
    RemoteRow,
    RunRow,
    Series,
    Spend,
    Timeline,
    Timing,
    Tone,
    WorkerRow,
)
from embatch.runs.quota_status import QuotaStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What stands around every page. No part of the JSON twins."""

    now: float
    version: str
    journal: str
    """Where the journal is, without a password."""
    read_only: bool
    csrf: str
    """What a form that acts must post as `csrf`."""
    path: str
    """Path of this page with its query, as links of the page may return to it."""
    here: str
    """Which page this is: "runs", "run", "batch", "workers", "provider", …"""
    since: str = ""
    """Where the stream of an open page begins: after the changes that the page shows."""
    fragment: bool = False
    signed_in: bool = False
    """A token was shown: the page may offer to log out (POST /logout)."""
    notice: str | None = None
    """What an action just did, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A page."""

    template: ClassVar[str]
    live: ClassVar[bool] = False
    """The page is fetched again when the journal moves."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsPage(View):
    """Every run of the journal, newest first, `per_page` at a time."""

    template: ClassVar[str] = "runs.html"
    live: ClassVar[bool] = True

    now: float
    rows: tuple[RunRow, ...]
    matching: int
    """Runs that the filter lets through."""
    total: int
    """Runs in the journal."""
    states: Mapping[str, int]
    """How many runs stand in each state that occurs."""
    tags: tuple[str, ...]
    """Tags of the runs shown, as "key=value": what the filter may be set to."""
    state: str | None
    """The filter: `?state=`, `?tag=key=value`, `?q=` (in name, id and output), `?page=` from 1."""
    tag: str | None
    search: str | None
    page: int
    pages: int
    per_page: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage(View):
    """One run."""

    template: ClassVar[str] = "run.html"
    live: ClassVar[bool] = True

    now: float
    run: RunRow
    dims: int
    precision: str | None
    priority: int
    execution: str
    """Who takes the steps: "threads" or "workers"."""
    attended: bool
    """Some process takes the run's steps, or it needs none now."""
    copies: int
    reused: int
    truncated: int
    tokens: int
    twins: int
    batches: Mapping[str, int]
    """How many batches stand in each state."""
    eta: Eta | None
    series: Series | None
    """None before the first batch."""
    grid: Grid
    quota: QuotaStatus | None
    spend: Spend
    timeline: Timeline
    failures: tuple[FailureGroup, ...]
    next: tuple[NextStep, ...]
    blocked: tuple[Blocked, ...]
    error: str | None
    """What stopped the run."""
    actions: tuple[Offer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage(View):
    """One batch."""

    template: ClassVar[str] = "batch.html"
    live: ClassVar[bool] = True

    now: float
    run: str
    run_title: str
    run_state: str
    number: int
    previous: int | None
    following: int | None
    kind: str
    """embed, copies or reused."""
    state: str
    tone: Tone
    parent: int | None
    children: tuple[int, ...]
    attempt: int
    remote_name: str | None
    remote_state: str | None
    """The provider's last word for it."""
    label: str | None
    items: int
    row_min: int
    row_max: int
    succeeded: int
    failed: int
    truncated: int
    repeated: int
    tokens: int
    tokens_estimated: int
    text_bytes: int
    part: str | None
    part_rows: int | None
    part_bytes: int | None
    polls: int
    absences: int
    error_code: str | None
    error: str | None
    blocked_reason: str | None
    blocked_detail: str | None
    next: NextStep | None
    worked_by: str | None
    """Who has it in hand at this moment."""
    created_at: float
    updated_at: float
    submitted_at: float | None
    finished_at: float | None
    results_until: float | None
    timings: tuple[Timing, ...]
    attempts: tuple[Attempt, ...]
    """The latest first."""
    bills: tuple[Bill, ...]
    audit: AuditFacts | None
    failures: tuple[FailureGroup, ...]
    timeline: Timeline
    actions: tuple[Offer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersPage(View):
    """Who takes the steps of runs. The alive ones first."""

    template: ClassVar[str] = "workers.html"
    live: ClassVar[bool] = True

    now: float
    workers: tuple[WorkerRow, ...]
    alive: int
    lost: int
    stopped: int
    waiting_runs: int
    """Runs that want a worker while none is alive."""
    command: str
    """What starts a worker for this journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPage(View):
    """Remote batches as a provider lists them. It is asked only when this page is opened."""

    template: ClassVar[str] = "provider.html"

    now: float
    providers: tuple[str, ...]
    """Those that may be asked: `?provider=`."""
    provider: str | None
    """The one that was asked; None: choose one."""
    asked: bool
    took_s: float | None
    error: str | None
    """Why it could not be read."""
    complete: bool
    """The whole list was read; else the time or the page was full."""
    jobs: tuple[RemoteRow, ...]
    orphans: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmPage(View):
    """Asks once before something is done. The form posts `csrf` and `fields` to `action`."""

    template: ClassVar[str] = "confirm.html"

    name: ActionName
    title: str
    run: str
    run_title: str
    batch: int | None
    action: str
    """Path to post to."""
    back: str
    """Path of the page that asked."""
    words: str
    """What will happen."""
    who: str
    """Who takes the steps after that."""
    button: str
    danger: bool
    fields: tuple[Choice, ...] = ()
    error: str | None = None
    """Why the last try was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginPage(View):
    """Asks for the token. The form posts `token` and `next` to /login."""

    template: ClassVar[str] = "login.html"

    next: str
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPage(View):
    """Something that is not there, not allowed, or broke."""

    template: ClassVar[str] = "error.html"

    status: int
    title: str
    words: str
    details: Mapping[str, Any] = field(default_factory=dict)
