"""What becomes of a quarantined batch: freed by an audit, bought again, or left to a person."""

from dataclasses import replace

from embatch.datasets.published import remove_part
from embatch.errors import AlignmentError, NotFoundError, ProviderUnavailableError
from embatch.journal.audits import NO_PART
from embatch.runs.audit import (
    MISALIGNED,
    UNKNOWN_KEYS,
    UNLIKE,
    audit_results,
    audited_rows,
    sentence,
)
from embatch.runs.audit_notes import Audit
from embatch.runs.collect import (
    MAX_ATTEMPTS,
    child_batch,
    clear_away,
    write_proven,
)
from embatch.runs.cost import spent_on
from embatch.runs.gathered import gathered
from embatch.runs.good_rows import in_need
from embatch.runs.joining import read_results
from embatch.runs.outcomes import Done, Now, Outcome, Stuck
from embatch.runs.sampling import RAISED_ROWS
from embatch.runs.step import Step
from embatch.runs.trouble import is_overdue
from embatch.runs.verify import Joined
from embatch.types.state import BatchEvent, BatchState


def quarantined(step: Step) -> Outcome:
    """Buys the rows again under a new label, as often as any rows are tried."""
    batch, context = step.batch, step.context
    _remove_withdrawn(step)
    if batch.error_code == UNKNOWN_KEYS:
        return _freed(step)
    if batch.error_code == UNLIKE and batch.attempt:
        return Stuck(
            error=f"batch {batch.number} is quarantined: {batch.error}. Not one vector is as the "
            "interactive API gives it, so another purchase would bring the same: look at model, "
            f"--dims and --task-type, and at embatch failures {batch.run_id} --quarantined; then "
            f"buy it once more with embatch resume {batch.run_id}, or type the run's command again "
            "with --audit off if the batches are right"
        )
    if batch.attempt >= MAX_ATTEMPTS:
        return Stuck(
            error=f"batch {batch.number} is quarantined, for the {batch.attempt}th time: "
            f"{batch.error}. Look at embatch failures {batch.run_id} --quarantined; buy it again "
            f"with embatch resume {batch.run_id}"
        )
    items = in_need(batch) if batch.part_good else range(step.stage().items)
    again = child_batch(step, items, attempt=batch.attempt)
    step.move(BatchEvent.GAVE_WAY, children=[again], finished_at=context.now(), **NO_PART)
    context.checkpoint("batch.rebought")
    clear_away(step)
    return Done()


def _remove_withdrawn(step: Step) -> None:
    """Removes what stands in the output of a part that was taken back, and of its copies.

    No copy that lies about these rows can be written meanwhile: they wait for this batch.
    """
    batch, context = step.batch, step.context
    doubtful = [batch.number]
    for other in context.journal.batches.walk(batch.run_id, states=[BatchState.PLANNED]):
        low = batch.row_max + 1 if other.owner_min is None else other.owner_min
        high = -1 if other.owner_max is None else other.owner_max
        if other.kind == "copies" and low <= batch.row_max and high >= batch.row_min:
            doubtful.append(other.number)
    for number in doubtful:
        remove_part(context.paths.parts, number)
    context.checkpoint("part.withdrawn")


def _freed(step: Step) -> Outcome:
    """Lets results go on that hold all their keys and others, if an audit finds nothing wrong."""
    batch, context = step.batch, step.context
    with gathered(context.paths.scratch, step.token, batch.items, context.space.dims) as matrix:
        try:
            joined = read_results(step, matrix)
        except (AlignmentError, NotFoundError) as error:
            step.note(error=str(error), error_code=MISALIGNED)
            return Now()
        except ProviderUnavailableError as error:
            if not is_overdue(step):
                raise
            step.note(error=f"never readable again: {error}", error_code=MISALIGNED)
            return Now()
        found = audit_results(step, matrix, joined.errors, least_rows=RAISED_ROWS)
        if isinstance(found, Stuck):
            return found
        if len(found.wrong) or not len(found.places):
            return _not_freed(step, joined, found)
        step = step.move(BatchEvent.AUDIT_PASSED, error=None, error_code=None, **found.facts)
        context.checkpoint("batch.freed")
        return write_proven(step, joined, found)


def _not_freed(step: Step, joined: Joined, audit: Audit) -> Outcome:
    """What was quarantined for its keys is wrong in its vectors too, or has none to compare."""
    batch, context = step.batch, step.context
    stood = batch.part_sha256 is not None  # its audit, once, and only the part was lost
    if stood and not is_overdue(step):
        raise ProviderUnavailableError(
            f"the results of batch {batch.number} are not as they were: read again"
        )
    spent = spent_on(batch, joined.errors, tokens=joined.tokens, uncounted=joined.uncounted)
    in_vain = replace(spent, rows_failed=spent.rows)
    context.journal.ledger.settle(str(batch.label), in_vain, now=context.now())
    if len(audit.wrong):
        rows = audited_rows(step, audit)
        context.journal.audits.record(batch.run_id, rows, audit_rows=RAISED_ROWS)
        step.note(error_code=MISALIGNED, error=sentence(audit))
    else:
        step.note(error_code=MISALIGNED)
    return Now()
