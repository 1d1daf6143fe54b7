"""The journal's figures as metrics have them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from embatch.journal.measures import BatchSums, LedgerSums, Measures, RunSums
from embatch.journal.purchases import KindSums
from embatch.journal.store import Journal
from embatch.observe.figures import (
    ROW_STATES,
    Figures,
    ModelFigures,
    QuotaFigures,
    RunFigures,
)
from embatch.runs.accounts import saved_by
from embatch.runs.cost import price_of
from embatch.runs.quota import Belief
from embatch.types.embedding import Space
from embatch.types.state import FINAL_RUN_STATES, BatchState, RunState

OPEN_RUNS: Final = 100
"""Runs that are not over and have figures of their own: the newest. Others count in the sums."""
_S = BatchState
_STANDING: Final[Mapping[BatchState, str]] = {
    **dict.fromkeys((_S.SUBMITTING, _S.SUBMITTED), "in_flight"),
    **dict.fromkeys((_S.READY, _S.COLLECTED), "collecting"),
    _S.PUBLISHED: "written",
}
"""Where the rows of a batch stand; in all other states but `split` they wait."""
_WITH_PARTS: Final = (_S.COLLECTED, _S.PUBLISHED)
"""From here on a batch's failed rows are counted as such."""


def read_figures(journal: Journal, *, now: float) -> Figures:
    """Everything that metrics tell of a journal at `now`."""
    found = journal.measures.read(now=now)
    batches: dict[str, list[BatchSums]] = defaultdict(list)
    for one in found.batches:
        batches[one.run_id].append(one)
    rows = {run.id: _rows(batches[run.id], run.failed) for run in found.runs}
    states = Counter(run.state for run in found.runs)
    return Figures(
        runs={state.value: states[state.value] for state in RunState},
        models=_models(found, batches, rows, now),
        open_runs=[
            RunFigures(
                id=run.id,
                provider=_place(run)[0],
                model=_place(run)[1],
                state=run.state,
                expected_rows=run.rows,
                rows=rows[run.id],
            )
            for run in [run for run in found.runs if not _is_over(run)][:OPEN_RUNS]
        ],
        quotas=[
            _quota(journal, scope, values, now) for scope, values in sorted(found.beliefs.items())
        ],
        retries=found.retries,
        notifications_waiting=found.notifications_waiting,
        notifications_given_up=found.notifications_given_up,
        workers_alive=sum(worker.alive for worker in journal.workers.every()),
    )


def _is_over(run: RunSums) -> bool:
    return RunState(run.state) in FINAL_RUN_STATES


def _place(run: RunSums) -> tuple[str, str]:
    """Provider and model; of a model that is a folder, its name."""
    model = str(run.space.get("model"))
    name = PurePath(model).name if PurePath(model).is_absolute() else model
    return str(run.space.get("provider")), name


def _rows(batches: Iterable[BatchSums], failed: int) -> Mapping[str, int]:
    rows = dict.fromkeys(ROW_STATES, 0) | {"failed": failed}
    for one in batches:
        if one.state is not BatchState.SPLIT:
            where = _STANDING.get(one.state, "waiting")
            rows[where] += one.written if one.state in _WITH_PARTS else one.items
    return rows


def _models(
    found: Measures,
    batches: Mapping[str, Sequence[BatchSums]],
    rows: Mapping[str, Mapping[str, int]],
    now: float,
) -> list[ModelFigures]:
    together: dict[tuple[str, str], list[RunSums]] = defaultdict(list)
    for run in found.runs:
        together[_place(run)].append(run)
    bought: dict[str, list[LedgerSums]] = defaultdict(list)
    for line in found.ledger:
        bought[line.run_id].append(line)
    figures = []
    for (provider, model), runs in sorted(together.items()):
        states: Counter[str] = Counter()
        standing: Counter[str] = Counter()
        for run in runs:
            standing.update(rows[run.id])
            for one in batches[run.id]:
                states[one.state.value] += one.batches
        money = [_money(run, bought[run.id], batches[run.id]) for run in runs]
        spent, reserved, saved = (_total([one[n] for one in money]) for n in range(3))
        figures.append(
            ModelFigures(
                provider=provider,
                model=model,
                batches=states,
                rows={state: standing[state] for state in ROW_STATES},
                oldest_pending_s=_oldest(runs, batches, now),
                spent_usd=spent,
                reserved_usd=reserved,
                saved_usd=saved,
            )
        )
    return figures


def _oldest(
    runs: Iterable[RunSums], batches: Mapping[str, Sequence[BatchSums]], now: float
) -> float | None:
    moments = [
        one.oldest_at
        for run in runs
        if not _is_over(run)
        for one in batches[run.id]
        if one.state is BatchState.SUBMITTED and one.oldest_at is not None
    ]
    return max(0.0, now - min(moments)) if moments else None


def _money(
    run: RunSums, bought: Iterable[LedgerSums], batches: Iterable[BatchSums]
) -> tuple[float | None, float | None, float | None]:
    """Dollars spent, reserved and saved; None where nobody knows the price."""
    price = price_of(Space.from_json(dict(run.space)))
    if price is None:
        return None, None, None
    lines = list(bought)
    kinds = {line.kind: KindSums(rows=line.rows, tokens=line.tokens) for line in lines}
    planned: Counter[str] = Counter()
    for one in batches:
        planned[one.kind] += one.planned
    saved = saved_by(
        price, kinds.get("batch", KindSums()), copies=planned["copies"], reused=planned["reused"]
    )
    spent = math.fsum(line.spent_usd for line in lines)
    return spent, math.fsum(line.reserved_usd for line in lines), saved.usd


def _total(amounts: Sequence[float | None]) -> float | None:
    """The sum of what is known; None when nothing is."""
    known = [amount for amount in amounts if amount is not None]
    return math.fsum(known) if known else None


def _quota(journal: Journal, scope: str, values: Mapping[str, Any], now: float) -> QuotaFigures:
    belief, load = Belief.from_json(values), journal.quotas.occupancy(scope, now=now)
    provider, _, rest = scope.partition("/")
    account, _, model = rest.rpartition("/")
    return QuotaFigures(
        provider=provider,
        account=account,
        model=model,
        tokens=load.tokens,
        jobs=load.jobs,
        ceiling_tokens=belief.tokens.most,
        ceiling_jobs=belief.jobs.most,
        wait_s=max(0.0, belief.hold_until - now),
        accepted=belief.accepted,
        refused=belief.refused,
    )
