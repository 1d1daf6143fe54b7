"""Rows whose text stands elsewhere: they take the vector, or the failure, of its first row."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.datasets.parts import part_rows, part_vectors_at
from embatch.datasets.stage import StageFile
from embatch.errors import StorageError
from embatch.journal.records import Failure
from embatch.runs.collect import finish_part
from embatch.runs.gathered import gathered
from embatch.runs.outcomes import After, Now, Outcome
from embatch.runs.reuse import reused_files
from embatch.runs.step import Step
from embatch.storage.places import Place
from embatch.types.embedding import RowError
from embatch.types.results import Matrix
from embatch.types.state import BatchEvent

OWNERS_PENDING_S = 1.0
"""Wait before looking again for a vector that is still under way."""


def wait_for_owners(step: Step) -> Outcome:
    """Goes on once every owner has a vector in a part, or has failed for good."""
    owners = np.unique(_owner_rows(step.stage()))
    missing = owners
    for part in _parts_of(step, owners):
        missing = missing[~np.isin(missing, part_rows(part))]
    if len(missing) and step.batch.kind == "reused":
        raise StorageError(
            f"{step.context.config.reuse} holds row {missing[0]} no longer, whose vector this run "
            "takes over: put the output back, or start a new one without --reuse"
        )
    failed = step.context.journal.failures_among(step.batch.run_id, missing.tolist())
    if len(failed) < len(missing):
        return After(seconds=OWNERS_PENDING_S, reason="owners")
    step.move(BatchEvent.OWNERS_FINAL, label=None)
    return Now()


def collect_copies(step: Step) -> Outcome:
    """Writes the copies' part from the parts of their owners."""
    batch, context = step.batch, step.context
    stage = step.stage()
    wanted = _owner_rows(stage)
    owners, firsts, places = np.unique(wanted, return_index=True, return_inverse=True)
    texts = stage.take(firsts)["text_sha256"].to_pylist()
    with gathered(context.paths.scratch, step.token, len(owners), context.space.dims) as matrix:
        found = _find_owners(step, owners, texts, matrix)
        failed = context.journal.failures_among(batch.run_id, owners[~found].tolist())
        errors = {
            int(index): _error_of(failed[int(wanted[index])])
            for index in np.flatnonzero(~found[places]).tolist()
        }
        name, dims = f"{step.token}-own", context.space.dims
        with gathered(context.paths.scratch, name, batch.items, dims) as own:
            np.take(matrix, places, axis=0, out=own)
            return finish_part(step, stage, own, errors, {})


def _error_of(failure: Failure) -> RowError:
    return RowError(
        code=failure.code, message=f"{failure.message} (same text as row {failure.row})"
    )


def _owner_rows(stage: StageFile) -> NDArray[np.int64]:
    batches = [batch.column("owner_row") for batch in stage.read()]
    rows: NDArray[np.int64] = pa.chunked_array(batches).to_numpy()
    return rows


def _parts_of(step: Step, owners: NDArray[np.int64]) -> list[Place]:
    """The files that may hold these rows: parts of this run, or of the output it reuses."""
    low, high = int(owners[0]), int(owners[-1])
    context = step.context
    if step.batch.kind == "reused":
        return reused_files(str(context.config.reuse), low, high)
    parts = context.journal.batches.parts_between(step.batch.run_id, low, high)
    return [context.paths.parts / str(part.part) for part in parts]


def _find_owners(
    step: Step, owners: NDArray[np.int64], texts: Sequence[bytes], into: Matrix
) -> NDArray[np.bool_]:
    """Which of the sorted `owners` have a vector; `into` takes it at the owner's place."""
    found = np.zeros(len(owners), dtype=bool)
    for part in _parts_of(step, owners):
        open_places = np.flatnonzero(~found)
        digests = [texts[place] for place in open_places.tolist()]
        here, matrix = part_vectors_at(part, owners[open_places], digests)
        places = open_places[here]
        found[places] = True
        into[places] = matrix
    return found
