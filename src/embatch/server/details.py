"""What the server keeps with a batch beside the service's own columns: JSON in `details`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from embatch.server.wire_shapes import ShownBatch
from embatch.service.batch import StoredBatch
from embatch.types.state import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchDetails:
    """How a batch was called, and what became of its output."""

    display_name: str
    model: str
    """Name of the model as it was called."""
    file_name: str | None
    """`files/…` of the input; None for inline requests."""
    output: bool | None = None
    """The output is written, or there is none to write; None while that is to be done."""
    error: str | None = None
    """Why no output can be written."""
    plan: Mapping[str, Any] | None = None
    """What a simulated day has in store for the batch."""

    @classmethod
    def parse(cls, details: str) -> "BatchDetails":
        """What `build` wrote."""
        values: dict[str, Any] = orjson.loads(details)
        return cls(**values)

    def build(self) -> str:
        """As JSON."""
        values = asdict(self)
        if self.plan is None:
            del values["plan"]
        return orjson.dumps(values).decode()


def shown_batch(batch: StoredBatch) -> ShownBatch:
    """A batch as callers see it: it has ended when its output is there, not before."""
    details = BatchDetails.parse(batch.details)
    finished = batch.done and details.output is not None
    state = batch.state
    if batch.done and not finished:
        state = JobState.PROCESSING
    elif details.error is not None:
        state = JobState.FAILED
    return ShownBatch(
        id=batch.label,
        model=details.model,
        display_name=details.display_name,
        priority=batch.priority,
        file_name=details.file_name,
        state=state,
        total=batch.items,
        succeeded=batch.progress.succeeded,
        failed=batch.failed,
        output=bool(details.output),
        error=details.error or batch.error,
        created_at=batch.created_at,
        updated_at=batch.updated_at,
        ended_at=batch.ended_at if finished else None,
        plan=details.plan,
    )
