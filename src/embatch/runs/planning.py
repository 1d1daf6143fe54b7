"""Planning: two passes over the source, a step at a time, each resumable after a crash.

    digest ─▶ stage ─▶ copies ─▶ merge ─▶ done

`digest` reads everything once: it refuses duplicate keys and finds texts that stand twice.
`stage` cuts what must be embedded into batches. `copies` gathers the rows whose text stands
elsewhere, and `merge` cuts those into batches of their own. Batches of the provider are worked
while planning goes on.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embatch.datasets.digests import Digest, read_digest
from embatch.datasets.manifest import Manifest
from embatch.datasets.parts import part_rows
from embatch.datasets.source import Position, Source, SourceBlock, open_source
from embatch.datasets.stage import CopySpool, write_stage
from embatch.errors import InputError
from embatch.journal.records import Failure, NewBatch
from embatch.runs.choosing import Chooser, Elsewhere
from embatch.runs.context import RunContext
from embatch.runs.plan import Cut, Cutter
from embatch.runs.reuse import old_records
from embatch.types.batch import Limits
from embatch.types.state import BatchState, RunEvent, RunState

Phase = Literal["digest", "stage", "copies", "merge"]
ELSEWHERE: tuple[Elsewhere, ...] = ("copies", "reused")
"""Kinds of rows whose vector need not be bought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where planning stands, as the journal keeps it."""

    phase: Phase = "digest"
    position: dict[str, int] | None = None
    """Where the source is read on."""
    runs: dict[str, int] = field(default_factory=dict)
    """Sorted runs of rows with a vector elsewhere that are safe on disk, by kind."""
    groups: dict[str, int] = field(default_factory=dict)
    """Batches of such rows already entered, by kind."""

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


def _digest(context: RunContext, token: str, _stopping: Callable[[], bool]) -> None:
    folder = context.paths.work / "digest"
    shutil.rmtree(folder, ignore_errors=True)
    context.checkpoint("plan.digest")
    reuse = context.config.reuse
    old = None if reuse is None else old_records(reuse)
    digest = read_digest(open_run_source(context), folder, reuse=old)
    context.checkpoint("plan.digested")
    context.journal.update_run(context.run_id, now=context.now(), rows=digest.rows)
    _save(context, token, Plan(phase="stage"))


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
    chooser = _chooser(context)
    cutter = Cutter(batch_limits(context))
    empties: list[Failure] = []
    blocks: list[SourceBlock] = []
    for block in source.read(plan.start()):
        blocks.append(block)
        table, empty = chooser.to_embed(block.first_row, block.batch)
        empties += empty
        for cut in cutter.add(table):
            position = _position_of(cutter.first_waiting_row, blocks)
            plan = _stage_cut(context, token, plan, cut, position, empties)
            empties = [failure for failure in empties if failure.row >= position.row]
            blocks = [block for block in blocks if block.end.row > position.row]
            if stopping():
                return
    for cut in cutter.rest():
        plan = _stage_cut(context, token, plan, cut, blocks[-1].end, empties)
        empties = []
    digest = Digest.load(context.paths.work / "digest")
    phase: Phase = "copies" if digest.copy_rows or digest.reused_rows else "merge"
    _save(context, token, replace(plan, phase=phase, position=None), failures=empties)
    context.checkpoint("plan.staged")


def _position_of(row: int | None, blocks: list[SourceBlock]) -> Position:
    """The place before `row`, which one of `blocks` holds; after the last one for None."""
    if row is None:
        return blocks[-1].end
    block = next(block for block in reversed(blocks) if block.first_row <= row)
    return block.position_at(row - block.first_row)


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
    batch = NewBatch(
        kind="embed",
        items=cut.items.num_rows,
        row_min=first,
        row_max=rows[-1].as_py(),
        stage=name,
        tokens_estimated=cut.tokens,
        text_bytes=cut.text_bytes,
    )
    ripe = [failure for failure in empties if failure.row < position.row]
    _save(context, token, plan, [batch], ripe)
    context.checkpoint("stage.journaled")
    return plan


def _gather_copies(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    plan = Plan.of(context)
    chooser = _chooser(context)
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


def _merge_copies(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    plan = Plan.of(context)
    items = batch_limits(context).max_batch_items
    for kind in ELSEWHERE:
        entered = plan.groups.get(kind, 0)
        for number, group in enumerate(_spool(context, plan, kind).merge(items)):
            if number >= entered:
                plan = replace(plan, groups={**plan.groups, kind: number + 1})
                _save(context, token, plan, [_stage_group(context, token, kind, number, group)])
                context.checkpoint("copies.journaled")
                if stopping():
                    return
    context.journal.transition_run(
        context.run_id, RunEvent.PLANNED, expected=RunState.PLANNING, now=context.now()
    )
    context.checkpoint("plan.done")


def _stage_group(
    context: RunContext, token: str, kind: Elsewhere, number: int, group: pa.Table
) -> NewBatch:
    owners, rows = group["owner_row"].to_numpy(), group["row"].to_numpy()
    name = f"stage/{kind}-{number:06d}-{token}.arrow"
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
    return CopySpool(context.paths.work / kind, runs=plan.runs.get(kind, 0))


def _chooser(context: RunContext) -> Chooser:
    digest = Digest.load(context.paths.work / "digest")
    return Chooser(digest, context.config.keep, _rows_in_parts(context, digest.rows))


def _rows_in_parts(context: RunContext, rows: int) -> NDArray[np.bool_] | None:
    """Which rows adopted parts hold already; None when no part was there before planning."""
    adopted = [
        batch
        for batch in context.journal.batches.walk(context.run_id, states=[BatchState.PUBLISHED])
        if batch.stage is None
    ]
    if not adopted:
        return None
    path = context.paths.work / "digest" / "adopted.bool"
    done = np.memmap(path, dtype=np.bool_, mode="w+", shape=(rows,))
    for batch in adopted:
        done[part_rows(context.paths.parts / str(batch.part))] = True
    return done


_STEPS: dict[Phase, Callable[[RunContext, str, Callable[[], bool]], None]] = {
    "digest": _digest,
    "stage": _stage,
    "copies": _gather_copies,
    "merge": _merge_copies,
}
