"""Reads the pages of the workers and of what lies at a provider."""

import time
from typing import Final, Literal

from embatch.config import Settings
from embatch.dashboard.facts import Doing, RemoteRow, Tone, WorkerRow
from embatch.dashboard.views import ProviderPage, WorkersPage
from embatch.environment import Environment
from embatch.errors import EmbatchError, InvalidRequestError
from embatch.hooks import Hooks
from embatch.journal.store import Journal
from embatch.journal.workers import WorkerRecord, queue_of
from embatch.providers.base import RemoteJob
from embatch.runs.attendance import WORKING_STATES
from embatch.runs.orphans import orphan_of, owner_of

PROVIDERS: Final = ("gemini", "vertex", "local")
MOST_JOBS: Final = 500
ASK_S: Final = 15.0
"""How long a provider's list is read, in seconds."""


def read_workers(journal: Journal, *, now: float) -> WorkersPage:
    """Every process that takes steps, or took them lately."""
    workers = tuple(_worker(one) for one in journal.workers.every())
    count = {state: sum(one.state == state for one in workers) for state in _TONES}
    served = {queue for one in workers if one.state == "alive" for queue in one.queues}
    wanting = [
        run
        for run in journal.list_runs(states=WORKING_STATES)
        if run.config.get("execution") == "workers" and queue_of(run) not in served
    ]
    return WorkersPage(
        now=now,
        workers=workers,
        alive=count["alive"],
        lost=count["lost"],
        stopped=count["stopped"],
        waiting_runs=len(wanting),
        command="embatch worker",
    )


WorkerState = Literal["alive", "lost", "stopped"]
Standing = Literal["ours", "late", "forgotten", "foreign", "other"]
_TONES: Final[dict[WorkerState, Tone]] = {"alive": "good", "lost": "bad", "stopped": "ended"}


def _worker(one: WorkerRecord) -> WorkerRow:
    state: WorkerState = "alive" if one.alive else "lost" if one.stopped_at is None else "stopped"
    return WorkerRow(
        id=one.id,
        host=one.host,
        pid=one.pid,
        version=one.version,
        execution=one.execution,
        queues=one.queues,
        concurrency=one.concurrency,
        state=state,
        tone=_TONES[state],
        started_at=one.started_at,
        seen_at=one.seen_at,
        stopped_at=one.stopped_at,
        steps=one.steps,
        doing=tuple(
            Doing(run=step.run_id, batch=step.batch, step=step.step, since=step.since)
            for step in one.doing
        ),
    )


def unasked(error: str | None = None, provider: str | None = None, *, now: float) -> ProviderPage:
    """The page before a provider was asked, or after it could not be."""
    return ProviderPage(
        now=now,
        providers=PROVIDERS,
        provider=provider,
        asked=provider is not None,
        took_s=None,
        error=error,
        complete=False,
        jobs=(),
        orphans=0,
    )


def ask_provider(settings: Settings, journal: Journal, hooks: Hooks, provider: str) -> ProviderPage:
    """Reads the list of a provider: at most `MOST_JOBS`, for about `ASK_S` seconds."""
    now = hooks.clock()
    if provider not in PROVIDERS:
        raise InvalidRequestError(f"no provider {provider!r}: there are {', '.join(PROVIDERS)}")
    world = Environment(settings, journal, hooks)
    begun = time.monotonic()
    jobs: list[RemoteRow] = []
    complete = True
    try:
        for remote in world.service(provider).listed():
            if len(jobs) >= MOST_JOBS or time.monotonic() - begun > ASK_S:
                complete = False
                break
            jobs.append(_job(journal, remote))
    except EmbatchError as error:
        return unasked(str(error), provider, now=now)
    finally:
        world.close_providers()
    return ProviderPage(
        now=now,
        providers=PROVIDERS,
        provider=provider,
        asked=True,
        took_s=time.monotonic() - begun,
        error=None,
        complete=complete,
        jobs=tuple(jobs),
        orphans=sum(job.orphan for job in jobs),
    )


def _job(journal: Journal, remote: RemoteJob) -> RemoteRow:
    orphan, owner = orphan_of(journal, remote), owner_of(journal, remote.label)
    known = owner if owner is not None and journal.find_run(owner[0]) is not None else None
    standing: Standing = "other" if owner is None else "ours"
    command = None
    if orphan is not None:
        standing = orphan.standing
        foreign = " --foreign" if standing == "foreign" else ""
        command = f"embatch orphans --cancel {remote.name}{foreign}"
    return RemoteRow(
        name=remote.name,
        label=remote.label,
        state=str(remote.state),
        done=remote.done,
        items=remote.items,
        model=remote.model,
        created_at=remote.created_at,
        standing=standing,
        orphan=orphan is not None,
        run=None if known is None else known[0],
        batch=None if known is None else known[1],
        command=command,
    )
