"""A batch of the service as its callers see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from embatch.types.embedding import RowError
from embatch.types.results import BatchProgress, Matrix
from embatch.types.state import TERMINAL_JOB_STATES, JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBatch:
    """One batch at one moment. Rows are done in order: `rows_done` is also the next row."""

    id: str
    seq: int
    """Grows with every batch: the order of creation."""
    label: str
    """The caller's name for it, unique in the store."""
    details: str
    """Whatever the caller wants to find again, kept as it is."""
    model: str
    """Key of the model, as the scheduler's `engine_for` knows it."""
    dims: int
    prompt: str
    """Goes before each text."""
    priority: int
    """Higher goes first; among equals the oldest."""
    items: int
    state: JobState
    rows_done: int
    failed: int
    tokens: int
    """Tokens read so far, all rows together."""
    items_redone: int
    """Rows whose computation was lost with a process that died, and was begun again."""
    error: str | None
    """Why the batch failed."""
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    ended_at: datetime | None

    @property
    def done(self) -> bool:
        """The batch has ended, well or badly."""
        return self.state in TERMINAL_JOB_STATES

    @property
    def progress(self) -> BatchProgress:
        """How far it is."""
        return BatchProgress(
            total=self.items,
            succeeded=self.rows_done - self.failed,
            failed=self.failed,
            tokens=self.tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceBlock:
    """Results of a stretch of a batch's rows, in order."""

    rows: NDArray[np.int64]
    """Numbers of the rows that have a vector, `[n]`."""
    vectors: Matrix
    """`[n, dims]`."""
    tokens: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    errors: Sequence[tuple[int, RowError]]
    """Number and reason of the rows that failed."""
