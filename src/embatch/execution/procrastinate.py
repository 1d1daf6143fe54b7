"""Jobs in Procrastinate, on the journal's PostgreSQL: its tables, how jobs get in, and stay single.

Procrastinate's tables stand beside the journal's and are made once, under a lock. Queues and tasks
bear names of our own, so that another application may use Procrastinate in the same database.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.schema import SchemaManager
from psycopg.conninfo import conninfo_to_dict

from embatch.errors import ConfigError, JournalError
from embatch.execution.jobs import Job
from embatch.journal.connecting import network_settings
from embatch.journal.refusals import is_refused

log = logging.getLogger("embatch.execution")

STALLED_S: Final = 30.0
"""A job whose worker has shown no life for so long is not waited for."""
MANY: Final = 4
"""From so many jobs on, what waits already is asked for at once."""
_LOCK: Final = 0x656D6274_6A6F6273
"""Of PostgreSQL's advisory locks, held while the tables are made."""
_TABLES: Final = "SELECT to_regclass('procrastinate_jobs')"
_HASTEN: Final = """
WITH moved AS (
    UPDATE procrastinate_jobs SET scheduled_at = %(at)s
    WHERE queueing_lock = %(lock)s AND status = 'todo' AND scheduled_at > coalesce(%(at)s, now())
    RETURNING id, queue_name
)
SELECT pg_notify(
    'procrastinate_queue_v1#' || queue_name,
    json_build_object('type', 'job_inserted', 'job_id', id)::text
) FROM moved WHERE %(at)s::timestamptz IS NULL
"""
_WAITING: Final = """
SELECT queueing_lock, extract(epoch FROM scheduled_at)::float8 AS at FROM procrastinate_jobs
WHERE status = 'todo' AND queueing_lock = ANY(%(locks)s)
"""


def require_postgres(url: str) -> str:
    """The journal's URL as libpq takes it. Raises ConfigError for a journal that is a file."""
    scheme, _, rest = url.partition("://")
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise ConfigError(
            "--execution workers needs a journal on PostgreSQL, which all machines reach: give "
            "--journal postgresql://user:password@host/database, or set EMBATCH_JOURNAL_URL; "
            "leave --execution out to work on this machine"
        )
    return f"postgresql://{rest}"


def connection_settings(url: str) -> dict[str, Any]:
    """What the connections of jobs are told, beside what the journal's URL gives."""
    given = conninfo_to_dict(require_postgres(url))
    return network_settings({name: str(value) for name, value in given.items()})


def prepare(url: str) -> None:
    """Makes Procrastinate's tables unless they are there. Raises JournalError when it cannot."""
    try:
        with psycopg.connect(require_postgres(url), **connection_settings(url)) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            found = connection.execute(_TABLES).fetchone()
            if found is None or found[0] is None:
                connection.execute(SchemaManager.get_schema())
    except psycopg.Error as error:
        raise away(error, "the tables of jobs cannot be made") from error


def away(error: Exception, what: str) -> JournalError:
    """The error as the journal's: its database is away, or refuses."""
    cause = error.__cause__ if isinstance(error, ConnectorException) else error
    diagnosis = getattr(cause, "diag", None)
    said = getattr(diagnosis, "message_primary", None) or " ".join(str(cause or error).split())
    refusal = JournalError(f"{what}: {said or type(cause or error).__name__}")
    refusal.transient = isinstance(cause, psycopg.OperationalError) and not is_refused(said)
    return refusal


def open_app(url: str, *, connections: int) -> App:
    """An application for a worker's event loop; open it with `open_async`."""
    return App(
        connector=PsycopgConnector(
            conninfo=require_postgres(url),
            min_size=1,
            max_size=connections,
            kwargs={**connection_settings(url), "application_name": "embatch worker"},
        )
    )


class JobQueue:
    """Puts jobs into their queues, where of each kind one alone waits, that which is due first."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def put(self, jobs: Sequence[Job], *, now: float) -> None:
        """Sees to it that every one of `jobs` waits, and is due no later than it says."""
        for job in await self._missing(jobs) if len(jobs) >= MANY else jobs:
            at = _moment(job, now)
            try:
                await self._configured(job, at).defer_async(**_arguments(job))
            except AlreadyEnqueued:
                await self._app.connector.execute_query_async(_HASTEN, lock=job.lock, at=at)

    async def _missing(self, jobs: Sequence[Job]) -> Iterable[Job]:
        """Those of `jobs` that do not wait yet, or are due too late."""
        rows = await self._app.connector.execute_query_all_async(
            _WAITING, locks=[job.lock for job in jobs]
        )
        waiting = {row["queueing_lock"]: row["at"] or 0.0 for row in rows}
        return [job for job in jobs if waiting.get(job.lock, _NEVER) > (job.at or 0.0)]

    def _configured(self, job: Job, at: datetime | None) -> Any:
        return self._app.configure_task(_task(job), **_options(job, at))


def put_once(url: str, jobs: Iterable[Job], *, now: float) -> None:
    """Puts jobs into their queues from a process that is no worker. Raises JournalError."""
    prepare(url)
    app = App(
        connector=SyncPsycopgConnector(
            conninfo=require_postgres(url), min_size=1, max_size=1, kwargs=connection_settings(url)
        )
    )
    try:
        with app.open():
            for job in jobs:
                at = _moment(job, now)
                try:
                    app.configure_task(_task(job), **_options(job, at)).defer(**_arguments(job))
                except AlreadyEnqueued:
                    app.connector.execute_query(_HASTEN, lock=job.lock, at=at)
    except (ConnectorException, psycopg.Error) as error:
        raise away(error, "the journal takes no job") from error


_NEVER: Final = float("inf")


def queue_name(queue: str) -> str:
    """What Procrastinate calls a queue."""
    return f"embatch_{queue}"


def _task(job: Job) -> str:
    return f"embatch.{job.task}"


def _options(job: Job, at: datetime | None) -> dict[str, Any]:
    return {
        "queue": queue_name(job.queue),
        "queueing_lock": job.lock,
        "priority": job.priority,
        "schedule_at": at,
    }


def _arguments(job: Job) -> dict[str, Any]:
    batch = {} if job.batch_id is None else {"batch_id": job.batch_id}
    return {"run_id": job.run_id, **batch}


def _moment(job: Job, now: float) -> datetime | None:
    """When the job is due; None for at once."""
    return None if job.at is None or job.at <= now else datetime.fromtimestamp(job.at, UTC)
