"""From a finished remote batch to a published part: results, join by key, verify, Parquet."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from embatch.datasets.column_types import block_name
from embatch.datasets.parts import FinishedPart, PartWriter
from embatch.datasets.published import publish_part, remove_part
from embatch.datasets.stage import StageFile, write_stage
from embatch.datasets.vector_file import group_rows
from embatch.errors import (
    AlignmentError,
    EmbatchError,
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.journal.ledger import Change, settlement
from embatch.journal.purchases import Bought
from embatch.journal.records import Failure, NewBatch
from embatch.runs.audit import (
    MISALIGNED,
    UNPROVEN,
    keeps_stages,
    proven,
    quarantine,
    unproven,
)
from embatch.runs.audit_notes import Audit
from embatch.runs.cost import bought_in_vain, bought_whole, bounds_of, prompt_bytes, spent_on
from embatch.runs.gathered import gathered, let_go
from embatch.runs.good_rows import are_as_before, packed
from embatch.runs.joining import read_results
from embatch.runs.outcomes import Done, Now, Outcome, Stuck
from embatch.runs.outputs import require_owned
from embatch.runs.pace import RETRY_DELAY_S
from embatch.runs.step import Step
from embatch.runs.tokens import calibration_name
from embatch.runs.trouble import QUOTA, lost, smaller, unreadable
from embatch.runs.verify import Joined
from embatch.types.embedding import RowError
from embatch.types.results import Matrix
from embatch.types.state import BatchEvent

log = logging.getLogger("embatch.runs")

MAX_ATTEMPTS = 5
"""How often a row with a transient error is sent, before its failure counts as permanent."""

TOO_LONG = RowError(code="too_long", message="the text is longer than the model reads")


def collect_results(step: Step) -> Outcome:
    """Reads the results, joins and checks them, and writes the part under a hidden name."""
    batch, context = step.batch, step.context
    with gathered(context.paths.scratch, step.token, batch.items, context.space.dims) as matrix:
        try:
            joined = read_results(step, matrix)
        except NotFoundError:
            return lost(step)
        except ProviderUnavailableError as error:
            if batch.part_sha256 is not None and context.provider.limits.billed:
                return quarantine(step, f"they cannot be read again: {error}", code=MISALIGNED)
            return unreadable(step, error)
        except AlignmentError as error:
            return quarantine(step, str(error), code=MISALIGNED)
        errors = joined.errors
        spent = _spent(step, joined)
        if len(errors) == batch.items and all(one.code == "wrong_dims" for one in errors.values()):
            # Another try would buy the same: the run asks for what the model does not give.
            context.journal.ledger.settle(str(batch.label), spent, now=context.now())
            return Stuck(
                error=f"batch {batch.number} was computed in vain: {errors[0].message} in every "
                "row; forget this run and start a new output with the --dims that the model gives",
                hopeless=True,
            )
        context.checkpoint("results.joined")
        if context.config.max_cost_usd is not None and not spent.estimated:
            # What was kept for it and is not needed may be what its audit wants.
            context.journal.ledger.tighten(str(batch.label), spent.tokens, now=context.now())
        found = proven(step, joined)
        return write_proven(step, joined, found) if isinstance(found, Audit) else found


def write_proven(step: Step, joined: Joined, audit: Audit) -> Outcome:
    """Writes results that stood their audit."""
    errors = joined.errors | dict.fromkeys(unproven(step, audit), UNPROVEN)
    if step.context.config.too_long == "fail":
        errors |= dict.fromkeys(np.flatnonzero(joined.truncated).tolist(), TOO_LONG)
    return finish_part(
        step,
        step.stage(),
        joined.vectors,
        errors,
        _counted(joined, errors) | audit.facts,
        also=[*_settlements(step, joined), *_calibrations(step, joined)],
    )


def _spent(step: Step, joined: Joined) -> Bought:
    """What the results say that the job cost."""
    return spent_on(step.batch, joined.errors, tokens=joined.tokens, uncounted=joined.uncounted)


def _settlements(step: Step, joined: Joined) -> list[Change]:
    return [settlement(str(step.batch.label), _spent(step, joined), now=step.context.now())]


def _calibrations(step: Step, joined: Joined) -> list[Change]:
    """Tokens a byte of these texts, where the service has counted every one of them whole."""
    batch, context = step.batch, step.context
    whole = not joined.errors and not joined.uncounted and not joined.truncated.any()
    if not (context.provider.limits.billed and whole and joined.tokens):
        return []
    sent_bytes = batch.text_bytes + batch.items * prompt_bytes(context.space)
    name, now = calibration_name(context.space), context.now()
    counting = context.journal.calibrations.counting
    return [counting(name, text_bytes=sent_bytes, tokens=joined.tokens, now=now)]


def _counted(joined: Joined, errors: dict[int, RowError]) -> dict[str, int]:
    truncated = joined.truncated.copy()
    truncated[list(errors)] = False
    return {
        "tokens": joined.tokens,
        "truncated": int(truncated.sum()),
        "repeated": joined.repeated,
    }


def finish_part(
    step: Step,
    stage: StageFile,
    matrix: Matrix,
    errors: dict[int, RowError],
    counts: Mapping[str, Any],
    *,
    also: Sequence[Change] = (),
) -> Outcome:
    """Writes the good rows to a part, keeps the texts of the others, and journals both.

    `also` is done in the transaction that journals them.
    """
    batch, context = step.batch, step.context
    good = np.ones(batch.items, dtype=bool)
    good[list(errors)] = False
    facts: dict[str, Any] = {
        **counts,
        "succeeded": int(good.sum()),
        "failed": len(errors),
        "also": also,
    }
    if not are_as_before(batch, good):
        return quarantine(step, "other rows of them have a vector", code=MISALIGNED)
    if batch.part_sha256 is None:
        facts |= _others(step, errors)
    # A part that was lost after it was journaled has its children and failures entered already.
    if not good.any():
        context.checkpoint("part.none")
        remove_part(context.paths.parts, batch.number)
        clear_away(step.move(BatchEvent.GAVE_WAY, finished_at=context.now(), **facts))
        return Done()
    part = write_part(step, stage, matrix, good)
    context.checkpoint("part.written")
    step.move(BatchEvent.COLLECTED, part_good=packed(good), **facts, **_part_facts(part))
    context.checkpoint("part.journaled")
    return Now()


def _others(step: Step, errors: Mapping[int, RowError]) -> dict[str, Any]:
    """The rows that have no vector: as a child batch to try again, and as failures."""
    no_room = step.batch.error_code == QUOTA  # the service ended the job for it: no attempt is lost
    attempt = step.batch.attempt - no_room
    again = sorted(i for i, error in errors.items() if error.transient and attempt < MAX_ATTEMPTS)
    for_good = {i: error for i, error in errors.items() if i not in set(again)}
    in_vain = bought_in_vain(step.batch, errors)
    return {
        "children": [
            child_batch(step, piece, attempt=attempt, in_vain=in_vain)
            for piece in smaller(step.batch, again)
            if piece
        ],
        "failures": keep_failures(step, for_good),
    }


def _part_facts(part: FinishedPart) -> dict[str, Any]:
    return {
        "part_temp": part.temp_name,
        "part_sha256": part.sha256,
        "part_bytes": part.size_bytes,
        "part_rows": part.rows,
        "part_row_min": part.row_min,
        "part_row_max": part.row_max,
    }


def write_part(step: Step, stage: StageFile, matrix: Matrix, good: Any) -> FinishedPart:
    """Writes the rows of `stage` that are `good`, with their vectors, to a hidden file."""
    context = step.context
    columns = ["key", "row", "text_sha256", *map(block_name, context.config.keep)]
    with PartWriter(
        context.paths.parts,
        number=step.batch.number,
        token=step.token,
        dims=context.space.dims,
    ) as writer:
        offset, piece = 0, group_rows(context.space.dims)
        matrix = matrix.view()
        matrix.flags.writeable = False  # so that the writer needs no copy
        for batch in stage.read():
            for start in range(0, batch.num_rows, piece):
                step.check_lease()
                rows = pa.Table.from_batches([batch.slice(start, piece)]).select(columns)
                here = slice(offset, offset + rows.num_rows)
                kept = good[here]
                if kept.all():
                    writer.write(rows, matrix[here])
                elif kept.any():
                    writer.write(rows.filter(pa.array(kept)), matrix[here][kept])
                let_go(matrix)
                offset += rows.num_rows
        return writer.finish()


def child_batch(
    step: Step,
    indices: Sequence[int],
    *,
    attempt: int,
    in_vain: Mapping[int, str] | None = None,
) -> NewBatch:
    """A batch of some of this batch's items, staged anew; due later the more attempts it had.

    `in_vain` tells which items this batch's job was billed for without use, and why; None: all
    of them, if it was billed.
    """
    items = step.stage().take(indices)
    name = f"stage/{step.batch.number:05d}-{indices[0]}-{step.token}.arrow"
    write_stage(step.context.paths.work / name, items)
    rows = items["row"].to_numpy()
    limits = step.context.provider.limits
    most, largest = bounds_of(items, step.context.space, limits.max_item_tokens)
    bought, why = _bought_before(step, indices, in_vain)
    return NewBatch(
        kind=step.batch.kind,
        items=len(indices),
        row_min=int(rows.min()),
        row_max=int(rows.max()),
        stage=name,
        tokens_estimated=step.batch.tokens_estimated * len(indices) // step.batch.items,
        tokens_bound=most,
        item_bound=largest,
        bought=bought,
        bought_why=why,
        text_bytes=step.batch.text_bytes * len(indices) // step.batch.items,
        owner_min=step.batch.owner_min,
        owner_max=step.batch.owner_max,
        parent_id=step.batch.id,
        attempt=attempt,
        delay_s=RETRY_DELAY_S * (2**attempt - 1),
    )


def _bought_before(
    step: Step, indices: Sequence[int], in_vain: Mapping[int, str] | None
) -> tuple[int, str | None]:
    """How many of the items an earlier job was billed for, and what became of them there."""
    batch = step.batch
    whole = bought_whole(step) if in_vain is None else None
    if whole is not None:
        rows, why = whole  # rows that the service refused were not billed
        return min(rows, len(indices)), why
    here = [in_vain[index] for index in indices if index in in_vain] if in_vain else []
    earlier = min(batch.bought, len(indices))  # which they are is not known: never too few
    if len(here) >= earlier:
        return len(here), here[0] if here else None
    return earlier, batch.bought_why


def keep_failures(step: Step, errors: Mapping[int, RowError]) -> list[Failure]:
    """Failures of these items; their texts are kept for `retry` until `forget`."""
    if not errors:
        return []
    indices = sorted(errors)
    items = step.stage().take(indices)
    name = f"failed/{step.batch.number:05d}-{step.token}.arrow"
    write_stage(step.context.paths.work / name, items)
    return [
        Failure(
            row=row,
            key=key,
            code=errors[index].code,
            message=errors[index].message,
            attempts=max(1, step.batch.attempt),
            batch_id=step.batch.id,
            kept=True,
            kept_in=name,
        )
        for index, row, key in zip(
            indices, items["row"].to_pylist(), items["key"].to_pylist(), strict=True
        )
    ]


def publish(step: Step) -> Outcome:
    """Gives the part its public name and clears away what led to it."""
    batch, context = step.batch, step.context
    require_owned(context.paths, context.journal.id)
    try:
        name = publish_part(context.paths.parts, str(batch.part_temp), batch.number)
    except NotFoundError:
        step.move(BatchEvent.PART_LOST, part_temp=None)
        return Now()
    context.checkpoint("part.renamed")
    step.move(BatchEvent.PUBLISHED, part=name, finished_at=context.now())
    context.checkpoint("part.published")
    clear_away(step, leave_stage=keeps_stages(context))
    return Done()


def clear_away(step: Step, *, leave_remote: bool = False, leave_stage: bool = False) -> None:
    """Removes the remote batch and the stage, now that the part is safe.

    What the run keeps at the provider stays there, and with `leave_remote` a job that goes on;
    with `leave_stage` the texts stay for as long as they may have to be audited again.
    """
    batch, context = step.batch, step.context
    if batch.kind == "embed" and not (leave_remote or context.keeps_remote):
        _discard(step)
    if not leave_stage:
        step.stage().remove()
    context.checkpoint("batch.cleared")


def _discard(step: Step) -> None:
    """Removes what the provider holds. What it does not let go is tried again at the run's end."""
    batch, context = step.batch, step.context
    try:
        context.provider.discard(batch.remote_name, batch.input_ref)
    except EmbatchError as error:
        log.info("batch %d stays at the provider for now: %s", batch.number, error)
    else:
        step.note(cleared_at=context.now())
