"""Starts a run, or finds the one that its output already is."""

import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from embatch.datasets.manifest import Manifest
from embatch.datasets.output import OutputPaths
from embatch.datasets.ownership import OutputLock
from embatch.datasets.parts import check_part
from embatch.datasets.published import part_number, recount_part, reject_part
from embatch.datasets.source import Source
from embatch.errors import (
    ChangedMeanwhileError,
    InvalidRequestError,
    SpaceMismatchError,
    TransitionRefusedError,
)
from embatch.hooks import no_checkpoint
from embatch.journal.records import AdoptedPart, RunRecord
from embatch.journal.store import Journal, new_run_id
from embatch.runs.accounts import require_priced
from embatch.runs.admission import try_at_once
from embatch.runs.config import RunConfig
from embatch.runs.finish import tidy_output
from embatch.runs.outputs import parts_of, require_form, require_journal, require_whole
from embatch.runs.reuse import require_reusable
from embatch.storage.places import Place
from embatch.types.embedding import Space
from embatch.types.state import RunEvent, RunState

log = logging.getLogger("embatch.runs")

RESUMABLE = (RunState.FAILED, RunState.CANCELLED)
BLOCKED = (RunState.PARKED, RunState.NEEDS_PERSON, RunState.OVER_BUDGET)
LONGEST_NAME = 200
"""Characters of a run's name, and of a tag's name or value."""
MOST_TAGS = 64


def start_run(
    journal: Journal,
    config: RunConfig,
    source: Source,
    space: Space,
    *,
    now: float,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    priority: int | None = None,
    checkpoint: Callable[[str], None] = no_checkpoint,
) -> RunRecord:
    """Enters a new run, or gives the run that the output holds, ready to go on.

    The manifest is written before any work: a run is its output. Raises InvalidRequestError or
    SpaceMismatchError, naming the difference, when the output belongs to another run.
    """
    _require_short(name, tags or {})
    paths = OutputPaths.for_out(config.out)
    require_priced(space, config.max_cost_usd)
    if config.reuse is not None:
        require_reusable(config.reuse, space)
    wanted = Manifest.new(
        run_id=new_run_id(),
        space=space,
        source=source,
        reuse=config.reuse,
        created_at=now,
        journal_id=journal.id,
        form=paths.form,
    )
    manifest = _claim_output(paths, wanted)
    known = journal.find_run(manifest.run_id)
    if known is not None:
        if known.state in (RunState.COMPLETED, RunState.COMPLETED_WITH_FAILURES):
            require_whole(paths, manifest)
        return _start_again(
            journal, known, config, now=now, name=name, tags=tags, priority=priority
        )
    with ExitStack() as stack:
        adopted: list[AdoptedPart] = []
        if manifest is not wanted:
            stack.enter_context(OutputLock(paths.parts, exclusive=True))
            adopted = _adopt(paths, manifest, space, journal.id, checkpoint)
        return journal.create_run(
            run_id=manifest.run_id,
            out=str(paths.out),
            config=config.to_json(),
            space=space.to_json(),
            now=now,
            name=name,
            tags=tags,
            priority=priority or 0,
            adopted=adopted,
        )


def _require_short(name: str | None, tags: Mapping[str, str]) -> None:
    """Names and tags stand in lists that people read."""
    if name is not None and len(name) > LONGEST_NAME:
        raise InvalidRequestError(
            f"the name {name[:20]!r}… has {len(name):,} characters: give {LONGEST_NAME} or fewer"
        )
    if len(tags) > MOST_TAGS:
        raise InvalidRequestError(f"there are {len(tags):,} tags: give {MOST_TAGS} or fewer")
    for word in (*tags.keys(), *tags.values()):
        if len(word) > LONGEST_NAME:
            raise InvalidRequestError(
                f"{word[:20]!r}… in a tag has {len(word):,} characters: give {LONGEST_NAME} "
                "or fewer"
            )


def _start_again(
    journal: Journal,
    run: RunRecord,
    config: RunConfig,
    *,
    now: float,
    name: str | None,
    tags: Mapping[str, str] | None,
    priority: int | None,
) -> RunRecord:
    """The run that the output is, under the settings of this start; what is not given stays."""
    if run.state is RunState.COMPLETED:
        tidy_output(OutputPaths.for_out(config.out))
    if run.config.get("execution") == "workers" and config.execution != "workers":
        log.warning(
            "run %s was for workers, and is worked by this process from now on; to leave it to "
            "them, stop and type: embatch run … --execution workers",
            run.id,
        )
    changed: dict[str, Any] = {"config": config.to_json()}
    if priority is not None:
        changed["priority"] = priority
    if name is not None:
        changed["name"] = name
    if tags:
        changed["tags"] = {**run.tags, **tags}
    journal.update_run(run.id, now=now, **changed)
    return wake_run(journal, run.id, now=now)


def _adopt(
    paths: OutputPaths,
    manifest: Manifest,
    space: Space,
    journal_id: str,
    checkpoint: Callable[[str], None],
) -> list[AdoptedPart]:
    """Makes an output whose journal is gone this journal's, and gives its sound parts."""
    adopted = _sound_parts(paths, space)
    checkpoint("adopt.verified")

    def claimed(standing: Manifest) -> Manifest:
        require_journal(paths, standing, manifest.journal_id)
        return replace(standing, journal_id=journal_id, finished_at=None, parts=())

    Manifest.change(paths.manifest, claimed)
    checkpoint("adopt.claimed")
    return adopted


def wake_run(journal: Journal, run_id: str, *, now: float) -> RunRecord:
    """Sets a stopped run going again; one that works or is complete stays as it is."""
    run = journal.get_run(run_id)
    journal.batches.unblock(run.id, now=now)
    journal.ledger.wake(run.id, now=now)
    if run.state in RESUMABLE:
        journal.batches.reset_attempts(run.id, now=now)
    if run.state is RunState.PARKED:
        try_at_once(journal, run.id, now=now)
    if run.state in RESUMABLE or run.state in BLOCKED:
        try:
            return journal.transition_run(
                run.id,
                RunEvent.RESUMED,
                expected=run.state,
                now=now,
                error=None,
                error_code=None,
                finished_at=None,
                resume_at=None,
            )
        except TransitionRefusedError:
            return journal.get_run(run.id)  # another process woke it in this instant
    return run


def _claim_output(paths: OutputPaths, wanted: Manifest) -> Manifest:
    """The output's manifest: `wanted` when the output is new, else the one that stands there."""
    if not paths.manifest.exists():
        _refuse_foreign(paths)
        if _enter_first(paths.manifest, wanted):
            return wanted
    standing = Manifest.load(paths.manifest)
    require_form(paths, standing)
    if (difference := standing.space.difference(wanted.space)) is not None:
        raise SpaceMismatchError(
            f"{paths.out} holds vectors of another space: {difference} "
            "(here is in the output, there what this command asks for); use another output"
        )
    if (difference := standing.difference(wanted)) is not None:
        raise InvalidRequestError(
            f"{paths.out} belongs to run {standing.run_id}, and is refused: {difference}; "
            "use another output, with --reuse to keep what is already embedded"
        )
    return standing


def _enter_first(place: Place, wanted: Manifest) -> bool:
    """Writes the manifest where none stands: of two processes, one alone makes the output."""
    if not isinstance(place, Path):
        try:
            place.write_bytes(wanted.to_bytes(), replacing="")
        except ChangedMeanwhileError:
            return False
        return True
    place.parent.mkdir(parents=True, exist_ok=True)
    wanted_file = place.with_name(f".manifest-{uuid.uuid4().hex[:12]}.tmp")
    wanted.save(wanted_file)
    try:
        os.link(wanted_file, place)
    except FileExistsError:
        return False
    finally:
        wanted_file.unlink()
    return True


def _refuse_foreign(paths: OutputPaths) -> None:
    foreign: Sequence[Place] = sorted(paths.parts.glob("part-*.parquet"))
    if paths.single_file is not None and paths.single_file.exists():
        foreign = [paths.single_file]
    if foreign:
        raise InvalidRequestError(
            f"{paths.out} holds {foreign[0].name} and no manifest of a run: "
            "move it away, or use another output"
        )


def _sound_parts(paths: OutputPaths, space: Space) -> list[AdoptedPart]:
    """The parts of an output whose journal is gone; a broken one is set aside."""
    adopted: list[AdoptedPart] = []
    for path in parts_of(paths):
        report = check_part(path, dims=space.dims, normalized=space.normalized)
        if report.problems:
            reject_part(path)
            log.warning("%s is not sound and was set aside: %s", path.name, report.problems[0])
            continue
        recount_part(path)
        adopted.append(
            AdoptedPart(
                number=part_number(path),
                kind="embed",
                name=path.name,
                sha256=report.sha256,
                size_bytes=report.size_bytes,
                rows=report.rows,
                row_min=report.row_min,
                row_max=report.row_max,
            )
        )
    return adopted
