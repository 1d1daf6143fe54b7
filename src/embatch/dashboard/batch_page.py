"""Reads the page of one batch from the journal."""

from collections.abc import Sequence
from typing import Final

from embatch.dashboard import actions
from embatch.dashboard.events import PER_PAGE, timeline
from embatch.dashboard.facts import Attempt, AuditFacts, Bill, Timing, Tone
from embatch.dashboard.rows import need_run, title_of
from embatch.dashboard.run_page import EXAMPLES, groups_of, next_step
from embatch.dashboard.views import BatchPage
from embatch.journal.audits import AuditedRow
from embatch.journal.purchases import LedgerLine
from embatch.journal.records import BatchRecord
from embatch.journal.store import Journal
from embatch.types.state import FINAL_RUN_STATES, BatchState

WORST: Final = 5
"""Audited rows that are shown by their keys."""
_TONES: Final[dict[BatchState, Tone]] = {
    BatchState.PUBLISHED: "good",
    BatchState.FAILED: "bad",
    BatchState.EXPIRED: "wait",
    BatchState.CANCELLED: "ended",
    BatchState.QUARANTINED: "bad",
    BatchState.SPLIT: "ended",
}


def read_batch(
    journal: Journal, run_id: str, number: int, *, before: int | None, now: float
) -> BatchPage:
    """The page of a batch; NotFoundError when the run does not have it."""
    run = need_run(journal, run_id)
    batch = journal.batches.numbered(run.id, number)
    views = journal.views
    previous, following = views.neighbours(run.id, number)
    audited = views.audited(run.id, batch.id)
    over = run.state in FINAL_RUN_STATES
    return BatchPage(
        now=now,
        run=run.id,
        run_title=title_of(run.name, run.out),
        run_state=run.state.value,
        number=number,
        previous=previous,
        following=following,
        kind=batch.kind,
        state=batch.state.value,
        tone="person" if batch.blocked_reason == "person" else _TONES.get(batch.state, "work"),
        parent=None if batch.parent_id is None else journal.batches.get(batch.parent_id).number,
        children=tuple(views.children(run.id, batch.id)),
        attempt=batch.attempt,
        remote_name=batch.remote_name,
        remote_state=batch.remote_state,
        label=batch.label,
        items=batch.items,
        row_min=batch.row_min,
        row_max=batch.row_max,
        succeeded=batch.succeeded,
        failed=batch.failed,
        truncated=batch.truncated,
        repeated=batch.repeated,
        tokens=batch.tokens,
        tokens_estimated=batch.tokens_estimated,
        text_bytes=batch.text_bytes,
        part=batch.part,
        part_rows=batch.part_rows,
        part_bytes=batch.part_bytes,
        polls=batch.polls,
        absences=batch.absences,
        error_code=batch.error_code,
        error=batch.error,
        blocked_reason=batch.blocked_reason,
        blocked_detail=batch.blocked_detail,
        next=None if over else next_step(batch, now),
        worked_by=batch.lease_owner,
        created_at=batch.created_at,
        updated_at=batch.updated_at,
        submitted_at=batch.submitted_at,
        finished_at=batch.finished_at,
        results_until=batch.results_until,
        timings=_timings(batch, over=over, now=now),
        attempts=_attempts(journal, batch),
        bills=tuple(_bill(line) for line in views.bills(batch.id)),
        audit=_audit(batch, audited),
        failures=groups_of(views.failures_by_code(run.id, examples=EXAMPLES, batch_id=batch.id)),
        timeline=timeline(
            views.history(run.id, before=before, limit=PER_PAGE + 1, batch_id=batch.id),
            before=before,
        ),
        actions=actions.offers_of_batch(run, batch),
    )


def _timings(batch: BatchRecord, *, over: bool, now: float) -> tuple[Timing, ...]:
    """The spans of a batch's present attempt that have begun."""
    ended = batch.finished_at
    last = ended or (batch.updated_at if over else now)
    if batch.submitted_at is None:
        return (_timing("waited to be sent", batch.created_at, last, ended is None and not over),)
    found = [_timing("waited to be sent", batch.created_at, batch.submitted_at, False)]
    going = ended is None and not over
    found.append(_timing("sent until written", batch.submitted_at, last, going))
    if batch.moved_at is not None and going:
        found.append(_timing("since the provider's last news", batch.moved_at, now, True))
    return tuple(found)


def _timing(name: str, begun: float, ended: float, goes_on: bool) -> Timing:
    return Timing(name=name, begun_at=begun, seconds=max(0.0, ended - begun), open=goes_on)


def _attempts(journal: Journal, batch: BatchRecord) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            number=job.attempt,
            label=job.label,
            remote_name=job.remote_name,
            state=job.state,
            items=job.items,
            tokens=job.tokens,
            intended_at=job.intended_at,
            ended_at=job.ended_at,
        )
        for job in reversed(journal.jobs.of_batch(batch.id))
    )


def _bill(line: LedgerLine) -> Bill:
    return Bill(
        kind=line.kind,
        state=line.state,
        rows=line.rows,
        tokens=line.tokens,
        usd=line.usd,
        usd_bound=line.usd_bound,
        estimated=line.estimated,
        at=line.at,
    )


def _audit(batch: BatchRecord, audited: Sequence[AuditedRow]) -> AuditFacts | None:
    """What is known of the batch's audit. Rows are kept of quarantined batches only."""
    if batch.audited is None and not audited:
        return None
    return AuditFacts(
        rows=max(batch.audited or 0, len(audited)),
        least_cosine=batch.audit_least,
        mismatches=sum(not row.passed for row in audited),
        worst=tuple((row.key, row.cosine) for row in audited[:WORST]),
    )
