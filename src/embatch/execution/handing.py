"""Hands runs to the workers of a PostgreSQL journal, and waits for what they do."""

import math
import threading
import time
from collections.abc import Callable

from embatch.errors import JournalError
from embatch.execution.jobs import job_of
from embatch.execution.patience import Patience
from embatch.execution.procrastinate import put_once, require_postgres
from embatch.journal.records import RunRecord
from embatch.types.state import RunState

__all__ = ["hand_over", "require_postgres", "wait_until"]


def hand_over(url: str, run: RunRecord, *, now: float) -> None:
    """Puts the jobs into their queue with which workers begin, or go on with, a run at once.

    A run that is not handed over is found by the workers all the same, some seconds later. Raises
    ConfigError for a journal that is no PostgreSQL, JournalError when it takes no job.
    """
    jobs = [job_of(run, "dispatch")]
    if run.state is RunState.PLANNING:
        jobs.insert(0, job_of(run, "plan"))
    put_once(url, jobs, now=now)


def wait_until(
    until: Callable[[], bool], *, poll_s: float = 0.5, timeout_s: float | None = None
) -> None:
    """Asks `until` again and again, until it holds or `timeout_s` is over.

    While the journal is away it is waited for.
    """
    patience = Patience(threading.Event())
    ends_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while (left := ends_at - time.monotonic()) > 0:
        try:
            if until():
                return
            patience.relax()
        except JournalError as error:
            if not patience.bears(error):
                raise
        time.sleep(min(poll_s, left))
