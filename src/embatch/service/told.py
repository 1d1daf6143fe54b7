"""The log's line of each change of a batch's state: counts and ids, nothing of its caller's."""

import logging
from typing import Final

from embatch.service.batch import StoredBatch

log = logging.getLogger("embatch.service")

_WORDS: Final = {"pending": "created", "processing": "begun"}


def tell(batch: StoredBatch, before: str | None) -> None:
    """Writes that a batch has come from the state `before` into its present one."""
    state = batch.state.value
    fields = {
        "event": f"batch_{_WORDS.get(state, state)}",
        "service_batch": batch.id,
        "from": before,
        "to": state,
        "rows": batch.items,
        "succeeded": batch.rows_done - batch.failed,
        "failed": batch.failed,
    }
    log.info(
        "batch %s: %s, %d of %d rows done, %d failed",
        *(batch.id, state, batch.rows_done, batch.items, batch.failed),
        extra={"fields": {name: value for name, value in fields.items() if value is not None}},
    )
