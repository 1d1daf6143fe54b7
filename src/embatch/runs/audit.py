"""Audits: rows of a batch are embedded again, by themselves, and the two vectors compared.

A good vector under the wrong key looks like any other. What tells is the text alone: embedded
again through the interactive API it must give nearly the same vector.
"""

import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embatch.errors import (
    AlignmentError,
    BudgetExceededError,
    InvalidRequestError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.journal.audits import AuditedRow, evidence, raise_audits
from embatch.journal.ledger import Change, settlement
from embatch.runs import cost
from embatch.runs.audit_notes import LEAST_COSINE, Audit, AuditNotes, Places
from embatch.runs.context import RunContext
from embatch.runs.gathered import let_go
from embatch.runs.outcomes import Now, Outcome, Stuck
from embatch.runs.probe import untrue_cost
from embatch.runs.sampling import RAISED_ROWS, drawn, rows_to_audit
from embatch.runs.step import Step
from embatch.runs.trouble import is_overdue
from embatch.runs.verify import Joined
from embatch.types.embedding import RowError
from embatch.types.results import Embedded, Matrix
from embatch.types.state import BatchEvent, BatchState

log = logging.getLogger("embatch.runs")

CALL_ROWS: Final = RAISED_ROWS
"""Rows that are reserved, embedded again and compared at once."""
CALLS: Final = 3
"""How often a call is made whose answer is not a sound vector for each text."""
CONVINCING_ROWS: Final = 10
"""So many rows that are all unlike show that the two APIs differ, and not two rows' places."""

MISALIGNED: Final = "misaligned"
"""Error code of a quarantined batch: some of its vectors stand on the wrong texts."""
UNLIKE: Final = "unlike"
"""Not one vector is as the interactive API gives it: another purchase would bring the same."""
UNKNOWN_KEYS: Final = "unknown_keys"
"""All its keys are there, and others that nobody sent."""
QUARANTINE_CODES: Final = frozenset({MISALIGNED, UNLIKE, UNKNOWN_KEYS})

UNPROVEN = RowError(
    code="unproven",
    message="the interactive API refuses the text, so that its vector cannot be proven",
)


def proven(step: Step, joined: Joined) -> Audit | Outcome:
    """The audit that a batch's results stood, or what became of the batch instead."""
    context, batch = step.context, step.batch
    if joined.unknown:
        complete = not any(error.code == "missing" for error in joined.errors.values())
        may_free = complete and context.provider.limits.billed and context.config.audit != "off"
        error = f"the results hold {joined.unknown} lines under keys that nobody sent"
        if may_free:
            return quarantine(step, error, code=UNKNOWN_KEYS)
        return quarantine(step, error, code=MISALIGNED, also=(_in_vain(step, joined),))
    if (failed := untrue_cost(step, joined.tokens)) is not None:
        return Stuck(error=f"batch {batch.number}: {failed}", hopeless=True)
    audit = audit_results(step, joined.vectors, joined.errors)
    if isinstance(audit, Stuck) or not len(audit.wrong):
        return audit
    return mismatched(step, audit, joined)


def unproven(step: Step, audit: Audit) -> list[int]:
    """Rows that cannot be proven, of a run in which every row must be."""
    return audit.refused.tolist() if step.context.config.audit == "all" else []


def keeps_stages(context: RunContext) -> bool:
    """Published batches of the run may have to be audited again, and bought again."""
    return context.provider.limits.billed and context.config.audit not in ("all", "off")


def audit_results(
    step: Step, matrix: Matrix, failed: Collection[int], *, least_rows: int = 0
) -> Audit | Stuck:
    """Audits results before they are written.

    `matrix` `[items, dims]` holds the results, `failed` the items without one. At least
    `least_rows` rows are compared, where audits are not off. Stuck when nothing can be compared.
    """
    context, batch = step.context, step.batch
    if not context.provider.limits.billed:
        return Audit()
    raised = max(least_rows, context.run().audit_rows or 0)
    wanted = rows_to_audit(context.config.audit, batch.items, raised=raised)
    places = drawn(f"{batch.label}/{wanted}", _good(batch.items, failed), wanted)
    if not len(places):
        return Audit()

    def vectors_at(some: Places) -> Matrix:
        found = matrix[some]
        let_go(matrix)
        return found

    try:
        audit = compare(step, places, vectors_at)
    except AlignmentError as error:
        return Stuck(error=f"batch {batch.number} cannot be audited: {error} {way_out(step)}")
    if not len(audit.places):
        return Stuck(
            error=f"batch {batch.number} cannot be audited: the interactive API refuses every "
            f"text of the sample. {way_out(step)}"
        )
    return audit


def _good(items: int, failed: Collection[int]) -> Places:
    """The items that are not among the failed ones."""
    return np.setdiff1d(np.arange(items), np.fromiter(failed, np.int64, len(failed)))


def way_out(step: Step) -> str:
    """What to type when a batch cannot be audited."""
    run = step.batch.run_id
    return f"Go on with: embatch resume {run}, or type the run's command again with --audit off"


def compare(step: Step, places: Places, vectors_at: Callable[[Places], Matrix]) -> Audit:
    """Embeds the items at `places` again and compares, call by call, until one is wrong.

    When the service makes it wait, what is compared by then is kept and not bought again.
    AlignmentError when it does not answer with a sound vector for each text.
    """
    stage, dims = step.stage(), step.context.space.dims
    notes = AuditNotes.of(step)

    def embed(texts: list[str]) -> Embedded:
        return cost.embed_now(step.context, texts, kind="audit", batch=step.batch)

    audit = notes.taken_up(places, vectors_at)
    try:
        while len(audit.looked_at) < len(places) and not len(audit.wrong):
            step.check_lease()
            done = len(audit.looked_at)
            some = places[done : done + CALL_ROWS]
            again = embedded_apart(embed, stage.take(some)["text"].to_pylist(), dims)
            known = some[again.taken]
            near = cosines(vectors_at(known), again.vectors[again.taken])
            audit = audit.and_also(Audit(places=known, cosines=near, refused=some[~again.taken]))
    except (RateLimitError, ProviderUnavailableError, BudgetExceededError):
        notes.put_down(audit, vectors_at)
        raise
    notes.path.unlink(missing_ok=True)
    step.context.checkpoint("batch.audited")
    return audit


def cosines(here: Matrix, there: Matrix) -> NDArray[np.float64]:
    """Cosine of each row of one matrix `[n, d]` with the same row of the other, `[n]`.

    0.0 where a row has no direction.
    """
    a, b = here.astype(np.float64), there.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products = np.einsum("ij,ij->i", a, b)
    found: NDArray[np.float64] = np.divide(
        products, lengths, out=np.zeros(len(a)), where=lengths > 0.0
    )
    return found


@dataclass(frozen=True, slots=True)
class Again:
    """What embedding texts once more gave."""

    vectors: Matrix
    """`[n, dims]`, zeros where the service took no text."""
    taken: NDArray[np.bool_]
    """Which texts the service took, `[n]`."""
    tokens: NDArray[np.int64]
    """Reported for each text, -1 where unknown."""


def embedded_apart(embed: Callable[[list[str]], Embedded], texts: list[str], dims: int) -> Again:
    """Embeds texts again so that one which the service refuses spoils no other.

    An answer that is not a sound vector for each text is asked for again, a few times, and then
    raises AlignmentError.
    """
    try:
        found = _sound(embed, texts)
        every = np.ones(len(texts), dtype=bool)
        return Again(found.vectors, every, found.tokens.astype(np.int64))
    except InvalidRequestError:
        if len(texts) == 1:
            none = np.zeros(1, dtype=bool)
            return Again(np.zeros((1, dims), np.float32), none, np.zeros(1, dtype=np.int64))
    middle = len(texts) // 2
    halves = [embedded_apart(embed, some, dims) for some in (texts[:middle], texts[middle:])]
    return Again(
        np.concatenate([half.vectors for half in halves]),
        np.concatenate([half.taken for half in halves]),
        np.concatenate([half.tokens for half in halves]),
    )


def _sound(embed: Callable[[list[str]], Embedded], texts: list[str]) -> Embedded:
    for _ in range(CALLS - 1):
        with suppress(AlignmentError):
            return embed(texts)
    return embed(texts)


def mismatched(step: Step, audit: Audit, joined: Joined) -> Outcome:
    """Quarantines a batch whose results did not stand the audit."""
    batch, context = step.batch, step.context
    code = MISALIGNED
    none_right = len(audit.wrong) == len(audit.places)
    if none_right and not context.journal.audits.has_passed(batch.run_id):
        left = np.setdiff1d(_good(batch.items, joined.errors), audit.looked_at)
        others = drawn(f"{batch.label}/unlike", left, RAISED_ROWS)
        audit = audit.and_also(compare(step, others, lambda some: joined.vectors[some]))
        if len(audit.wrong) == len(audit.places) >= CONVINCING_ROWS:
            code = UNLIKE
    in_vain = _in_vain(step, joined)
    return quarantine(step, sentence(audit), code=code, audit=audit, also=(in_vain,))


def _in_vain(step: Step, joined: Joined) -> Change:
    """Settles what results report that are of no use."""
    batch = step.batch
    spent = cost.spent_on(batch, joined.errors, tokens=joined.tokens, uncounted=joined.uncounted)
    wasted = replace(spent, rows_failed=spent.rows)
    return settlement(str(batch.label), wasted, now=step.context.now())


def sentence(audit: Audit) -> str:
    """What a mismatch says, without keys and texts."""
    return (
        f"{len(audit.wrong)} of {len(audit.places)} rows that were embedded again have another "
        f"vector (least cosine {audit.least:.3f}, asked {LEAST_COSINE})"
    )


def quarantine(
    step: Step,
    error: str,
    *,
    code: str,
    audit: Audit | None = None,
    also: tuple[Any, ...] = (),
    **facts: Any,
) -> Outcome:
    """Puts a batch aside with the evidence. A mismatch raises the run's audits from now on.

    Results that fitted once, of a batch whose part alone was lost, are read again instead, for
    days.
    """
    batch, context = step.batch, step.context
    fitted = batch.state is BatchState.READY and batch.part_sha256 is not None
    if fitted and code != UNKNOWN_KEYS and not is_overdue(step):
        raise ProviderUnavailableError(
            f"the results of batch {batch.number} are not as they were: {error}"
        )
    changes = [*also]
    if not also and batch.state is BatchState.READY:
        spent = cost.spent_in_vain(batch)
        changes.append(settlement(str(batch.label), spent, now=context.now()))
    if audit is not None:
        changes.append(evidence(audited_rows(step, audit)))
        if code == MISALIGNED:
            changes.append(raise_audits(batch.run_id, RAISED_ROWS))
    log.warning("batch %d of run %s is quarantined: %s", batch.number, batch.run_id, error)
    step.move(BatchEvent.MISALIGNED, error=error, error_code=code, also=changes, **facts)
    context.checkpoint("batch.quarantined")
    return Now()


def audited_rows(step: Step, audit: Audit) -> list[AuditedRow]:
    """Every row that is wrong, and of the others so many that a person sees the whole."""
    wrong = ~(audit.cosines >= LEAST_COSINE)
    shown = np.sort(np.argsort(~wrong, kind="stable")[: max(RAISED_ROWS, int(wrong.sum()))])
    items = step.stage().take(audit.places[shown]).select(["row", "key"])
    return [
        AuditedRow(
            run_id=step.batch.run_id,
            batch_id=step.batch.id,
            row=row,
            key=key,
            cosine=cosine,
            passed=cosine >= LEAST_COSINE,
            at=step.context.now(),
        )
        for row, key, cosine in zip(
            items["row"].to_pylist(),
            items["key"].to_pylist(),
            audit.cosines[shown].tolist(),
            strict=True,
        )
    ]
