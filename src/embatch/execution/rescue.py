"""Looks for what has no job or an expired lease, run by run, and makes the jobs anew."""

import logging
import math
from collections.abc import Sequence
from typing import Final

from embatch.errors import EmbatchError, JournalError
from embatch.execution.contexts import Contexts
from embatch.execution.jobs import Job, is_worked, job_of
from embatch.execution.leftovers import discard_leftovers
from embatch.execution.steps import WORKING_STATES
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.journal.workers import Queue, queue_of
from embatch.process import is_known_dead
from embatch.types.state import RunState

log = logging.getLogger("embatch.execution")

RESCUED: Final = 2000
"""Batches that one rescue looks after in a run, the soonest due."""


def rescue(journal: Journal, contexts: Contexts, queue: Queue) -> Sequence[Job]:
    """Jobs for all in `queue` that should have one, whatever became of those that were there.

    A run that cannot be looked after keeps nobody from the others.
    """
    journal.leases.release_dead(is_known_dead)
    journal.workers.prune()
    working = [run for run in journal.list_runs(states=WORKING_STATES) if is_worked(run)]
    contexts.let_go({run.id for run in working})
    jobs = list[Job]()
    for run in working:
        try:
            if queue_of(run) == queue:
                jobs += _jobs_of(journal, run)
                if queue == "compute":
                    _clear_up(contexts, run)
        except JournalError:
            raise  # says nothing about the run
        except Exception as error:  # noqa: BLE001 - the others are rescued all the same
            log.error("run %s: it cannot be rescued: %s", run.id, _said(error))
    return jobs


def _jobs_of(journal: Journal, run: RunRecord) -> Sequence[Job]:
    jobs = [job_of(run, "dispatch")]
    if run.state is RunState.PLANNING and not journal.dues.is_planned(run.id):
        jobs.append(job_of(run, "plan"))
    if queue_of(run) == "compute":
        return jobs
    free = journal.dues.free(run.id, by=math.inf, limit=RESCUED)
    return [*jobs, *(job_of(run, "step", one.batch_id, one.next_at) for one in free)]


def _clear_up(contexts: Contexts, run: RunRecord) -> None:
    """Removes what a dead worker left in the service of this machine."""
    context = contexts.of(run)
    if context is not None:
        discard_leftovers(context)


def _said(error: Exception) -> str:
    """An error in words, a foreign one by its name: its message may hold a user's text."""
    return str(error) if isinstance(error, (EmbatchError, OSError)) else type(error).__name__
