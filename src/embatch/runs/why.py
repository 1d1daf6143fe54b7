"""Why a run does not move: one sentence, the same on the page, in `status` and in `watch`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Final, Literal

from embatch.journal.outlook import Outlook
from embatch.journal.records import BatchRecord, RunRecord
from embatch.journal.store import Journal
from embatch.journal.workers import queue_of
from embatch.runs.direct import missed_deadline
from embatch.runs.quota import Belief
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunState

WhyKind = Literal[
    "person", "budget", "quota", "unattended", "workers", "service", "settling", "slow", "planning"
]
"""`budget` and `person`: nothing goes on until someone acts. `quota`: waits for the provider's
quota. `unattended`: no process works on it. `workers`: no worker is alive for it. `service`: the
provider does not answer. `settling`: a creation is in doubt. `slow`: jobs take far longer than
they did. `planning`: the input is being read."""

SLOW_FACTOR: Final = 4.0
"""A job is slow that has been out so many times longer than the middle one of those that ended …"""
SLOW_LEAST_S: Final = 600.0
"""… and no less than so many seconds."""
NEWS_EXPECTED_S: Final = 3600.0
"""So long the first job of a run may be out, in seconds, before that is worth a word."""
_COMMAND: Final = re.compile(r"embatch (?:resume|resolve|worker|run|doctor|status) [^;,:()]+")
_WORDS_OF_REASONS: Final = {
    "quota": "waits for quota",
    "budget": "waits for money",
    "unavailable": "waits for the provider",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Why nothing moves, at one moment."""

    kind: WhyKind
    sentence: str
    command: str | None = None
    """What to type, where typing something helps; it may hold NAME to be filled in."""
    until: float | None = None
    """Seconds since 1970 when it goes on by itself, where that is known."""


def explain(
    journal: Journal,
    run: RunRecord,
    *,
    worked: bool,
    blocked: Mapping[int, str],
    now: float,
) -> Why | None:
    """Why the run does not move at `now`; None while it does, and once it has ended.

    `worked`: some process takes its steps. `blocked`: batches that wait for a person, by number,
    each with what happened and what to type.
    """
    if run.state in FINAL_RUN_STATES:
        return None
    if run.state is RunState.OVER_BUDGET:
        sentence = run.error or f"over its budget: embatch resume {run.id} --max-cost USD"
        return Why(kind="budget", sentence=sentence, command=command_in(sentence))
    if blocked:
        return _person(blocked)
    if run.state is RunState.NEEDS_PERSON:
        sentence = run.error or f"it waits for a person: embatch resume {run.id}"
        return Why(kind="person", sentence=sentence, command=command_in(sentence))
    if run.state is RunState.PARKED and run.resume_at is not None:
        return _parked(run, run.resume_at, worked)
    if not worked:
        return _unattended(journal, run, now)
    if run.state is RunState.PLANNING:
        return _planning(run)
    return _waiting(journal, run, now)


def command_in(sentence: str) -> str | None:
    """The first command of embatch that a sentence tells to type."""
    found = _COMMAND.search(sentence)
    return found[0].strip().removesuffix(".") if found else None


def moment(at: float, now: float) -> str:
    """A time as people of this machine's zone say it: with the day, where it is another one."""
    local = datetime.fromtimestamp(at).astimezone()
    same = local.date() == datetime.fromtimestamp(now).astimezone().date()
    return local.strftime("%H:%M:%S" if same else "%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """Seconds as "40 s", "22 min", "7 h" or "3 days"."""
    for least, size, unit in (
        (172_800.0, 86_400.0, "days"),
        (5400.0, 3600.0, "h"),
        (90.0, 60.0, "min"),
    ):
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _person(blocked: Mapping[int, str]) -> Why:
    first, others = next(iter(blocked.values())), len(blocked) - 1
    sentence = f"{first} (and so on for {others} more)" if others else first
    return Why(kind="person", sentence=sentence, command=command_in(first))


def _parked(run: RunRecord, resume_at: float, worked: bool) -> Why:
    until = datetime.fromtimestamp(resume_at).astimezone().strftime("%Y-%m-%d %H:%M")
    goes_on = "then it goes on by itself" if worked else "no process works on it"
    command = f"embatch resume {run.id}"
    return Why(
        kind="quota",
        sentence=f"waiting for quota until {until}, that of the day is used up: {goes_on}; "
        f"at once: {command}",
        command=command,
        until=resume_at,
    )


def _unattended(journal: Journal, run: RunRecord, now: float) -> Why:
    missed = missed_deadline(journal, run, now=now)
    warned = "" if missed is None else f"; {missed}"
    if run.config.get("execution") == "workers":
        command = "embatch worker --journal URL"
        hindrances = journal.workers.hindrances(queue_of(run), run.id)
        if hindrances:
            said = "; ".join(f"{host}: {what}" for host, what in sorted(hindrances.items()))
            sentence = f"no worker can work it: {said}; mend that, or start another one: {command}"
            return Why(kind="workers", sentence=f"{sentence}{warned}", command=command)
        sentence = (
            f"no worker alive for the queue {queue_of(run)}: {command}, on any machine{warned}"
        )
        return Why(kind="workers", sentence=sentence, command=command)
    command = f"embatch resume {run.id}"
    sentence = f"no process works on it: {command}{warned}"
    return Why(kind="unattended", sentence=sentence, command=command)


def _planning(run: RunRecord) -> Why:
    if run.rows is None:
        return Why(kind="planning", sentence="reading the input for the first time")
    return Why(kind="planning", sentence=f"cutting {run.rows:,} rows into batches")


def _waiting(journal: Journal, run: RunRecord, now: float) -> Why | None:
    held = journal.batches.first_blocked(run.id)
    if held is not None and held.next_at > now and held.blocked_reason != "owners":
        return _held(journal, run, held, now)
    return _slow(journal.batches.outlook(run.id), now)


def _held(journal: Journal, run: RunRecord, held: BatchRecord, now: float) -> Why:
    """A batch waits, for a reason that its last step told."""
    detail = held.blocked_detail or "no detail given"
    if held.blocked_reason == "quota":
        until = _quota_until(journal, run.id, now)
        return Why(
            kind="quota",
            sentence=f"waiting for quota until {moment(until or held.next_at, now)} "
            f"(batch {held.number}): {detail}",
            until=until or held.next_at,
        )
    in_doubt = held.state is BatchState.SUBMITTING and held.blocked_reason == "unavailable"
    if in_doubt:
        return Why(
            kind="settling",
            sentence=f"batch {held.number}: whether its job was created is in doubt; it is looked "
            f"for again in {span(held.next_at - now)}, and sent anew only once it is surely absent",
            until=held.next_at,
        )
    why: WhyKind = "budget" if held.blocked_reason == "budget" else "service"
    words = _WORDS_OF_REASONS.get(str(held.blocked_reason), "waits")
    sentence = (
        f"batch {held.number} {words}, {span(held.next_at - now)} more "
        f"({held.blocked_reason}): {detail}"
    )
    return Why(kind=why, sentence=sentence, command=command_in(detail), until=held.next_at)


def _quota_until(journal: Journal, run_id: str, now: float) -> float | None:
    scopes = journal.quotas.scopes_of(run_id)
    if not scopes:
        return None
    belief = Belief.from_json(journal.quotas.believed(scopes[0]))
    return belief.hold_until if belief.hold_until > now else None


def _slow(outlook: Outlook, now: float) -> Why | None:
    """Jobs that are out far longer than those that ended."""
    if not outlook.since:
        return None
    oldest = now - min(outlook.since)
    if not outlook.durations:
        if oldest < NEWS_EXPECTED_S:
            return None
        return Why(
            kind="slow",
            sentence=f"oldest batch pending {span(oldest)}; none of this run has come back yet",
        )
    usual = median(outlook.durations)
    if oldest < max(SLOW_LEAST_S, SLOW_FACTOR * usual):
        return None
    return Why(
        kind="slow",
        sentence=f"oldest batch pending {span(oldest)} against a median of {span(usual)}",
    )
