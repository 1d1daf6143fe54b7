"""Jobs that were held absent and turn up all the same, and those that go on beside their batch.

A job is held absent when two complete looks did not find it. It may still turn up: then its batch
takes it over, if it is not sent again yet, else the twin is stopped, and what it cost is counted.
"""

import logging
from typing import Final

from embatch.errors import EmbatchError, NotFoundError, ProviderUnavailableError, RateLimitError
from embatch.journal.jobs import JobRecord
from embatch.providers.base import Provider, RemoteJob
from embatch.runs.context import RunContext
from embatch.runs.step import Step
from embatch.types.state import BatchEvent, BatchState, JobState

log = logging.getLogger("embatch.runs")

ASK_EVERY_S: Final = 30.0
"""Until the journal is asked again whether there is a job to be looked for."""
_WITHOUT_RESULTS: Final = (JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED)
_UNSENT: Final = (BatchState.PLANNED, BatchState.UPLOADING, BatchState.UPLOADED)


def adopt_twin(step: Step, *, look: bool) -> bool:
    """Goes on with an earlier job of this batch, which is not submitted, if one has turned up.

    With `look`, walks through the provider's list when an attempt of it was held absent.
    """
    context, batch = step.context, step.batch
    if not context.provider.limits.billed:
        return False
    jobs = {job.label: job for job in context.journal.jobs.of_batch(batch.id)}
    running = next((job for job in jobs.values() if job.state == "running"), None)
    if running is not None:
        take_over(step, running, str(running.remote_name))
        return True
    absent = {label: job for label, job in jobs.items() if job.state == "absent"}
    if not (look and absent):
        return False
    found = [remote for remote in context.provider.listed() if remote.label in absent]
    if not found:
        return False
    take_over(step, absent[found[0].label], found[0].name)
    return True


def take_over(step: Step, job: JobRecord, name: str) -> None:
    """Makes an earlier job of the batch its present one. The input of the new attempt goes."""
    context, batch = step.context, step.batch
    log.warning(
        "batch %d: %s, whose creation was held to have failed, is there after all: taken over",
        batch.number,
        name,
    )
    step.move(
        BatchEvent.TWIN_ADOPTED,
        label=job.label,
        remote_name=name,
        input_ref=None,
        submitted_at=job.intended_at,
        moved_at=context.now(),
        cancel_asked_at=None,
        remote_state=None,
        polls=0,
        absences=0,
    )
    context.checkpoint("twin.adopted")
    if batch.input_ref is not None and job.label != batch.label:
        context.provider.discard(None, batch.input_ref)


def watch(context: RunContext) -> list[float]:
    """One complete walk through the provider's list for jobs of the run that nobody follows.

    Gives since when those that are there and have not ended are stopped, the latest last. Errors
    of the walk are raised.
    """
    watched = {job.label: job for job in context.journal.jobs.watched(context.run_id)}
    if not watched:
        return []
    found = [remote for remote in context.provider.listed() if remote.label in watched]
    context.checkpoint("twins.listed")
    strays = [job for job in watched.values() if job.state == "stray"]
    context.journal.jobs.sighted(strays, {remote.label for remote in found}, now=context.now())
    looked_after = [_look_after(context, watched[remote.label], remote) for remote in found]
    return sorted(since for since in looked_after if since is not None)


def _look_after(context: RunContext, job: JobRecord, remote: RemoteJob) -> float | None:
    """Sees to one job that is there. Gives since when it is stopped, None when it has ended."""
    batch, now = context.journal.batches.get(job.batch_id), context.now()
    if batch.state in _UNSENT:
        if job.state == "absent":
            context.journal.jobs.turned_up(job, remote.name, "running", now=now)
        return now  # the batch takes it over before it is sent again
    if batch.state is BatchState.SUBMITTING:
        return now  # its own creation is in doubt: that is settled first
    if job.state != "stray" and batch.label == job.label:
        return now  # its batch has taken it over by now
    since = now if job.state != "stray" or job.ended_at is None else job.ended_at
    if job.state == "absent":
        log.warning(
            "batch %d: %s turned up after the batch was sent again: it is stopped",
            batch.number,
            remote.name,
        )
        if not context.journal.jobs.turned_up(job, remote.name, "stray", now=now):
            return now
        context.checkpoint("twin.found")
    elif job.state == "running":
        context.journal.jobs.mark(job.label, "stray", now=now)
    if not remote.done:
        try:
            context.provider.cancel(remote.name)
        except NotFoundError:
            log.info("%s went by itself", remote.name)
        else:
            return since
    _close(context, job, remote)
    return None


def _close(context: RunContext, job: JobRecord, remote: RemoteJob) -> None:
    """Counts what a job that nobody follows has cost, and removes it."""
    batch = context.journal.batches.get(job.batch_id)
    rows = rows_billed(context.provider, job, remote)
    now = context.now()
    if rows:
        log.warning("batch %d: %d rows were bought twice, by %s", batch.number, rows, remote.name)
    context.journal.ledger.settle_beside(job.label, rows, now=now)
    context.journal.add_event(
        job.run_id,
        "twin_ended",
        now=now,
        batch_id=job.batch_id,
        data={"label": job.label, "remote_name": remote.name, "rows": rows},
    )
    context.journal.jobs.mark(job.label, "ended", now=now, remote_name=remote.name)
    if not context.keeps_remote:
        own_input = batch.input_ref if batch.label == job.label else None
        try:
            context.provider.discard(remote.name, own_input)
        except EmbatchError as error:
            log.warning("%s stays at the provider: %s", remote.name, error)


def rows_billed(provider: Provider, job: JobRecord, remote: RemoteJob) -> int:
    """Rows that a job which has ended was billed for, as far as can be told."""
    try:
        status = provider.poll(remote.name)
    except (NotFoundError, ProviderUnavailableError, RateLimitError):
        # It ended, and cannot be asked how: what its state in the list says is taken.
        return 0 if remote.state in _WITHOUT_RESULTS else job.items
    counts = status.progress
    counted = counts.succeeded > 0 or counts.failed > 0 or not status.has_results
    return counts.succeeded if counted else job.items


class Lookout:
    """Walks through the provider's lists for jobs that may turn up late, every settle period."""

    def __init__(self) -> None:
        self._next_at: dict[str, float] = {}

    def is_due(self, context: RunContext) -> bool:
        """The run has such jobs, and this process has not asked for a while."""
        now, limits = context.now(), context.provider.limits
        if not limits.billed or self._next_at.get(context.run_id, 0.0) > now:
            return False
        self._next_at[context.run_id] = now + min(limits.settle_s, ASK_EVERY_S)
        return bool(context.journal.jobs.watched(context.run_id))

    def look(self, context: RunContext) -> None:
        """One walk, unless another process made one in this settle period."""
        journal, every_s = context.journal, context.provider.limits.settle_s
        if not journal.begin_watch(context.run_id, now=context.now(), every_s=every_s):
            return
        try:
            watch(context)
        except (ProviderUnavailableError, RateLimitError) as error:
            log.info("run %s: the provider's list is looked at later: %s", context.run_id, error)
