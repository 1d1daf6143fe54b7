"""A batch's results at their items' places, read in this process or in one beside it."""

from embatch.runs.gathered import vectors_path
from embatch.runs.reading import Results, join_results
from embatch.runs.step import Step
from embatch.runs.verify import Joined
from embatch.types.results import Matrix


def read_results(step: Step, into: Matrix) -> Joined:
    """Reads the results of the step's batch into `into`, gathered under the step's token.

    Raises what the provider raises, AlignmentError for keys of other batches, and LeaseLostError.
    """
    batch, context = step.batch, step.context
    results = Results(
        remote_name=str(batch.remote_name),
        label=str(batch.label),
        items=batch.items,
        space=context.space,
    )
    provider, readers = context.provider, context.readers
    values = (context.run().rows or 0) * context.space.dims
    if readers is None or not readers.pay_for(provider, values):
        return join_results(provider, results, into, step.check_lease)
    path = vectors_path(context.paths.scratch, step.token)
    mapped = path if path.exists() else None
    return readers.read(provider, results, into, mapped, step.check_lease)
