"""Parts of the dashboard's pages, as frozen values. `views` has the pages, and says the units."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

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
OVERDUE_S: Final = 60.0
"""What was due so many seconds ago is said to be late; until then it is due now."""


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
    unseen: str | None
    """Why its output cannot be looked at; the journal alone tells then who works on it."""
    tags: Mapping[str, str]
    created_at: float
    finished_at: float | None


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
    under_way: bool
    """Somebody has it in hand."""


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
class Choice:
    """A field of the form."""

    name: str
    label: str
    value: str
    hint: str
    kind: Literal["text", "number"] = "text"
