"""What a person may ask of a run that stands: cancel it, try its failures again, forget it."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from embatch.datasets.output import OutputPaths
from embatch.datasets.ownership import remove_lock
from embatch.datasets.stage import StageFile, write_stage
from embatch.errors import InvalidRequestError, NotFoundError, StorageError
from embatch.hooks import no_checkpoint
from embatch.journal.jobs import JobMark
from embatch.journal.records import BatchRecord, Failure, NewBatch, RunRecord
from embatch.journal.store import Journal
from embatch.providers.base import Provider
from embatch.runs.config import RunConfig
from embatch.runs.cost import BILLED_WITHOUT_VECTOR, bounds_of
from embatch.runs.finish import clear_work, reopen_manifest
from embatch.storage.places import Place
from embatch.types.embedding import Space
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunEvent, RunState

_ANY_LENGTH: Final = 2**62
"""Of a text whose model's limit is not at hand: its bytes alone bound its tokens."""


def cancel_run(
    journal: Journal, run_id: str, open_provider: Callable[[], Provider], *, now: float
) -> None:
    """Stops a run: nothing new is sent, what is at the provider is asked to stop.

    What is written stays, and what is at the provider stays known: it may complete all the same,
    and is paid for then. `open_provider` is called only when something must be stopped there.
    """
    run = journal.get_run(run_id)
    if run.state in FINAL_RUN_STATES and run.state is not RunState.CANCELLED:
        raise InvalidRequestError(f"run {run.id} is {run.state}: there is nothing to cancel")
    if run.state is not RunState.CANCELLED:
        journal.transition_run(
            run.id, RunEvent.CANCELLED, expected=run.state, now=now, finished_at=now
        )
    remote = [
        batch
        for batch in journal.batches.walk(run.id, states=[BatchState.SUBMITTED])
        if batch.remote_name is not None and batch.cleared_at is None
    ]
    if remote:
        provider = open_provider()
        for batch in remote:
            mark: JobMark = "cancelled"
            try:
                provider.cancel(str(batch.remote_name))
            except NotFoundError:
                mark = "ended"  # by itself
            journal.jobs.mark(str(batch.label), mark, now=now)


def retry_run(
    journal: Journal,
    run_id: str,
    *,
    now: float,
    checkpoint: Callable[[str], None] = no_checkpoint,
) -> int:
    """Enters the failed rows whose texts were kept as new batches. Gives how many rows."""
    run = journal.get_run(run_id)
    if run.state is not RunState.COMPLETED_WITH_FAILURES:
        raise InvalidRequestError(
            f"run {run.id} is {run.state}: only a run that ended with failed rows can retry them"
        )
    work = OutputPaths.for_out(run.out).work
    kept = [failure for failure in journal.failures(run.id) if failure.kept_in is not None]
    kept.sort(key=lambda failure: (failure.kept_in, failure.row))
    batches: list[NewBatch] = []
    files: list[Place] = []
    for name, group in groupby(kept, key=lambda failure: str(failure.kept_in)):
        failures = list(group)
        origin = journal.batches.get(int(failures[0].batch_id or 0))
        rows = np.array([failure.row for failure in failures])
        items = pa.Table.from_batches(StageFile(work / name).read())
        wanted = items.filter(pa.array(np.isin(items["row"].to_numpy(), rows)))
        if wanted.num_rows != len(rows):
            raise StorageError(f"{work / name} keeps {wanted.num_rows} of {len(rows)} failed texts")
        stage = f"stage/retry-{origin.number:05d}-{secrets.token_hex(4)}.arrow"
        write_stage(work / stage, wanted)
        batches.append(_retry_batch(run, origin, failures, wanted, stage))
        files.append(work / name)
    if not batches:
        return 0
    checkpoint("retry.staged")
    journal.batches.add_retries(run.id, batches, rows=[failure.row for failure in kept], now=now)
    checkpoint("retry.journaled")
    reopen_manifest(OutputPaths.for_out(run.out), journal.id)
    for file in files:
        file.unlink(missing_ok=True)
    return len(kept)


def _retry_batch(
    run: RunRecord,
    origin: BatchRecord,
    failures: Sequence[Failure],
    items: pa.Table,
    stage: str,
) -> NewBatch:
    rows = items["row"].to_numpy()
    bound, largest = bounds_of(items, Space.from_json(dict(run.space)), _ANY_LENGTH)
    bought = [failure.code for failure in failures if failure.code in BILLED_WITHOUT_VECTOR]
    return NewBatch(
        kind=origin.kind,
        items=items.num_rows,
        row_min=int(rows.min()),
        row_max=int(rows.max()),
        owner_min=origin.owner_min,
        owner_max=origin.owner_max,
        stage=stage,
        tokens_estimated=origin.tokens_estimated * items.num_rows // origin.items,
        tokens_bound=bound,
        item_bound=largest,
        bought=len(bought),
        bought_why=bought[0] if bought else None,
        text_bytes=origin.text_bytes * items.num_rows // origin.items,
        parent_id=origin.id,
    )


def forget_run(journal: Journal, run_id: str, open_provider: Callable[[], Provider]) -> None:
    """Removes a run that has ended from the journal, and every text that it kept.

    `open_provider` is called only when something of the run may still lie at the provider.
    """
    run = journal.get_run(run_id)
    if run.state not in FINAL_RUN_STATES:
        raise InvalidRequestError(f"run {run.id} is {run.state}: cancel it first, then forget it")
    if not RunConfig.from_json(run.config).keep_remote:
        _discard_all(journal, run.id, open_provider)
    clear_work(OutputPaths.for_out(run.out), everything=True)
    journal.delete_run(run.id)


def _discard_all(journal: Journal, run_id: str, open_provider: Callable[[], Provider]) -> None:
    """Removes what the provider may still hold of a run; what goes on there is stopped."""
    watched = {job.label for job in journal.jobs.watched(run_id)}
    left = [
        batch
        for batch in journal.batches.walk(run_id)
        if batch.label is not None and batch.cleared_at is None
    ]
    if not (left or watched):
        return
    provider = open_provider()
    for remote in provider.listed() if watched else ():
        if remote.label in watched and not remote.done:
            provider.cancel(remote.name)
        elif remote.label in watched:
            provider.discard(remote.name, None)
    for batch in left:
        if batch.label not in watched:
            remote_name = batch.remote_name or _name_of(provider, str(batch.label))
            provider.discard(remote_name, batch.input_ref)


def _name_of(provider: Provider, label: str) -> str | None:
    """The remote batch of a submission whose answer was never journaled."""
    found = provider.find(label)
    return None if found is None else found.name


def take_back(journal: Journal, run_id: str) -> None:
    """Removes a run that failed before it had a batch, with all that it made of its output.

    The same output then takes the mended input as if nothing had been. A run with batches is
    left as it is.
    """
    run = journal.get_run(run_id)
    if run.state is not RunState.FAILED or any(True for _ in journal.batches.walk(run.id)):
        return
    paths = OutputPaths.for_out(run.out)
    clear_work(paths, everything=True)
    paths.manifest.unlink(missing_ok=True)
    remove_lock(paths.parts)
    if isinstance(paths.parts, Path):
        with suppress(OSError):  # a folder that holds other things stays
            paths.parts.rmdir()
    journal.delete_run(run.id)
