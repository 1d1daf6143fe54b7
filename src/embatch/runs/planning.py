"""Planning: two passes over the source, a step at a time, each resumable after a crash.

    digest ─▶ stage ─▶ copies ─▶ merge ─▶ done

`digest` reads everything once: it refuses duplicate keys and finds texts that stand twice.
`stage` cuts what must be embedded into batches. `copies` gathers the rows whose text stands
elsewhere, and `merge` cuts those into batches of their own. Batches of the provider are worked
while planning goes on.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from embatch.runs.context import RunContext
from embatch.runs.plan import Cut, Cutter
from embatch.types.batch import Limits
from embatch.types.state import BatchState, RunEvent, RunState

Phase = Literal["digest", "stage", "copies", "merge"]
EMPTY_TEXT = "empty_text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Where planning stands, as the journal keeps it."""

    phase: Phase = "digest"
    position: dict[str, int] | None = None
    """Where the source is read on."""
    copy_runs: int = 0
    """Sorted runs of copies that are safe on disk."""
    copy_groups: int = 0
    """Batches of copies already entered."""
    rows: int = 0
    empty: int = 0
    copies: int = 0
    text_bytes: int = 0

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
    digest = read_digest(open_run_source(context), folder)
    context.checkpoint("plan.digested")
    context.journal.update_run(context.run_id, now=context.now(), rows=digest.rows)
    plan = Plan(
        phase="stage",
        rows=digest.rows,
        empty=digest.empty,
        copies=len(digest.copies),
        text_bytes=digest.text_bytes,
    )
    _save(context, token, plan)


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
    digest = Digest.load(context.paths.work / "digest")
    chooser = _Chooser(digest, _rows_in_parts(context, digest.rows))
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
    end = blocks[-1].end if blocks else Position(row=digest.rows)
    for cut in cutter.rest():
        plan = _stage_cut(context, token, plan, cut, end, empties)
        empties = []
    phase: Phase = "copies" if len(digest.copies) else "merge"
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
    source = open_run_source(context)
    digest = Digest.load(context.paths.work / "digest")
    chooser = _Chooser(digest, _rows_in_parts(context, digest.rows))
    spool = CopySpool(context.paths.work / "copies", runs=plan.copy_runs)
    for block in source.read(plan.start()):
        spool.add(chooser.copies(block.first_row, block.batch))
        if spool.full:
            spool.flush()
            context.checkpoint("copies.written")
            plan = replace(plan, copy_runs=spool.runs, position=block.end.to_json())
            _save(context, token, plan)
            if stopping():
                return
    spool.flush()
    _save(context, token, replace(plan, copy_runs=spool.runs, phase="merge", position=None))


def _merge_copies(context: RunContext, token: str, stopping: Callable[[], bool]) -> None:
    plan = Plan.of(context)
    limits = batch_limits(context)
    spool = CopySpool(context.paths.work / "copies", runs=plan.copy_runs)
    for number, group in enumerate(spool.merge(limits.max_batch_items)):
        if number < plan.copy_groups:
            continue
        owners = group["owner_row"].to_numpy()
        rows = group["row"].to_numpy()
        name = f"stage/copies-{number:06d}-{token}.arrow"
        write_stage(context.paths.work / name, group)
        context.checkpoint("copies.staged")
        plan = replace(plan, copy_groups=number + 1)
        batch = NewBatch(
            kind="copies",
            items=group.num_rows,
            row_min=int(rows.min()),
            row_max=int(rows.max()),
            owner_min=int(owners.min()),
            owner_max=int(owners.max()),
            stage=name,
        )
        _save(context, token, plan, [batch])
    context.journal.transition_run(
        context.run_id, RunEvent.PLANNED, expected=RunState.PLANNING, now=context.now()
    )
    context.checkpoint("plan.done")


class _Chooser:
    """Tells, block by block, which rows to embed, which are copies, and which have no text."""

    def __init__(self, digest: Digest, done: NDArray[np.bool_] | None) -> None:
        self._digest = digest
        self._done = done

    def to_embed(self, first_row: int, batch: pa.RecordBatch) -> tuple[pa.Table, list[Failure]]:
        """The rows whose text must be embedded, and the rows without a text."""
        table = with_rows(first_row, batch)
        sizes = pa.compute.fill_null(pa.compute.binary_length(batch["text"]), 0)
        empty = sizes.to_numpy(zero_copy_only=False) == 0
        wanted = ~empty
        rows, _ = self._copies_in(first_row, batch.num_rows)
        wanted[rows - first_row] = False
        if self._done is not None:
            wanted &= ~self._done[first_row : first_row + batch.num_rows]
        return self._chosen(table, wanted), _empty_failures(table.filter(pa.array(empty)))

    def copies(self, first_row: int, batch: pa.RecordBatch) -> pa.Table:
        """The rows whose text stands elsewhere, with the row that owns it; no texts."""
        rows, owners = self._copies_in(first_row, batch.num_rows)
        if self._done is not None:
            open_rows = ~self._done[rows]
            rows, owners = rows[open_rows], owners[open_rows]
        table = with_rows(first_row, batch).take(pa.array(rows - first_row))
        table = with_digests(table).drop_columns(["text"])
        return table.append_column("owner_row", pa.array(owners, pa.int64()))

    def _chosen(self, table: pa.Table, wanted: NDArray[np.bool_]) -> pa.Table:
        return with_digests(table if wanted.all() else table.filter(pa.array(wanted)))

    def _copies_in(self, first_row: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        copies = self._digest.copies
        low, high = np.searchsorted(copies["row"], [first_row, first_row + rows])
        part = copies[low:high]
        return part["row"].astype(np.int64), part["owner_row"].astype(np.int64)


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


def with_rows(first_row: int, batch: pa.RecordBatch) -> pa.Table:
    """The batch with its row numbers after the key."""
    numbers = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)
    return pa.Table.from_batches([batch]).add_column(1, "row", pa.array(numbers))


def with_digests(table: pa.Table) -> pa.Table:
    """The table with the SHA-256 of each text."""
    digests = text_digests(table["text"])
    return table.add_column(3, "text_sha256", digests)


def _empty_failures(table: pa.Table) -> list[Failure]:
    return [
        Failure(row=row, key=key, code=EMPTY_TEXT, message="the text is empty", attempts=0)
        for row, key in zip(table["row"].to_pylist(), table["key"].to_pylist(), strict=True)
    ]


_STEPS: dict[Phase, Callable[[RunContext, str, Callable[[], bool]], None]] = {
    "digest": _digest,
    "stage": _stage,
    "copies": _gather_copies,
    "merge": _merge_copies,
}
