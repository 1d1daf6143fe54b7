"""The end of a run: failures.jsonl, the single file, the manifest, the last change of state."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from embatch.datasets.assemble import assemble_npy, assemble_parquet
from embatch.datasets.manifest import Manifest, PartEntry
from embatch.datasets.output import OutputPaths, write_failures
from embatch.datasets.published import forget_part
from embatch.datasets.vector_file import part_schema
from embatch.errors import (
    EmbatchError,
    ProviderUnavailableError,
    RateLimitError,
    TransitionRefusedError,
)
from embatch.journal.records import BatchRecord
from embatch.journal.store import Journal
from embatch.runs.accounts import read_accounts
from embatch.runs.context import RunContext
from embatch.runs.outcomes import After, Done, Outcome
from embatch.runs.outputs import require_journal, require_owned
from embatch.runs.planning import open_run_source
from embatch.runs.twins import watch
from embatch.storage.places import Place, remove_tree
from embatch.types.state import FINAL_BATCH_STATES, FINAL_RUN_STATES, BatchState, RunEvent, RunState

log = logging.getLogger("embatch.runs")

LOOK_AGAIN_S = 5.0
"""Until a finish that has to wait is tried again."""
SCRATCH = ("stage", "audit", "digest-*", "spool-*")
"""Folders below the work folder that a finished run does not need."""


def finish_run(context: RunContext, token: str) -> Outcome:
    """Brings the output into its last form and closes the run, under its planning lease.

    Before, it looks a last time for jobs that turn up late, and waits a while for the end of
    those that are stopped. May be redone after a crash.
    """
    try:
        beside = watch(context)
    except (ProviderUnavailableError, RateLimitError) as error:
        wait = max(LOOK_AGAIN_S, error.retry_after_s or 0.0)
        return After(seconds=wait, reason="unavailable", detail=str(error))
    if beside and context.now() < beside[-1] + context.provider.limits.settle_s:
        return After(seconds=LOOK_AGAIN_S, reason="unavailable", detail="a late job is stopped")
    if beside:
        log.warning(
            "run %s: %d jobs that were stopped have not ended: embatch orphans shows them",
            context.run_id,
            len(beside),
        )
    _finish(context, token)
    return Done()


def _finish(context: RunContext, token: str) -> None:
    run, journal, paths = context.run(), context.journal, context.paths
    require_owned(paths, journal.id)
    counts = journal.batches.counts(run.id)
    write_failures(paths.failures, _failure_lines(context))
    context.checkpoint("finish.failures")
    parts = _part_entries(context)
    _remove_strays(context, parts)
    if paths.single_file is not None:
        _assemble(context, paths.single_file, parts)
    context.checkpoint("finish.assembled")
    ended_at, cost = context.now(), read_accounts(journal, run, counts).to_json()

    def completed(manifest: Manifest) -> Manifest:
        require_journal(paths, manifest, journal.id)
        return manifest.completed(
            finished_at=ended_at,
            counts={
                "rows": run.rows or 0,
                "written": counts.written,
                "failed": counts.failed,
                "copies": counts.copies,
                "reused": counts.reused,
                "truncated": counts.truncated,
                "tokens": counts.tokens,
            },
            parts=parts,
            cost=cost,
        )

    Manifest.change(paths.manifest, completed)
    context.checkpoint("finish.manifest")
    _clear_remains(context)
    event = RunEvent.COMPLETED_WITH_FAILURES if counts.failed else RunEvent.COMPLETED
    journal.transition_run(
        run.id,
        event,
        expected=RunState.RUNNING,
        now=context.now(),
        token=token,
        finished_at=context.now(),
    )
    context.checkpoint("finish.journaled")
    if not counts.failed:
        tidy_output(paths)


def _clear_remains(context: RunContext) -> None:
    """Removes what steps left that died before their end: remote batches, stages, half parts."""
    watched = {job.label for job in context.journal.jobs.watched(context.run_id)}
    for batch in context.journal.batches.walk(context.run_id, states=FINAL_BATCH_STATES):
        left = batch.label is not None and batch.cleared_at is None
        if left and batch.label not in watched and not context.keeps_remote:
            _discard(context, batch)
    for half in context.paths.parts.glob(".part-*.tmp"):
        half.unlink(missing_ok=True)
    clear_work(context.paths, everything=False)


def _discard(context: RunContext, batch: BatchRecord) -> None:
    """Removes what the provider holds of a batch. A whole run does not fail for what is left."""
    try:
        context.provider.discard(batch.remote_name, batch.input_ref)
    except EmbatchError as error:
        log.warning(
            "batch %d stays at the provider (embatch forget %s removes it): %s",
            batch.number,
            batch.run_id,
            error,
        )


def reopen_manifest(paths: OutputPaths, journal_id: str) -> None:
    """Says of a complete output that work on it goes on."""

    def reopened(manifest: Manifest) -> Manifest:
        require_journal(paths, manifest, journal_id)
        return replace(manifest, finished_at=None, parts=())

    Manifest.change(paths.manifest, reopened)


def tidy_output(paths: OutputPaths) -> None:
    """Leaves of a complete output what its user asked for. May be redone."""
    clear_work(paths, everything=True)
    if paths.single_file is not None:
        for part in paths.parts.glob("part-*.parquet"):
            forget_part(part)


def clear_work(paths: OutputPaths, *, everything: bool) -> None:
    """Removes what only a running run needs; `everything` also the texts kept for `retry`."""
    for place in dict.fromkeys((paths.work, paths.scratch)):
        for pattern in SCRATCH:
            for folder in place.glob(pattern):
                remove_tree(folder)
        if everything:
            remove_tree(place)


def fail_run(
    journal: Journal, run_id: str, error: str, *, now: float, code: str = "EmbatchError"
) -> None:
    """Stops a run with its error. A run that has ended or is stopped already is left alone."""
    run = journal.get_run(run_id)
    if run.state in FINAL_RUN_STATES:
        return
    try:
        journal.transition_run(
            run_id,
            RunEvent.FAILED,
            expected=run.state,
            now=now,
            error_code=code,
            error=error,
            finished_at=now,
        )
    except TransitionRefusedError:
        return  # another process closed the run in this instant


def _failure_lines(context: RunContext) -> Iterator[dict[str, Any]]:
    for failure in context.journal.failures(context.run_id):
        yield {
            "key": failure.key,
            "row": failure.row,
            "code": failure.code,
            "message": failure.message,
            "attempts": failure.attempts,
        }


def _part_entries(context: RunContext) -> list[PartEntry]:
    return [
        PartEntry(
            name=str(batch.part),
            rows=batch.part_rows or 0,
            sha256=str(batch.part_sha256),
            row_min=batch.part_row_min or 0,
            row_max=batch.part_row_max or 0,
        )
        for batch in context.journal.batches.walk(context.run_id, states=[BatchState.PUBLISHED])
    ]


def _remove_strays(context: RunContext, parts: list[PartEntry]) -> None:
    """Removes parts that were taken back by a process that died before it had removed them."""
    known = {part.name for part in parts}
    for path in context.paths.parts.glob("part-*.parquet"):
        if path.name not in known:
            forget_part(path)


def _assemble(context: RunContext, single_file: Place, parts: list[PartEntry]) -> None:
    paths = context.paths
    schema = None
    if not parts:  # every row failed: the file has its columns and no rows
        schema = part_schema(context.space.dims, open_run_source(context).schema)
    files = [paths.parts / part.name for part in parts]
    if paths.keys_file is not None:
        assemble_npy(files, single_file, paths.keys_file, schema=schema)
    else:
        assemble_parquet(files, single_file, schema=schema)
