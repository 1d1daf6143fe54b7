"""States of remote jobs, of our batches and of runs, and THE transition tables.

A batch, on its way down; what stands beside the line is where trouble leads:

    planned ─▶ uploading ─▶ uploaded ─▶ submitting ─▶ submitted ─▶ ready ─▶ collected ─▶ published
       ▲          │                        │  │           │           │
       └──────────┼──── held absent ───────┘  │           ▼           ▼
                  └──────────▶ failed ◀───────┘     failed ·      quarantined
                                                    expired ·         │
                                                    cancelled         │
                                                        ▼             ▼
                                                 split (into child batches, or into row failures)

Copies (rows whose text stands elsewhere) know no provider: they go from planned to ready. So do
batches that are sent through the interactive API. A batch that is not submitted may adopt the job
of an earlier attempt that turns up late, and a published one is quarantined when an audit finds
its vectors on the wrong texts: copies of these vectors then wait for their owners anew.
"""

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """State of a batch as a provider tells it, in one spelling for all providers."""

    UNSPECIFIED = "unspecified"
    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


TERMINAL_JOB_STATES: Final = frozenset(
    {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED}
)


class BatchState(StrEnum):
    """State of a batch in the journal."""

    PLANNED = "planned"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    READY = "ready"
    COLLECTED = "collected"
    PUBLISHED = "published"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"
    SPLIT = "split"


class BatchEvent(StrEnum):
    """What happens to a batch; with its state it decides the next state."""

    UPLOAD_STARTED = "upload_started"
    UPLOAD_FINISHED = "upload_finished"
    UPLOAD_REFUSED = "upload_refused"
    SUBMIT_INTENDED = "submit_intended"
    SUBMIT_CONFIRMED = "submit_confirmed"
    SUBMIT_REFUSED = "submit_refused"
    SUBMIT_DEFERRED = "submit_deferred"
    HELD_ABSENT = "held_absent"
    RESULTS_READY = "results_ready"
    OWNERS_FINAL = "owners_final"
    JOB_FAILED = "job_failed"
    JOB_EXPIRED = "job_expired"
    JOB_CANCELLED = "job_cancelled"
    INPUT_LOST = "input_lost"
    COLLECTED = "collected"
    PART_LOST = "part_lost"
    PUBLISHED = "published"
    MISALIGNED = "misaligned"
    AUDIT_PASSED = "audit_passed"
    OWNERS_WITHDRAWN = "owners_withdrawn"
    TWIN_ADOPTED = "twin_adopted"
    SENT_DIRECTLY = "sent_directly"
    GAVE_WAY = "gave_way"
    RUN_CANCELLED = "run_cancelled"


_S, _E = BatchState, BatchEvent

BATCH_TRANSITIONS: Final[dict[tuple[BatchState, BatchEvent], BatchState]] = {
    (_S.PLANNED, _E.UPLOAD_STARTED): _S.UPLOADING,
    (_S.UPLOADING, _E.UPLOAD_FINISHED): _S.UPLOADED,
    (_S.UPLOADING, _E.UPLOAD_REFUSED): _S.FAILED,
    (_S.UPLOADED, _E.SUBMIT_INTENDED): _S.SUBMITTING,
    (_S.UPLOADED, _E.INPUT_LOST): _S.PLANNED,
    (_S.SUBMITTING, _E.SUBMIT_CONFIRMED): _S.SUBMITTED,
    (_S.SUBMITTING, _E.SUBMIT_REFUSED): _S.FAILED,
    (_S.SUBMITTING, _E.SUBMIT_DEFERRED): _S.UPLOADED,
    (_S.SUBMITTING, _E.HELD_ABSENT): _S.PLANNED,
    (_S.SUBMITTED, _E.RESULTS_READY): _S.READY,
    (_S.SUBMITTED, _E.JOB_FAILED): _S.FAILED,
    (_S.SUBMITTED, _E.JOB_EXPIRED): _S.EXPIRED,
    (_S.SUBMITTED, _E.JOB_CANCELLED): _S.CANCELLED,
    (_S.SUBMITTED, _E.INPUT_LOST): _S.PLANNED,
    (_S.PLANNED, _E.OWNERS_FINAL): _S.READY,
    **{
        (state, event): target
        for state in (_S.PLANNED, _S.UPLOADING, _S.UPLOADED)
        for event, target in (
            (_E.TWIN_ADOPTED, _S.SUBMITTED),
            (_E.SENT_DIRECTLY, _S.READY),
            (_E.GAVE_WAY, _S.SPLIT),
        )
    },
    (_S.READY, _E.COLLECTED): _S.COLLECTED,
    (_S.READY, _E.GAVE_WAY): _S.SPLIT,
    (_S.READY, _E.INPUT_LOST): _S.PLANNED,
    (_S.READY, _E.MISALIGNED): _S.QUARANTINED,
    (_S.READY, _E.JOB_FAILED): _S.FAILED,
    (_S.COLLECTED, _E.PUBLISHED): _S.PUBLISHED,
    (_S.COLLECTED, _E.PART_LOST): _S.READY,
    (_S.PUBLISHED, _E.MISALIGNED): _S.QUARANTINED,
    **{
        (state, _E.OWNERS_WITHDRAWN): _S.PLANNED for state in (_S.READY, _S.COLLECTED, _S.PUBLISHED)
    },
    (_S.QUARANTINED, _E.AUDIT_PASSED): _S.READY,
    (_S.QUARANTINED, _E.GAVE_WAY): _S.SPLIT,
    (_S.FAILED, _E.GAVE_WAY): _S.SPLIT,
    (_S.EXPIRED, _E.GAVE_WAY): _S.SPLIT,
    (_S.CANCELLED, _E.GAVE_WAY): _S.SPLIT,
    (_S.PLANNED, _E.RUN_CANCELLED): _S.CANCELLED,
    (_S.UPLOADING, _E.RUN_CANCELLED): _S.CANCELLED,
    (_S.UPLOADED, _E.RUN_CANCELLED): _S.CANCELLED,
}
"""The one table of batch transitions. The database refuses any other change of state."""

FINAL_BATCH_STATES: Final = frozenset({_S.PUBLISHED, _S.SPLIT})
"""No step follows these of itself. `cancelled` is final too once its run is cancelled."""

IN_FLIGHT_BATCH_STATES: Final = frozenset({_S.SUBMITTING, _S.SUBMITTED})
"""States in which a batch may occupy the provider."""


class RunState(StrEnum):
    """State of a run in the journal."""

    PLANNING = "planning"
    RUNNING = "running"
    PARKED = "parked"
    NEEDS_PERSON = "needs_person"
    OVER_BUDGET = "over_budget"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED = "failed"


class RunEvent(StrEnum):
    """What happens to a run; with its state it decides the next state."""

    PLANNED = "planned"
    PARKED = "parked"
    BLOCKED = "blocked"
    BUDGET_REACHED = "budget_reached"
    RESUMED = "resumed"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED = "failed"
    RETRIED = "retried"


_R, _V = RunState, RunEvent
_WORKING = (_R.RUNNING, _R.PARKED, _R.NEEDS_PERSON, _R.OVER_BUDGET)

RUN_TRANSITIONS: Final[dict[tuple[RunState, RunEvent], RunState]] = {
    (_R.PLANNING, _V.PLANNED): _R.RUNNING,
    (_R.PLANNING, _V.FAILED): _R.FAILED,
    (_R.PLANNING, _V.CANCELLED): _R.CANCELLED,
    (_R.RUNNING, _V.PARKED): _R.PARKED,
    (_R.RUNNING, _V.BLOCKED): _R.NEEDS_PERSON,
    (_R.RUNNING, _V.BUDGET_REACHED): _R.OVER_BUDGET,
    (_R.PARKED, _V.RESUMED): _R.RUNNING,
    (_R.NEEDS_PERSON, _V.RESUMED): _R.RUNNING,
    (_R.OVER_BUDGET, _V.RESUMED): _R.RUNNING,
    **{(state, _V.CANCELLED): _R.CANCELLED for state in _WORKING},
    **{(state, _V.FAILED): _R.FAILED for state in _WORKING},
    (_R.RUNNING, _V.COMPLETED): _R.COMPLETED,
    (_R.RUNNING, _V.COMPLETED_WITH_FAILURES): _R.COMPLETED_WITH_FAILURES,
    (_R.COMPLETED_WITH_FAILURES, _V.RETRIED): _R.RUNNING,
    (_R.FAILED, _V.RESUMED): _R.PLANNING,
    (_R.CANCELLED, _V.RESUMED): _R.PLANNING,
}
"""The one table of run transitions. A run that ended early resumes in planning."""

FINAL_RUN_STATES: Final = frozenset(
    {_R.CANCELLED, _R.COMPLETED, _R.COMPLETED_WITH_FAILURES, _R.FAILED}
)


def next_batch_state(state: BatchState, event: BatchEvent) -> BatchState:
    """The state that `event` leads to; KeyError names a pair that the table does not hold."""
    return BATCH_TRANSITIONS[state, event]


def next_run_state(state: RunState, event: RunEvent) -> RunState:
    """The state that `event` leads to; KeyError names a pair that the table does not hold."""
    return RUN_TRANSITIONS[state, event]
