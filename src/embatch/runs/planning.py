"""Planning: two passes over the source, a step at a time, each resumable after a crash.

    digest ─▶ stage ─▶ copies ─▶ merge ─▶ done

`digest` reads everything once: it refuses duplicate keys and finds texts that stand twice.
`stage` cuts what must be embedded into batches. `copies` gathers the rows whose text stands
elsewhere, and `merge` cuts those into batches of their own. Batches of the provider are worked
while planning goes on.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.datasets.digests import DIGEST_FILE, Digest, read_digest
from embatch.datasets.manifest import Manifest
from embatch.datasets.parts import part_rows
from embatch.datasets.source import Position, Source, open_source
from embatch.datasets.stage import CopySpool, write_stage
from embatch.errors import InputError, NotFoundError
from embatch.journal.records import Failure, NewBatch
from embatch.runs.choosing import Chooser, Elsewhere
from embatch.runs.context import RunContext
from embatch.runs.cost import open_cutter
from embatch.runs.plan import Cut
from embatch.runs.probe import probe_rows
from embatch.runs.reuse import old_records
from embatch.runs.tokens import counted_rate
from embatch.storage.places import fetch_folder, remove_tree, share_folder
from embatch.types.batch import Limits
from embatch.types.state import BatchState, RunEvent, RunState

Phase = Literal["digest", "stage", "copies", "merge"]
MAX_WAITING_FAILURES = 4096
"""Rows without a text that are journaled at once."""
ELSEWHERE: tuple[Elsewhere, ...] = ("copies", "reused")
"""Kinds of rows whose vector need not be bought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where planning stands, as the journal keeps it."""

    phase: Phase = "digest"
    digest: str = ""
    """Folder of the digest, below the work folder. Each planner writes into folders of its own:
    one whose lease ran out while it slept can spoil nothing."""
    spool: str = ""
    """Folder of the rows with a vector elsewhere."""
    position: dict[str, int] | None = None
    """Where the source is read on."""
    runs: dict[str, int] = field(default_factory=dict)
    """Sorted runs of rows with a vector elsewhere that are safe on disk, by kind."""
    taken: dict[str, int] = field(default_factory=dict)
    """Such rows that are in batches already, by kind."""
    probe_row: int | None = None
    """Last row of the probe, the first batch; None without one."""

    @classmethod
    def of(cls, context: RunContext) -> "Plan":
        """The plan that the journal holds, a new one at first."""
        return cls(**(context.run().plan or {}))

    def start(self) -> Position | None:
        """The source's position, None at its beginning."""
        return None if self.position is None else Position.from_json(self.position)


def advance_planning(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    """Takes one planning step under the run's planning lease; ends early when `stopping()`."""
    if context.run().state is RunState.PLANNING:
        _STEPS[Plan.of(context).phase](context, token, stopping)
        pa.default_memory_pool().release_unused()


def open_run_source(context: RunContext) -> Source:
    """The run's source, checked to be what it was when the run began."""
    config = context.config
    source = open_source(
        config.inputs,
        text=config.text,
        key=config.key,
        keep=config.keep,
        spool=context.paths.work / "spool",
    )
    planned = Manifest.load(context.paths.manifest).inputs
    for before, now in zip(planned, source.identity, strict=True):
        if before != now:
            raise InputError(
                f"{now.path} changed since run {context.run_id} began: put the old file back, "
                "or start a new output (with --reuse to keep its vectors)"
            )
    return source


def _save(
    context: RunContext,
    token: str,
    plan: Plan,
    batches: list[NewBatch] | None = None,
    failures: list[Failure] | None = None,
) -> None:
    context.journal.batches.add_planned(
        context.run_id,
        token,
        batches=batches or [],
        failures=failures or [],
        plan=asdict(plan),
        now=context.now(),
    )


class _Stopped(Exception):  # noqa: N818 - no error: a person or a timeout asked for it
    """The first reading was given up."""


def _digest(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    folder = context.paths.scratch / f"digest-{token}"
    context.checkpoint("plan.digest")
    reuse = context.config.reuse
    old = None if reuse is None else old_records(reuse)

    def look_up(_rows: int) -> None:
        if stopping():
            raise _Stopped

    try:
        digest = read_digest(open_run_source(context), folder, reuse=old, on_progress=look_up)
    except _Stopped:
        return
    share_folder(folder, context.paths.work / folder.name, last=DIGEST_FILE)
    context.checkpoint("plan.digested")
    context.journal.update_run(context.run_id, now=context.now(), rows=digest.rows)
    _save(context, token, Plan(phase="stage", digest=folder.name))
    _sweep(context, "digest-*", folder.name)


def _sweep(context: RunContext, pattern: str, kept: str) -> None:
    """Removes the folders of planners that did not come to their end."""
    for place in dict.fromkeys((context.paths.work, context.paths.scratch)):
        for folder in place.glob(pattern):
            if folder.name != kept:
                remove_tree(folder)


def batch_limits(context: RunContext) -> Limits:
    """The provider's limits, narrowed by what the user asked for."""
    limits, config = context.provider.limits, context.config
    return replace(
        limits,
        max_batch_items=min(limits.max_batch_items, config.max_batch_items or 2**31),
        max_batch_tokens=min(limits.max_batch_tokens, config.max_batch_tokens or 2**62),
    )


def _stage(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    plan = Plan.of(context)
    source = open_run_source(context)
    chooser = _chooser(context, plan)
    digest = _load_digest(context, plan)
    cutter = open_cutter(
        batch_limits(context),
        context.space,
        max_cost_usd=context.config.max_cost_usd,
        text_bytes=digest.embed_bytes,
        first_items=_first_items(context, plan, digest),
        rate=counted_rate(context.journal, context.space),
    )
    empties: list[Failure] = []
    places: list[Position] = []
    end = plan.start() or Position()
    for block in source.read(plan.start()):
        places.append(block.first)
        end = block.end
        table, empty = chooser.to_embed(block.first_row, block.batch)
        empties += empty
        for cut in cutter.add(table):
            position = _place_before(cutter.first_waiting_row, places, end)
            plan = _stage_cut(context, token, plan, cut, position, empties)
            empties = []
            if stopping():
                return
        if len(empties) >= MAX_WAITING_FAILURES:  # may come again after a restart; once is enough
            _save(context, token, plan, failures=empties)
            empties = []
        places = places if cutter.first_waiting_row is not None else []
    for cut in cutter.rest():
        plan = _stage_cut(context, token, plan, cut, end, empties)
        empties = []
    phase: Phase = "copies" if digest.copy_rows or digest.reused_rows else "merge"
    _save(context, token, replace(plan, phase=phase, position=None), failures=empties)
    context.checkpoint("plan.staged")


def _first_items(context: RunContext, plan: Plan, digest: Digest) -> int | None:
    """Rows of the probe, where the first batch is still to be cut."""
    if plan.position is not None:
        return None
    limits, probe = context.provider.limits, context.config.probe
    return probe_rows(limits, digest.embed_rows, probe=probe)


def _place_before(row: int | None, places: list[Position], end: Position) -> Position:
    """The place before `row`, which lies after the last of `places` at or below it."""
    if row is None:
        return end
    place = next(place for place in reversed(places) if place.row <= row)
    offset = row - place.row
    return replace(place, input_row=place.input_row + offset, row=row)


def _stage_cut(
    context: RunContext,
    token: str,
    plan: Plan,
    cut: Cut,
    position: Position,
    empties: list[Failure],
) -> Plan:
    rows = cut.items["row"]
    first = rows[0].as_py()
    name = f"stage/{first:012d}-{token}.arrow"
    write_stage(context.paths.work / name, cut.items)
    context.checkpoint("stage.written")
    plan = replace(plan, position=position.to_json())
    if cut.probe:
        plan = replace(plan, probe_row=rows[-1].as_py())
    batch = NewBatch(
        kind="embed",
        items=cut.items.num_rows,
        row_min=first,
        row_max=rows[-1].as_py(),
        stage=name,
        tokens_estimated=cut.tokens,
        tokens_bound=cut.tokens_bound,
        item_bound=cut.item_bound,
        text_bytes=cut.text_bytes,
    )
    _save(context, token, plan, [batch], empties)
    context.checkpoint("stage.journaled")
    return plan


def _gather_copies(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    plan = Plan.of(context)
    if plan.spool != f"spool-{token}":  # another planner's, who may still write: start anew
        plan = replace(plan, spool=f"spool-{token}", runs={}, position=None)
    chooser = _chooser(context, plan)
    spools = {kind: _spool(context, plan, kind) for kind in ELSEWHERE}

    def flushed(position: Position | None) -> Plan:
        for spool in spools.values():
            spool.flush()
        context.checkpoint("copies.written")
        return replace(
            plan,
            runs={kind: spool.runs for kind, spool in spools.items()},
            position=None if position is None else position.to_json(),
        )

    for block in open_run_source(context).read(plan.start()):
        for kind, spool in spools.items():
            spool.add(chooser.elsewhere(kind, block.first_row, block.batch))
        if any(spool.full for spool in spools.values()):
            plan = flushed(block.end)
            _save(context, token, plan)
            if stopping():
                return
    _save(context, token, replace(flushed(None), phase="merge"))
    _sweep(context, "spool-*", plan.spool)


def _merge_copies(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    plan = Plan.of(context)
    items = batch_limits(context).max_batch_items
    for kind in ELSEWHERE if plan.spool else ():
        spool = _spool(context, plan, kind)
        for group in spool.merge(items, skip_rows=plan.taken.get(kind, 0), scratch=token):
            first = plan.taken.get(kind, 0)
            batch = _stage_group(context, token, kind, first, group)
            plan = replace(plan, taken={**plan.taken, kind: first + group.num_rows})
            _save(context, token, plan, [batch])
            context.checkpoint("copies.journaled")
            if stopping():
                return
    context.journal.transition_run(
        context.run_id, RunEvent.PLANNED, expected=RunState.PLANNING, now=context.now()
    )
    context.checkpoint("plan.done")


def _stage_group(
    context: RunContext, token: str, kind: Elsewhere, first: int, group: pa.Table
) -> NewBatch:
    owners, rows = group["owner_row"].to_numpy(), group["row"].to_numpy()
    name = f"stage/{kind}-{first:012d}-{token}.arrow"
    write_stage(context.paths.work / name, group)
    context.checkpoint("copies.staged")
    return NewBatch(
        kind=kind,
        items=group.num_rows,
        row_min=int(rows.min()),
        row_max=int(rows.max()),
        owner_min=int(owners.min()),
        owner_max=int(owners.max()),
        stage=name,
    )


def _spool(context: RunContext, plan: Plan, kind: Elsewhere) -> CopySpool:
    return CopySpool(context.paths.work / plan.spool / kind, runs=plan.runs.get(kind, 0))


def _chooser(context: RunContext, plan: Plan) -> Chooser:
    digest = _load_digest(context, plan)
    return Chooser(digest, context.config.keep, _rows_in_parts(context, digest))


def _load_digest(context: RunContext, plan: Plan) -> Digest:
    place, folder = context.paths.work / plan.digest, context.paths.scratch / plan.digest
    try:
        return Digest.load(fetch_folder(place, folder, last=DIGEST_FILE))
    except FileNotFoundError as error:
        raise NotFoundError(f"no complete digest of the source is in {place}") from error


def _rows_in_parts(context: RunContext, digest: Digest) -> NDArray[np.bool_] | None:
    """Which rows adopted parts hold already; None when no part was there before planning."""
    adopted = [
        batch
        for batch in context.journal.batches.walk(context.run_id, states=[BatchState.PUBLISHED])
        if batch.stage is None
    ]
    if not adopted:
        return None
    done = np.memmap(
        digest.folder / "adopted.bool", dtype=np.bool_, mode="w+", shape=(digest.rows,)
    )
    for batch in adopted:
        done[part_rows(context.paths.parts / str(batch.part))] = True
    return done


_STEPS: dict[Phase, Callable[[RunContext, str, Callable[[], bool]], None]] = {
    "digest": _digest,
    "stage": _stage,
    "copies": _gather_copies,
    "merge": _merge_copies,
}
