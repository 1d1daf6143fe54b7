"""How long jobs of a run take, and what of it is not sent yet: what a deadline is held against."""

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from embatch.journal.schema import batches_table
from embatch.types.state import BatchState

LATEST = 50
"""Finished jobs whose durations count."""
_UNSENT = (BatchState.PLANNED, BatchState.UPLOADING, BatchState.UPLOADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The jobs of a run at one moment."""

    durations: tuple[float, ...]
    """Seconds from submission to part, of the jobs that ended last."""
    since: tuple[float, ...]
    """When those were submitted that are under way, seconds since 1970."""
    unsent_rows: int
    """Rows to embed in batches that are not submitted."""
    unsent_bound: int
    """The most tokens that these can be billed."""


def read_outlook(connection: Connection, run_id: str) -> Outlook:
    """The run's jobs as they stand."""
    table = batches_table.c
    remote = (table.run_id == run_id, table.remote_name.is_not(None))
    durations = connection.execute(
        select(table.finished_at - table.submitted_at)
        .where(
            *remote,
            table.state == BatchState.PUBLISHED.value,
            table.submitted_at.is_not(None),
            table.finished_at.is_not(None),
        )
        # A published batch's next_at is the moment of its last step; the index has it in order.
        .order_by(table.next_at.desc())
        .limit(LATEST)
    ).scalars()
    since = connection.execute(
        select(table.submitted_at).where(*remote, table.state == BatchState.SUBMITTED.value)
    ).scalars()
    unsent, bound = connection.execute(
        select(
            func.coalesce(func.sum(table["items"]), 0),
            func.coalesce(func.sum(table.tokens_bound), 0),
        ).where(
            table.run_id == run_id,
            table.kind == "embed",
            table.state.in_([state.value for state in _UNSENT]),
        )
    ).one()
    return Outlook(
        durations=tuple(float(seconds) for seconds in durations),
        since=tuple(float(moment) for moment in since if moment is not None),
        unsent_rows=int(unsent),
        unsent_bound=int(bound),
    )
