"""Published batches that a mismatch elsewhere made doubtful: audited again, or taken back."""

import logging

import numpy as np

from embatch.datasets.parts import part_rows, part_vectors_at
from embatch.datasets.stage import StageFile, write_stage
from embatch.errors import AlignmentError
from embatch.journal.audits import NO_PART, withdraw_copies
from embatch.runs.audit import MISALIGNED, compare, quarantine, sentence, way_out
from embatch.runs.audit_notes import Audit, Places
from embatch.runs.outcomes import Done, Outcome, Stuck
from embatch.runs.sampling import drawn
from embatch.runs.step import Step

log = logging.getLogger("embatch.runs")


def audit_published(step: Step) -> Outcome:
    """Audits a published batch with the larger sample; one that fails is taken back."""
    batch, context = step.batch, step.context
    part = context.paths.parts / str(batch.part)
    rows = part_rows(part)
    stage = step.stage()
    if not stage.exists():
        return _past_auditing(step, len(rows))
    sample = drawn(f"{batch.label}/again", rows, context.run().audit_rows or 0)
    staged = _stage_rows(stage)
    places = np.searchsorted(staged, sample)
    digests = stage.take(places)["text_sha256"].to_pylist()
    _, vectors = part_vectors_at(part, sample, digests)
    try:
        audit = compare(step, places, lambda some: vectors[np.searchsorted(places, some)])
    except AlignmentError as error:
        return Stuck(error=f"batch {batch.number} cannot be audited: {error} {way_out(step)}")
    if len(audit.wrong):
        return _take_back(step, stage, np.searchsorted(staged, rows), audit)
    least = min(one for one in (audit.least, batch.audit_least, 1.0) if one is not None)
    step.note(audited=len(sample), audit_least=least)
    return Done()


def _stage_rows(stage: StageFile) -> Places:
    rows: Places = np.concatenate([batch.column("row").to_numpy() for batch in stage.read()])
    return rows


def _past_auditing(step: Step, rows: int) -> Outcome:
    """Its texts are gone, with the end of its run or while audits were off: said, and journaled."""
    batch, context = step.batch, step.context
    log.warning(
        "batch %d of run %s was published before, and its texts are gone: it is not audited "
        "again; embatch audit %s reads them from the source",
        *(batch.number, batch.run_id, context.config.out),
    )
    context.journal.add_event(
        batch.run_id, "audit_impossible", now=context.now(), batch_id=batch.id
    )
    step.note(audited=rows)
    return Done()


def _take_back(step: Step, stage: StageFile, places: Places, audit: Audit) -> Outcome:
    """Quarantines a published batch: its rows are staged to be bought again, its part goes.

    Copies of its vectors wait for their owners anew.
    """
    batch, context = step.batch, step.context
    name = f"stage/{batch.number:05d}-again-{step.token}.arrow"
    write_stage(context.paths.work / name, stage.take(places))
    context.checkpoint("part.withdrawing")
    low, high = int(batch.part_row_min or 0), int(batch.part_row_max or 0)
    withdrawal = withdraw_copies(batch.run_id, low, high, now=context.now())
    outcome = quarantine(
        step,
        sentence(audit),
        code=MISALIGNED,
        audit=audit,
        also=(withdrawal,),
        stage=name,
        succeeded=0,
        audited=None,
        finished_at=None,
        **NO_PART,
    )
    stage.remove()
    return outcome
