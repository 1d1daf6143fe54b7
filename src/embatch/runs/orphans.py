"""Jobs at the provider that bear a label of embatch and that nobody waits for."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from embatch.errors import InvalidRequestError, NotFoundError
from embatch.journal.store import Journal
from embatch.providers.base import Provider, RemoteJob
from embatch.runs.twins import rows_billed
from embatch.types.state import FINAL_RUN_STATES

_LABEL: Final = re.compile(
    r"embatch:(?P<journal>[^:]+):(?P<run>[^:]+):(?P<batch>\d+):(?P<attempt>\d+):[0-9a-f]+"
)
Standing = Literal["forgotten", "late", "foreign"]
"""`forgotten`: this journal made it and does not know it any more. `late`: its batch has gone on
without it. `foreign`: another journal made it, which may be waiting for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orphan:
    """One such job."""

    name: str
    """The provider's name for it."""
    standing: Standing
    journal_id: str
    run_id: str
    batch: int
    """The batch's number in its run."""
    state: str
    done: bool
    rows: int | None
    created_at: float | None
    """Seconds since 1970."""
    label: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def find_orphans(journal: Journal, provider: Provider) -> Iterator[Orphan]:
    """Every such job in the provider's list, in its order."""
    for remote in provider.listed():
        orphan = orphan_of(journal, remote)
        if orphan is not None:
            yield orphan


def owner_of(journal: Journal, label: str) -> tuple[str, int] | None:
    """The run and the number of the batch whose label this is; None for other journals' labels."""
    parsed = _LABEL.fullmatch(label)
    if parsed is None or parsed["journal"] != journal.id:
        return None
    return parsed["run"], int(parsed["batch"])


def remove_orphan(
    journal: Journal, provider: Provider, name: str, *, foreign: bool, now: float
) -> bool:
    """Stops a job that nobody waits for, and removes it once it has ended.

    Gives whether it is gone; one that still runs is asked to stop. A job of another journal is
    touched only with `foreign`. InvalidRequestError for any other job.
    """
    remote, orphan = _named(journal, provider, name)
    if orphan.standing == "foreign" and not foreign:
        raise InvalidRequestError(
            f"{name} was made by journal {orphan.journal_id}, where a run may be waiting for it; "
            "if nobody is, type it with --foreign"
        )
    job = journal.jobs.find(remote.label)
    if not remote.done:
        provider.cancel(name)
        return False
    if job is not None:
        journal.ledger.settle_beside(job.label, rows_billed(provider, job, remote), now=now)
        journal.jobs.mark(job.label, "ended", now=now)
    provider.discard(name, None)
    return True


def batch_of_orphan(journal: Journal, provider: Provider, name: str) -> tuple[str, int]:
    """The run and the number of the batch that a job belongs to, when this journal knows them."""
    remote, orphan = _named(journal, provider, name)
    job = journal.jobs.find(remote.label)
    if job is None:
        raise InvalidRequestError(
            f"{name} belongs to batch {orphan.batch} of run {orphan.run_id}, which this journal "
            "does not know: name the journal that made it with --journal, or remove it with "
            f"embatch orphans --cancel {name}"
        )
    return job.run_id, orphan.batch


def _named(journal: Journal, provider: Provider, name: str) -> tuple[RemoteJob, Orphan]:
    for remote in provider.listed():
        if remote.name != name:
            continue
        orphan = orphan_of(journal, remote)
        if orphan is None:
            raise InvalidRequestError(
                f"{name} is no orphan: a run of this journal follows it, or embatch did not make it"
            )
        return remote, orphan
    raise NotFoundError(f"the provider lists no job {name}: embatch orphans shows those there are")


def orphan_of(journal: Journal, remote: RemoteJob) -> Orphan | None:
    """What a listed job is when nobody waits for it; None when a run of this journal follows it,
    or embatch did not make it."""
    parsed = _LABEL.fullmatch(remote.label)
    if parsed is None:
        return None
    standing: Standing | None = "foreign"
    if parsed["journal"] == journal.id:
        standing = _standing(journal, remote.label)
    if standing is None:
        return None
    return Orphan(
        name=remote.name,
        standing=standing,
        journal_id=parsed["journal"],
        run_id=parsed["run"],
        batch=int(parsed["batch"]),
        state=str(remote.state),
        done=remote.done,
        rows=remote.items,
        created_at=remote.created_at,
        label=remote.label,
    )


def _standing(journal: Journal, label: str) -> Standing | None:
    """What a job of this journal is to it; None for one that its run sees to."""
    job = journal.jobs.find(label)
    if job is None:
        return "forgotten"
    if job.state in ("absent", "stray"):
        return "late"
    run, batch = journal.get_run(job.run_id), journal.batches.get(job.batch_id)
    beside = job.state == "running" and batch.label != label
    return "late" if beside and run.state in FINAL_RUN_STATES else None
