"""Looks now and then for what no step would tell: runs that stand still, or fail row by row."""

import logging
from collections.abc import Collection
from statistics import median
from typing import Any, Final

from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.runs.config import STUCK_AFTER_S
from embatch.runs.why import SLOW_FACTOR, span
from embatch.types.state import RunState

log = logging.getLogger("embatch.runs")

STILL_S: Final = 3600.0
"""A job that has not moved for less than this, in seconds, is no news."""
STILL_UNKNOWN_S: Final = 6 * 3600.0
"""The same while no job of the run has come back to compare with."""
DECIDED_ROWS: Final = 100
"""Under so many decided rows, or a hundredth of all, a success rate says little."""


def keep_vigil(journal: Journal, run_ids: Collection[str] | None, *, now: float) -> None:
    """One look at the runs that are going: at these alone, or at all of them."""
    for run in journal.list_runs(states=[RunState.RUNNING]):
        if run_ids is None or run.id in run_ids:
            _look_for_stillness(journal, run, now)
            _look_at_success(journal, run, now)


def _look_for_stillness(journal: Journal, run: RunRecord, now: float) -> None:
    durations = journal.batches.outlook(run.id).durations
    usual = median(durations) if durations else None
    longest = STILL_UNKNOWN_S if usual is None else max(STILL_S, SLOW_FACTOR * usual)
    longest = min(longest, float(run.config.get("stuck_after_s") or STUCK_AFTER_S))
    found = journal.measures.standing(run.id, before=now - longest)
    if found.still and found.since is not None:
        against = "" if usual is None else f", against a median of {span(usual)}"
        words = f"batch {found.number} has not moved for {span(now - found.since)}{against}"
        if found.still > 1:
            words += f"; {found.still} of {found.batches} batches at the provider stand still"
        _tell_stuck(journal, run, found.since, words, found.still, now)
    elif not found.batches and found.last_event_at is not None:
        quiet = now - found.last_event_at
        if quiet >= longest and not _waits_for_quota(journal, run.id):
            words = f"nothing of the run has changed for {span(quiet)}"
            _tell_stuck(journal, run, found.last_event_at, words, 0, now)


def _tell_stuck(
    journal: Journal, run: RunRecord, since: float, words: str, batches: int, now: float
) -> None:
    facts: dict[str, Any] = {"waiting": words, "batches": batches, "since": since}
    if journal.outbox.tell_stuck(run.id, since=since, facts=facts, now=now):
        log.warning("run %s does not move: %s", run.id, words)


def _waits_for_quota(journal: Journal, run_id: str) -> bool:
    held = journal.batches.first_blocked(run_id)
    return held is not None and held.blocked_reason == "quota"


def _look_at_success(journal: Journal, run: RunRecord, now: float) -> None:
    counts = journal.batches.counts(run.id)
    decided = counts.written + counts.failed
    if not counts.failed or decided < max(DECIDED_ROWS, (run.rows or 0) / 100):
        return
    rate, least = 100.0 * counts.written / decided, float(run.config["alert_below_pct"])
    if rate < least and journal.outbox.tell_low_success(run.id, facts={}, now=now):
        log.warning(
            "run %s: %.1f %% of %d decided rows have a vector, under the %g %% of --alert-below",
            *(run.id, rate, decided, least),
        )
