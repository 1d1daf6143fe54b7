"""What a person decides of a batch that embatch cannot tell about: its job is this, or is gone."""

from typing import Any, Final

from embatch.errors import InvalidRequestError, NotFoundError, ProviderUnavailableError
from embatch.journal.jobs import JobRecord, held_gone
from embatch.process import owner_identity
from embatch.providers.base import Provider, RemoteBatch
from embatch.runs.audit import MISALIGNED
from embatch.runs.context import RunContext
from embatch.runs.step import Step
from embatch.runs.submitting import confirm
from embatch.runs.twins import take_over
from embatch.types.state import BatchEvent, BatchState, RunState

LEASE_S: Final = 60.0
_DONE: Final = (RunState.COMPLETED, RunState.COMPLETED_WITH_FAILURES)
_UNSENT: Final = (BatchState.PLANNED, BatchState.UPLOADING, BatchState.UPLOADED)
_SENT: Final = (BatchState.SUBMITTING, BatchState.SUBMITTED, BatchState.READY)


def resolve_batch(context: RunContext, number: int, *, adopt: str | None) -> None:
    """Goes on with the job called `adopt`, or, for None, holds the batch's job to be gone.

    A job to adopt must bear a label of this batch. What is held gone is bought again, and its
    label stays watched. Raises InvalidRequestError, with nothing changed, when it does not fit.
    """
    journal, run = context.journal, context.run()
    if run.state in _DONE:
        raise InvalidRequestError(f"run {run.id} is {run.state}: there is nothing to resolve")
    batch = journal.batches.numbered(run.id, number)
    job = None
    if adopt is not None:
        jobs = {job.label: job for job in journal.jobs.of_batch(batch.id)}
        label = label_of(context.provider, adopt)
        job = jobs.get(label)
        if job is None:
            raise InvalidRequestError(
                f"{adopt} bears the label {label}, which is none of batch {number}: its rows have "
                f"other keys; a job of this batch is called {' or '.join(jobs) or 'nothing yet'}"
            )
    claim = journal.leases.claim_batch(batch.id, owner=owner_identity(), lease_s=LEASE_S)
    if claim is None:
        raise InvalidRequestError(
            f"a process works on batch {number} at this moment: stop it, or type it again"
        )
    try:
        step = Step(claim.batch, claim.token, context, lambda: True)
        if job is not None and adopt is not None:
            _adopt(step, job, adopt)
        else:
            _give_up(step)
    finally:
        journal.leases.release(batch.id, claim.token, next_at=context.now())


def label_of(provider: Provider, name: str) -> str:
    """The display name of a job; NotFoundError when the provider neither has nor lists it."""
    try:
        label = provider.poll(name).label
    except (NotFoundError, ProviderUnavailableError):
        label = None
    if label is not None:
        return label
    for remote in provider.listed():
        if remote.name == name:
            return remote.label
    raise NotFoundError(f"the provider has no job {name}, and lists none: look at the name again")


def _adopt(step: Step, job: JobRecord, name: str) -> None:
    state = step.batch.state
    if state is BatchState.SUBMITTING and job.label == step.batch.label:
        confirm(step, RemoteBatch(name=name, label=job.label))
    elif state in _SENT:
        take_over(_withdrawn(step), job, name)
    elif state in _UNSENT:
        take_over(step, job, name)
    else:
        raise _refusal(step)


def _give_up(step: Step) -> None:
    batch, context = step.batch, step.context
    if batch.state not in _SENT:
        raise _refusal(step)
    if batch.state is BatchState.SUBMITTING:
        _withdrawn(step)
    else:
        # It was there once: should it go on somewhere, it is stopped and counted.
        gone = held_gone(str(batch.label), now=context.now())
        if batch.part_sha256 is not None and batch.state is BatchState.READY:
            # Its other rows went on already: those of its lost part alone are sent again.
            why = {"error_code": MISALIGNED, "error": "its part was lost, and its job is gone"}
            step.move(BatchEvent.MISALIGNED, **why, also=[gone])
            return
        _withdrawn(step, bought=batch.items, bought_why="lost", also=[gone])
    if batch.input_ref is not None:
        context.provider.discard(None, batch.input_ref)


def _withdrawn(step: Step, **facts: Any) -> Step:
    doubtful = step.batch.state is BatchState.SUBMITTING
    event = BatchEvent.HELD_ABSENT if doubtful else BatchEvent.INPUT_LOST
    cleared = dict.fromkeys(("absences", "succeeded", "failed", "polls"), 0)
    return step.move(event, remote_name=None, input_ref=None, **cleared, **facts)


def _refusal(step: Step) -> InvalidRequestError:
    batch = step.batch
    return InvalidRequestError(
        f"batch {batch.number} is {batch.state}: no job of it is in doubt; "
        f"embatch status {batch.run_id} tells what it waits for"
    )
