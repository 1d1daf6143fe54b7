"""Finds a run by what people call it."""

from embatch.datasets.output import OutputPaths
from embatch.errors import InvalidRequestError, NotFoundError
from embatch.journal.records import RunRecord
from embatch.journal.store import Journal
from embatch.runs.outputs import load_manifest


def find_run(journal: Journal, name: str | None) -> RunRecord:
    """The run with this id, beginning of an id, name or output; None means the latest.

    Raises NotFoundError, saying what to do, when there is none.
    """
    if name is None:
        latest = journal.list_runs()
        if not latest:
            raise NotFoundError("there is no run yet: embatch run INPUT -o OUT starts one")
        return latest[0]
    try:
        return journal.get_run(name)
    except NotFoundError:
        run_id = _run_of_output(name)
        if run_id is None:
            raise
    found = journal.find_run(run_id)
    if found is None:
        raise NotFoundError(
            f"{name} belongs to run {run_id}, which this journal does not know: "
            "the same embatch run as then takes it over, or name its journal with --journal"
        )
    return found


def _run_of_output(out: str) -> str | None:
    try:
        paths = OutputPaths.for_out(out)
    except InvalidRequestError:
        return None
    return load_manifest(paths).run_id if paths.manifest.exists() else None
