"""Events of the journal in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from embatch.dashboard.facts import EventLine, Timeline, Tone
from embatch.journal.views import NumberedEvent

PER_PAGE: Final = 40
_LONGEST: Final = 300
"""Characters of a value that are shown."""
_SHOWN: Final = (
    "label", "remote_name", "part", "succeeded", "failed", "error", "attempt", "children",
    "failures", "rows", "by", "action", "batch", "usd", "adopted", "kind", "why",
)  # fmt: skip
"""What is shown of an event's data; what embatch writes there holds no text of a user."""
_WORDS: Final[Mapping[str, str]] = {
    "created": "the run was entered",
    "planned": "the input is cut into batches",
    "parked": "the run waits for the quota of the day",
    "blocked": "the run waits for a person",
    "budget_reached": "the run stopped at its budget",
    "resumed": "the run goes on",
    "cancelled": "the run was cancelled",
    "completed": "the run is complete",
    "completed_with_failures": "the run is complete, with failed rows",
    "retried": "failed rows are tried again",
    "adopted": "a part found in the output was taken over",
    "upload_started": "upload began",
    "upload_finished": "uploaded",
    "upload_refused": "the upload was refused",
    "submit_intended": "its job is being created",
    "submit_confirmed": "its job was created",
    "submit_refused": "its job was refused",
    "submit_deferred": "its job is created later",
    "held_absent": "its job is held to be absent",
    "results_ready": "results are ready",
    "owners_final": "the texts that it copies are decided",
    "job_failed": "its job failed",
    "job_expired": "its job expired",
    "job_cancelled": "its job was cancelled",
    "input_lost": "its input or job is gone: it is sent again",
    "collected": "results are read and verified",
    "part_lost": "its part was lost: it is collected again",
    "published": "its part is published",
    "misaligned": "results did not fit: quarantined",
    "audit_passed": "an audit freed it",
    "owners_withdrawn": "vectors that it copies were withdrawn",
    "twin_adopted": "a job that turned up late was taken over",
    "twin_found": "a job that was held absent turned up",
    "sent_directly": "sent through the interactive API",
    "gave_way": "its rows go on in other batches",
    "run_cancelled": "cancelled with its run",
    "stuck": "nothing moves",
    "low_success_rate": "too many rows fail: under the threshold of the run",
    "cancel_asked": "its job stands still and was asked to stop",
}
_TONES: Final[Mapping[str, Tone]] = {
    **dict.fromkeys(("completed", "published", "audit_passed"), "good"),
    **dict.fromkeys(
        ("failed", "upload_refused", "submit_refused", "job_failed", "misaligned", "part_lost"),
        "bad",
    ),
    **dict.fromkeys(("blocked", "budget_reached"), "person"),
    **dict.fromkeys(
        (
            "stuck",
            "low_success_rate",
            "parked",
            "submit_deferred",
            "held_absent",
            "job_expired",
            "cancel_asked",
            "twin_found",
        ),
        "wait",
    ),
    **dict.fromkeys(("cancelled", "run_cancelled", "job_cancelled", "gave_way"), "ended"),
}
ASKED: Final = "asked"
"""Kind of the event that a person's action leaves: `by`, `action` and what it concerned."""


def timeline(found: Sequence[NumberedEvent], *, before: int | None) -> Timeline:
    """A page of events, from one more than it shows: `PER_PAGE + 1`, the newest first."""
    shown = found[:PER_PAGE]
    more = len(found) > PER_PAGE
    return Timeline(
        events=tuple(_line(one) for one in shown),
        older=shown[-1].event.id if more else None,
        newest=before is None,
    )


def _line(found: NumberedEvent) -> EventLine:
    event = found.event
    data = _shown(event.data or {})
    told: Callable[[Mapping[str, Any]], str] | None = _TOLD.get(event.kind)
    words = told(data) if told else _WORDS.get(event.kind, event.kind.replace("_", " "))
    if event.kind == "failed":
        words = "the run failed" if event.batch_id is None else "failed"
    return EventLine(
        id=event.id,
        at=event.at,
        batch=found.number,
        kind=event.kind,
        source=event.source,
        target=event.target,
        words=words,
        tone=_TONES.get(event.kind, "work"),
        data=data,
    )


def _shown(data: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in _SHOWN:
        value = data.get(name)
        if isinstance(value, str):
            found[name] = value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
        elif isinstance(value, (int, float, bool)):
            found[name] = value
    return found


def _asked(data: Mapping[str, Any]) -> str:
    action, batch = str(data.get("action", "something")), data.get("batch")
    about = "" if batch is None else f" batch {batch}"
    told = {
        "cancel": "cancel the run",
        "resume": "go on with the run",
        "retry": "try the failed rows again",
        "budget": f"raise the budget to ${data.get('usd', 0):,.2f}",
        "adopt": f"go on with{about} by the job {data.get('adopted', '')}",
        "absent": f"hold the job of{about} to be gone",
    }
    return f"{data.get('by', 'somebody')} asked to {told.get(action, action)}"


def _finished(words: str) -> Callable[[Mapping[str, Any]], str]:
    def told(data: Mapping[str, Any]) -> str:
        facts = [f"{data[name]:,} {said}" for name, said in _COUNTED if data.get(name)]
        return f"{words}: {', '.join(facts)}" if facts else words

    return told


def _with_error(words: str) -> Callable[[Mapping[str, Any]], str]:
    def told(data: Mapping[str, Any]) -> str:
        return f"{words}: {data['error']}" if data.get("error") else words

    return told


def _confirmed(data: Mapping[str, Any]) -> str:
    name = data.get("remote_name")
    return f"its job was created: {name}" if name else "its job was created"


_COUNTED: Final = (("succeeded", "rows done"), ("failed", "rows failed"), ("rows", "rows"))
_TOLD: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    ASKED: _asked,
    "submit_confirmed": _confirmed,
    "twin_adopted": lambda data: f"{_WORDS['twin_adopted']}: {data.get('remote_name', '')}",
    "results_ready": _finished(_WORDS["results_ready"]),
    "retried": _finished(_WORDS["retried"]),
    **{
        kind: _with_error(_WORDS[kind])
        for kind in (
            "upload_refused", "submit_refused", "job_failed", "job_expired", "job_cancelled",
            "gave_way", "misaligned",
        )
    },
}  # fmt: skip
