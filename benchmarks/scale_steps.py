"""The journal's side of every step of a batch, with a provider that answers at once."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from embatch.journal.leases import Claim
from embatch.journal.ledger import reservation, settlement
from embatch.journal.purchases import Bought, Purchase, audit_ref
from embatch.journal.quotas import Occupancy, Ruling
from embatch.journal.records import BatchRecord, NewBatch
from embatch.journal.store import Journal
from embatch.types.state import BatchEvent, BatchState, RunEvent, RunState

SCOPE = "simulated/one-quota"
ITEMS = 10_000
IN_FLIGHT = 50
LEASE_S = 60.0
ENTERED_AT_ONCE = 500
POLLED_S = 30.0
_S, _E = BatchState, BatchEvent


@dataclass
class Driver:
    """Takes the steps of a run as an executor would, each with a claim and a release of its own."""

    journal: Journal
    run_id: str
    owner: str = "simulation"
    now: float = 1_000_000.0
    """The simulation's clock, in seconds."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """What each call took, by its name."""
    steps: int = 0
    published: int = 0

    def enter(self, batches: int, *, first: int = 0) -> None:
        """Plans a run of so many batches under a cap that it never reaches."""
        journal = self.journal
        journal.create_run(
            run_id=self.run_id,
            out=f"/simulated/{self.run_id}",
            config={"max_cost_usd": 1e9, "audit": "off"},
            space={"provider": "simulated"},
            now=self.now,
        )
        token = journal.leases.claim_planning(self.run_id, owner=self.owner, lease_s=3600.0)
        assert token is not None
        for start in range(first, first + batches, ENTERED_AT_ONCE):
            numbers = range(start, min(start + ENTERED_AT_ONCE, first + batches))
            self._timed(
                "add_planned",
                journal.batches.add_planned,
                self.run_id,
                token,
                batches=[_new(number) for number in numbers],
                failures=[],
                plan={"phase": "stage", "row": numbers[-1]},
                now=self.now,
            )
        journal.transition_run(self.run_id, RunEvent.PLANNED, expected=RunState.PLANNING, now=1.0)
        journal.leases.release_planning(self.run_id, token)

    def drive(self, *, until_published: int) -> None:
        """Takes steps until so many batches more are published."""
        target = self.published + until_published
        while self.published < target and (claim := self.claim()) is not None:
            self.step(claim)

    def claim(self) -> Claim | None:
        """The next step; the clock goes on to the next one that is due when none is."""
        for _ in range(3):
            found: Claim | None = self._timed(
                "claim_step",
                self.journal.leases.claim_step,
                self.run_id,
                owner=self.owner,
                lease_s=LEASE_S,
                now=self.now,
                max_in_flight=IN_FLIGHT,
            )
            if found is not None:
                return found
            due = self._timed("next_due", self.journal.leases.next_due, self.run_id)
            self._timed("has_steps", self.journal.leases.has_steps, self.run_id)
            if due is None:
                return None
            self.now = max(self.now, due)
        return None

    def step(self, claim: Claim) -> None:
        """What a step journals, by the state that the batch is in."""
        began = time.perf_counter()
        batch, token = claim.batch, claim.token
        next_at = self.now
        match batch.state:
            case _S.PLANNED:
                self._begin(batch, token)
            case _S.UPLOADED:
                batch = self._move(
                    batch, token, _E.SUBMIT_INTENDED, submitted_at=self.now, also=[self._admit()]
                )
                self._move(
                    batch, token, _E.SUBMIT_CONFIRMED, remote_name="jobs/1", also=[self._admit()]
                )
                next_at += POLLED_S
            case _S.SUBMITTED if batch.polls == 0:
                self._timed("note", self.journal.batches.note, batch, token, now=self.now, polls=1)
                next_at += POLLED_S
            case _S.SUBMITTED:
                self._move(batch, token, _E.RESULTS_READY, polls=0, results_until=self.now + 1e6)
            case _S.READY:
                self._collect(batch, token)
            case _S.COLLECTED:
                done = self._move(batch, token, _E.PUBLISHED, part="p", finished_at=self.now)
                self._timed(
                    "note", self.journal.batches.note, done, token, now=self.now, cleared_at=1.0
                )
                self.published += 1
            case other:
                raise AssertionError(other)
        self._timed("release", self.journal.leases.release, batch.id, token, next_at=next_at)
        self.seconds["step"].append(time.perf_counter() - began)
        self.steps += 1
        self.now += 0.001

    def _begin(self, batch: BatchRecord, token: str) -> None:
        label = f"embatch:simulated:{self.run_id}:{batch.number}"
        common = {"run_id": self.run_id, "batch_id": batch.id, "tokens_estimated": 1000}
        job = Purchase(
            ref=label, kind="batch", rows=ITEMS, tokens_bound=2000, usd_bound=0.01, **common
        )
        audit = Purchase(
            ref=audit_ref(label), kind="audit", rows=8, tokens_bound=20, usd_bound=0.001, **common
        )
        begun = self._move(
            batch,
            token,
            _E.UPLOAD_STARTED,
            label=label,
            attempt=1,
            also=[reservation(job, audit, now=self.now)],
        )
        self._move(begun, token, _E.UPLOAD_FINISHED, input_ref="files/1")

    def _collect(self, batch: BatchRecord, token: str) -> None:
        bought = Bought(rows=ITEMS, tokens=900)
        count = self.journal.calibrations.counting(
            "simulated", text_bytes=4000, tokens=900, now=self.now
        )
        self._move(
            batch,
            token,
            _E.COLLECTED,
            also=[settlement(str(batch.label), bought, now=self.now), count],
            succeeded=ITEMS,
            tokens=900,
            part_temp="t",
            part_sha256="s",
            part_rows=ITEMS,
            part_row_min=batch.row_min,
            part_row_max=batch.row_max,
            part_good=b"\xff" * 1250,
        )

    def _admit(self) -> Any:
        def decide(values: Any, load: Occupancy) -> Ruling:
            return Ruling(belief={"asked": values.get("asked", 0) + 1, "jobs": load.jobs})

        return self.journal.quotas.changing(SCOPE, decide, now=self.now)

    def _move(self, batch: BatchRecord, token: str, event: BatchEvent, **facts: Any) -> BatchRecord:
        moved: BatchRecord = self._timed(
            f"transition {event}",
            self.journal.batches.transition,
            batch,
            token,
            event,
            now=self.now,
            scope=SCOPE,
            **facts,
        )
        return moved

    def _timed(self, name: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            self.seconds[name].append(time.perf_counter() - began)


def _new(number: int) -> NewBatch:
    return NewBatch(
        kind="embed",
        items=ITEMS,
        row_min=number * ITEMS,
        row_max=number * ITEMS + ITEMS - 1,
        stage=f"stage/{number:06}.arrow",
        tokens_estimated=1000,
        tokens_bound=2000,
        text_bytes=4000,
    )
