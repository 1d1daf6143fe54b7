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
from typing import Any, ClassVar, Final, Literal

from embatch.runs.quota_status import QuotaStatus
from embatch.runs.why import Why
from embatch.types.state import BatchState

Tone = Literal["work", "wait", "good", "bad", "person", "ended"]
ActionName = Literal["cancel", "resume", "retry", "budget", "adopt", "absent"]

GRID_LETTERS: Final[Mapping[str, str]] = {
    BatchState.PLANNED: "p",
    BatchState.UPLOADING: "u",
    BatchState.UPLOADED: "l",
    BatchState.SUBMITTING: "i",
    BatchState.SUBMITTED: "s",
    BatchState.READY: "r",
    BatchState.COLLECTED: "c",
    BatchState.PUBLISHED: "w",
    BatchState.FAILED: "f",
    BatchState.EXPIRED: "e",
    BatchState.CANCELLED: "x",
    BatchState.QUARANTINED: "q",
    BatchState.SPLIT: "d",
}
"""A batch's letter in a grid. A capital letter: it is blocked. A full stop: there is no batch."""


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


# Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run in the list; the run's page begins with it too."""

    id: str
    name: str | None
    title: str
    """Its name, else the last part of its output's path."""
    out: str
    provider: str
    model: str
    """Without the folder, where it is one."""
    state: str
    """As in `types.state.RunState`."""
    words: str
    """The state for people: a run that no process works on is "unattended"."""
    tone: Tone
    progress: float
    """Decided rows of all, 0..1; 1 only once the run is complete."""
    rows: int | None
    """None while the input is read for the first time."""
    done: int
    written: int
    failed: int
    rows_per_s: float | None
    eta_s: float | None
    success_pct: float
    alert_below_pct: float
    cost_usd: float | None
    """None where nobody knows the price."""
    saved_usd: float | None
    spark: tuple[int, ...]
    """Rows written in equal spans of the run's time, oldest first; empty before the first."""
    why: Why | None
    """Why it does not move; None while it does, and once it is complete."""
    tags: Mapping[str, str]
    created_at: float
    finished_at: float | None


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


# Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """When a run may be done."""

    seconds: float
    least_s: float
    """At the better of the paces seen of late."""
    most_s: float
    """At the worse."""
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Rows that stood in one state, moment by moment."""

    state: str
    """A batch state."""
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Rows by state over time, from the run's events. Moment i is `start + i * step_s`."""

    start: float
    step_s: float
    layers: tuple[Layer, ...]
    """In the order in which a batch passes them; states that never held a row are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """All batches of a run by number: a letter each, or for more than 10,000 one for several."""

    total: int
    first: int
    """Number of the first batch."""
    per_cell: int
    """Batches that a letter stands for; it is then the one that most wants to be looked at."""
    letters: str
    legend: Mapping[str, str]
    """State by letter, of the letters that occur; capitals are not listed."""
    counts: Mapping[str, int]
    """Batches by state, in the order of `BatchState`."""
    blocked: int
    """Batches that wait for quota, for money or for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """The run's money. All None but `cap_usd` where nobody knows the price."""

    free: bool
    """The provider bills nothing."""
    cap_usd: float | None
    spent_usd: float | None
    open_usd: float | None
    """Reserved: what is under way may cost at most."""
    kept_usd: float | None
    estimated_usd: float | None
    saved_usd: float | None
    saved_batch_usd: float | None
    saved_dedupe_usd: float | None
    saved_reuse_usd: float | None
    burn_usd_per_h: float | None
    """Of late."""
    proposed_cap_usd: float | None
    """A cap under which the run can probably be finished; None while it needs none."""
    start: float
    step_s: float
    points: tuple[float, ...]
    """What had been spent at `start + i * step_s`."""
    lines: tuple[str, ...]
    """The same in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine:
    """One line of a history."""

    id: int
    at: float
    batch: int | None
    """Number of the batch; None for the run itself."""
    kind: str
    source: str | None
    target: str | None
    words: str
    """What happened, in one short sentence."""
    tone: Tone
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Events, newest first. `older` is what `?before=` takes to go on; None at the beginning."""

    events: tuple[EventLine, ...]
    older: int | None
    newest: bool
    """These are the latest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRow:
    """A failed row by its key: never its text."""

    key: str
    row: int
    message: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failed rows of one reason."""

    code: str
    rows: int
    kept: int
    """Rows whose text is kept, so that they can be tried again."""
    examples: tuple[FailedRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextStep:
    """What happens next to a batch, and when."""

    batch: int
    at: float
    """In the past: it is due, or under way."""
    doing: str
    """The step: "next poll", "upload", "next try", …"""
    words: str
    """ "batch 12: next poll in 40 s"; for scripts that are off."""
    reason: str | None
    """What it waits for besides: "quota", "budget", "person", …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocked:
    """A batch that goes on only when someone acts."""

    batch: int
    detail: str
    """What happened, and what to type."""
    resolvable: bool
    """Its job can be named, or said to be gone: actions "adopt" and "absent"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Something a person may do. A link to `href` asks first; the form there does it."""

    name: ActionName
    label: str
    href: str
    allowed: bool
    why_not: str | None
    danger: bool
    """It stops something, or may cost money twice."""


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


# Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One job that was asked for."""

    number: int
    label: str
    remote_name: str | None
    state: str
    """What is known of it: submitting, running, ended, cancelled, refused, absent or stray."""
    items: int
    tokens: int
    """Estimated."""
    intended_at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """One line of the ledger."""

    kind: str
    """batch, audit or direct."""
    state: str
    """reserved, settled or void."""
    rows: int
    tokens: int | None
    usd: float | None
    usd_bound: float | None
    estimated: bool
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFacts:
    """What embedding rows of the batch again has shown."""

    rows: int
    least_cosine: float | None
    mismatches: int
    worst: tuple[tuple[str, float], ...]
    """Keys with the smallest cosines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """A span of a batch's life."""

    name: str
    """ "waited to be sent", "at the provider", …"""
    begun_at: float
    seconds: float
    open: bool
    """It goes on."""


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


# Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What a worker has in hand."""

    run: str | None
    batch: int | None
    """Number."""
    step: str | None
    since: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """One process that takes steps, or took them."""

    id: str
    host: str
    pid: int
    version: str
    execution: str
    queues: tuple[str, ...]
    concurrency: int
    state: Literal["alive", "lost", "stopped"]
    """`lost`: it has not been seen for a minute and did not say goodbye."""
    tone: Tone
    started_at: float
    seen_at: float
    stopped_at: float | None
    steps: int
    """Taken since it started."""
    doing: tuple[Doing, ...]


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


# Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRow:
    """A job as the provider lists it."""

    name: str
    label: str
    state: str
    done: bool
    items: int | None
    model: str | None
    created_at: float | None
    standing: Literal["ours", "late", "forgotten", "foreign", "other"]
    """`ours`: a batch of this journal waits for it. `late`: its batch has gone on without it.
    `forgotten`: this journal made it and does not know it any more. `foreign`: another journal
    made it. `other`: not made by embatch."""
    orphan: bool
    """Nobody here waits for it."""
    run: str | None
    """Only where this journal knows the run."""
    batch: int | None
    command: str | None
    """What to type about an orphan."""


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


# Acting, and everything else


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A field of the form."""

    name: str
    label: str
    value: str
    hint: str
    kind: Literal["text", "number"] = "text"


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
