"""A run that a test steps through itself, with a clock that it moves."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from embatch.datasets.output import OutputPaths
from embatch.datasets.source import open_source
from embatch.datasets.spool import spool_data
from embatch.journal.leases import Claim
from embatch.journal.store import Journal
from embatch.runs.advance import advance
from embatch.runs.config import RunConfig
from embatch.runs.context import RunContext
from embatch.runs.finish import finish_run
from embatch.runs.outcomes import After, Outcome, Stuck
from embatch.runs.planning import advance_planning
from embatch.runs.start import start_run
from embatch.testing.clock import FakeClock
from embatch.testing.engine import FakeEngine
from embatch.testing.provider import FakeProvider
from embatch.types.state import BatchState, RunState

DIMS = 8


class Replay:
    """A run whose every step the test takes itself, in no time."""

    def __init__(
        self,
        folder: Path,
        provider: FakeProvider,
        texts: list[str],
        *,
        planned: bool = True,
        **settings: Any,
    ) -> None:
        """`settings` are those of RunConfig."""
        self.clock = FakeClock()
        self.provider = provider
        self.texts = texts
        self.journal = Journal.open(f"sqlite:///{folder / 'journal.db'}")
        paths = OutputPaths.for_out(str(folder / "out"))
        spool = paths.work / "spool"
        source = open_source([str(spool_data(texts, spool))], spool=spool)
        config = RunConfig(
            inputs=tuple(str(file.path) for file in source.files),
            out=str(paths.out),
            provider="fake",
            text=source.text_column,
            **settings,
        )
        run = start_run(self.journal, config, source, provider.space, now=self.clock())
        self.context = RunContext(
            journal=self.journal,
            run_id=run.id,
            config=config,
            space=provider.space,
            paths=paths,
            provider=provider,
            clock=self.clock,
            chance=random.Random(1),
        )
        if planned:
            self.plan()

    def plan(self) -> None:
        """Every planning step that is left."""
        while self.context.run().state is RunState.PLANNING:
            self.plan_once()

    def plan_once(self) -> None:
        """One planning step."""
        token = self.journal.leases.claim_planning(self.context.run_id, owner="test", lease_s=60)
        assert token is not None
        advance_planning(self.context, token, lambda: False)
        self.journal.leases.release_planning(self.context.run_id, token)

    def claim(self) -> Claim | None:
        """The lease of the next step that is due, None when none is."""
        return self.journal.leases.claim_step(
            self.context.run_id,
            owner="test",
            lease_s=60,
            now=self.clock(),
            max_in_flight=self.provider.limits.max_in_flight_batches,
        )

    def step(self) -> Outcome | None:
        """The next step that is due, None when none is."""
        claim = self.claim()
        if claim is None:
            return None
        outcome = advance(claim, self.context)
        wait, reason = 0.0, "person" if isinstance(outcome, Stuck) else None
        if isinstance(outcome, After):
            wait, reason = outcome.seconds, outcome.reason
        self.journal.leases.release(
            claim.batch.id,
            claim.token,
            next_at=self.clock() + wait,
            blocked_reason=reason,
            blocked_detail=getattr(outcome, "error", None),
        )
        return outcome

    def work(self, *, steps: int = 2_000) -> list[Outcome]:
        """Steps until nothing is left or a batch is stuck; time jumps to what is due next."""
        outcomes: list[Outcome] = []
        for _ in range(steps):
            outcome = self.step()
            if outcome is not None:
                outcomes.append(outcome)
                if isinstance(outcome, Stuck):
                    return outcomes
                continue
            due = self.journal.leases.next_due(self.context.run_id)
            if due is None:
                return outcomes
            self.clock.advance(max(0.01, due - self.clock()))
        raise AssertionError(f"the run is not done after {steps} steps")

    def states(self) -> list[BatchState]:
        return [batch.state for batch in self.journal.batches.walk(self.context.run_id)]

    def written(self) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for path in self.context.paths.parts.glob("part-*.parquet"):
            table = pq.read_table(path)
            matrix = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, DIMS)
            for row, vector in zip(table["row"].to_pylist(), matrix, strict=True):
                assert row not in found
                found[row] = vector
        return found

    def assert_right(self, *, failed: set[int] = frozenset()) -> None:
        """Every row once with its own vector, the failed ones in the failures."""
        found = self.written()
        failures = {failure.row for failure in self.journal.failures(self.context.run_id)}
        assert failures == failed
        assert found.keys() == set(range(len(self.texts))) - failed
        for row, vector in found.items():
            (truth,) = FakeEngine(dims=DIMS).expected([self.texts[row]])
            assert np.array_equal(vector, truth)


Replays = Callable[..., Replay]


def failing(times: int, error: Exception) -> Callable[[str], None]:
    """Raises `error` in the first `times` calls."""
    left = itertools.count()

    def hook(_: str) -> None:
        if next(left) < times:
            raise error

    return hook


def finish(run: Replay) -> Outcome:
    """The run's last step."""
    token = run.journal.leases.claim_planning(run.context.run_id, owner="test", lease_s=60)
    assert token is not None
    outcome = finish_run(run.context, token)
    run.journal.leases.release_planning(run.context.run_id, token)
    return outcome


def until_stuck(run: Replay) -> Stuck:
    """Works until a batch waits for a person."""
    last = run.work()[-1]
    assert isinstance(last, Stuck)
    return last


def bought_twice(run: Replay) -> dict[str, int]:
    """Rows on the books as bought more than once, by the reason."""
    return run.journal.ledger.again(run.context.run_id)


def work_until(run: Replay, state: BatchState) -> None:
    """Steps until the first batch is in a state."""
    for _ in range(200):
        if run.states()[0] is state:
            return
        if run.step() is None:
            due = run.journal.leases.next_due(run.context.run_id)
            assert due is not None
            run.clock.advance(max(0.01, due - run.clock()))
    raise AssertionError(f"no batch became {state}")
