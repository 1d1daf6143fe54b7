"""Batches that this machine's local service still holds, and that were embedded elsewhere."""

import logging

from embatch.errors import NotFoundError
from embatch.runs.context import RunContext
from embatch.types.state import BatchState

log = logging.getLogger("embatch.execution")

_DONE_WITH = (BatchState.PLANNED, BatchState.PUBLISHED, BatchState.SPLIT)
"""States in which nobody will ask for what the service computed."""


def discard_leftovers(context: RunContext) -> int:
    """Removes what a worker of this machine left in its service when it died, so that nothing is
    computed for nobody. Gives how many batches were removed.

    Batches of other journals and of `embatch serve` are not touched.
    """
    if context.provider.limits.billed:
        return 0
    ours = f"embatch:{context.journal.id}:{context.run_id}:"
    removed = 0
    for job in list(context.provider.listed()):
        label = job.label or ""
        if not label.startswith(ours) or _is_in_use(context, label):
            continue
        context.provider.discard(job.name, None)
        removed += 1
    if removed:
        log.info("run %s: %d batches left by a dead worker are removed", context.run_id, removed)
    return removed


def _is_in_use(context: RunContext, label: str) -> bool:
    number = label.split(":")[3]
    try:
        batch = context.journal.batches.numbered(context.run_id, int(number))
    except NotFoundError:
        return False
    return batch.label == label and batch.state not in _DONE_WITH
