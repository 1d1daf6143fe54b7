"""Faults of batches: how long they take, how they end, how they are shown."""

import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from embatch.server.details import BatchDetails, shown_batch
from embatch.server.simulation.day import Day, translated
from embatch.server.simulation.lines import SimulatedResults
from embatch.server.simulation.plans import STARTS_AT, STATES, BatchPlan
from embatch.server.weather import NewBatch, Plan, Results
from embatch.server.wire import timestamp
from embatch.server.wire_shapes import ShownBatch
from embatch.service.batch import StoredBatch
from embatch.service.store import BatchStore
from embatch.testing.cloud.answers import ApiError as CloudError
from embatch.testing.cloud.faults import Facts, FaultKind
from embatch.testing.cloud.outcomes import outcome_of
from embatch.testing.cloud.quota import check_ceilings
from embatch.testing.cloud.spoil import RESULT_KINDS
from embatch.testing.cloud.store import Doc
from embatch.testing.cloud.words import JOB_ID_CHARS, made_id
from embatch.types.state import JobState

if TYPE_CHECKING:
    from embatch.server.service import Service

_K = FaultKind
_PREFIX: Final = "BATCH_STATE_"
_FOREIGN_TYPE: Final = (
    "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch"
)


class BatchWeather(Day):
    """What befalls batches."""

    def attach(self, service: "Service") -> None:
        """Finds the batches that an earlier start left."""
        super().attach(service)
        self._dealing = threading.Lock()
        self._made = 0
        self._live: dict[str, Doc] = {}
        for batch in service.finisher.open_batches():
            plan = BatchPlan.of_batch(batch)
            model = BatchDetails.parse(batch.details).model
            self._live[batch.label] = _doc(model, plan.tokens if plan else 0)

    # How it goes

    def deal(self, new: NewBatch) -> Plan | None:
        """The plan of a new batch. ApiError 429 at a ceiling."""
        board = self._board
        facts = {
            "api": "gemini",
            "model": new.model,
            "display_name": new.display_name,
            "name": f"batches/{new.id}",
        }
        tokens = new.count_tokens() if board.peek(_K.TOKEN_CEILING, facts) else 0
        with self._dealing:
            try:
                check_ceilings(board, self._clock, list(self._live.values()), facts, tokens)
            except CloudError as error:
                raise translated(error) from None
            self._made += 1
            number = self._made
            self._live[new.id] = _doc(new.model, tokens)
            lasting = board.strike(_K.JOB_DURATION, facts)
            hidden = board.strike(_K.LISTING_DELAY, facts)
            stuck = board.strike(_K.JOB_STUCK, facts)
            job: Doc = {"cancel_s": None, "id": new.id, "extra": {}}
            outcome = outcome_of(job, board, facts, expired=False, started=True)
            own = outcome is None or outcome.state == "SUCCEEDED"
            spoiled = own or (outcome is not None and outcome.has_output)
            faults = board.strike_all(RESULT_KINDS, facts) if spoiled else []
        return BatchPlan(
            number=number,
            seed=board.seed,
            tokens=tokens,
            lasts_s=lasting.arg("seconds") + lasting.arg("row_s") * new.rows if lasting else 0.0,
            hidden_s=float(hidden.arg("seconds")) if hidden else 0.0,
            stuck=stuck.id if stuck else None,
            stuck_state=stuck.arg("state") if stuck else "RUNNING",
            outcome=None if own or outcome is None else asdict(outcome),
            faults=[fault.to_json() for fault in faults],
        ).build()

    def length_of(self, plan: Plan | None, wanted: int, full: int) -> int:
        """The full length, where the wanted one is ignored."""
        faults = plan["faults"] if plan else ()
        return full if any(fault["kind"] == _K.DIMS_IGNORED for fault in faults) else wanted

    def forget(self, batch_id: str) -> None:
        """It does not count towards ceilings any more."""
        with self._dealing:
            self._live.pop(batch_id, None)

    def cancel(self, store: BatchStore, batch: StoredBatch) -> None:
        """Ends a batch, late, in part or not at all."""
        details = BatchDetails.parse(batch.details)
        plan = BatchPlan.of(details.plan)
        if plan is None:
            store.cancel(batch.id)
            return
        if details.output is not None:
            return
        facts = _facts_of(shown_batch(batch))
        job = {"cancel_s": self._clock.now(), "id": batch.label, "extra": {}}
        started = batch.started_at is not None
        outcome = outcome_of(job, self._board, facts, expired=False, started=started)
        if outcome is None:
            return
        if not outcome.has_output and store.cancel(batch.id).state is JobState.CANCELLED:
            kept = None  # the rows that are done, as on a fair day
        else:
            kept = asdict(outcome)
        changed = replace(plan, outcome=kept, stuck=None, lasts_s=0.0).build()
        store.change_details(
            batch.id, lambda stored: replace(BatchDetails.parse(stored), plan=changed).build()
        )

    def suffices(self, batch: StoredBatch) -> bool:
        """As many rows are done as its end will show."""
        plan = BatchPlan.of_batch(batch)
        return (
            plan is not None
            and plan.end is not None
            and (batch.rows_done >= plan.served(batch.items))
        )

    def holds(self, batch: StoredBatch) -> bool:
        """It is stuck, or ends later."""
        plan = BatchPlan.of_batch(batch)
        return plan is not None and (self._is_stuck(plan) or self._age_s(batch) < plan.lasts_s)

    def results(
        self, store: BatchStore, batch: StoredBatch, stopping: Callable[[], bool]
    ) -> Results | None:
        """Its output as the day leaves it."""
        plan = BatchPlan.of_batch(batch)
        if plan is None:
            return super().results(store, batch, stopping)
        cancelled_rows = plan.end is not None and plan.end.cancelled_rows
        if min(plan.served(batch.items), batch.rows_done) == 0 and not cancelled_rows:
            return None
        return SimulatedResults(store, batch, plan, self._counts, stopping=stopping)

    def _is_stuck(self, plan: BatchPlan) -> bool:
        return plan.stuck is not None and self._board.stands(plan.stuck)

    def _age_s(self, batch: StoredBatch) -> float:
        return self._clock.now() - batch.created_at.timestamp()

    # How it is shown

    def shown(self, batch: StoredBatch) -> ShownBatch:
        """A batch that is stuck, lasting, or at the end that was dealt to it."""
        shown = shown_batch(batch)
        plan = BatchPlan.of(shown.plan)
        if plan is None:
            return shown
        if shown.ended_at is None:
            return self._running(batch, shown, plan)
        state = STATES[plan.end.state] if plan.end else shown.state
        due = datetime.fromtimestamp(batch.created_at.timestamp() + plan.lasts_s, UTC)
        return replace(
            shown,
            state=JobState.FAILED if shown.state is JobState.FAILED else state,
            succeeded=plan.succeeded or 0,
            failed=plan.failed or 0,
            ended_at=max(shown.ended_at, due),
        )

    def _running(self, batch: StoredBatch, shown: ShownBatch, plan: BatchPlan) -> ShownBatch:
        if self._is_stuck(plan):
            if not batch.done:
                return shown
            return replace(shown, state=STATES[plan.stuck_state], succeeded=0, failed=0)
        start_s, age_s = STARTS_AT * plan.lasts_s, self._age_s(batch)
        if age_s < start_s:
            return replace(shown, state=JobState.PENDING, succeeded=0, failed=0)
        if age_s >= plan.lasts_s:
            return shown
        rows = int(shown.total * (age_s - start_s) / (plan.lasts_s - start_s))
        return replace(
            shown,
            state=JobState.PROCESSING,
            succeeded=min(shown.succeeded, max(0, rows - shown.failed)),
        )

    def hides(self, batch: StoredBatch) -> bool:
        """It is not listed yet."""
        plan = BatchPlan.of_batch(batch)
        return plan is not None and self._age_s(batch) < plan.hidden_s

    def operation(
        self, batch: ShownBatch, shown: dict[str, Any], *, listed: bool
    ) -> dict[str, Any]:
        """The Operation with its own error, oddly spelled states and counts."""
        plan = BatchPlan.of(batch.plan)
        end = plan.end if plan else None
        if batch.ended_at is not None and end is not None and batch.error is None:
            shown.pop("error", None)
            if end.error is not None:
                shown["error"] = end.error
        shown["metadata"] = self.metadata(batch, shown["metadata"], listed=listed)
        if "response" not in shown:
            return shown
        only = self._board.strike(_K.OUTPUT_IN, {**self.door.facts, **_facts_of(batch)})
        if only:
            if only.arg("place") == "response":
                del shown["metadata"]["output"]
            else:
                del shown["response"]
        return shown

    def metadata(self, batch: ShownBatch, shown: dict[str, Any], *, listed: bool) -> dict[str, Any]:
        """The EmbedContentBatch with oddly spelled states and counts."""
        board, facts = self._board, {**self.door.facts, **_facts_of(batch)}
        if board.strike(_K.STATS_MISSING, facts):
            shown.pop("batchStats", None)
        elif listed and board.strike(_K.STALE_STATS, facts):
            shown["batchStats"] = {
                "requestCount": str(batch.total), "pendingRequestCount": str(batch.total)
            }  # fmt: skip
        strange = board.strike(_K.STATE_WORD, facts)
        if strange and (batch.ended_at is not None) == (strange.arg("when") == "end"):
            shown["state"] = str(strange.arg("word"))
        elif prefix := board.strike(_K.STATE_PREFIX, facts):
            shown["state"] = prefix.arg("prefix") + shown["state"].removeprefix(_PREFIX)
        return shown

    def batch_page(self, shown: dict[str, Any], size: int) -> dict[str, Any]:
        """Generate jobs of others stand behind the last batch."""
        del size
        foreign = self._board.strike(_K.FOREIGN_JOBS, self.door.facts)
        if foreign is None or "nextPageToken" in shown:
            return shown
        others = [self._generate_job(n) for n in range(1, int(foreign.arg("count")) + 1)]
        return {**shown, "operations": [*shown.get("operations", ()), *others]}

    def _generate_job(self, number: int) -> dict[str, Any]:
        name = "batches/" + made_id(self._board.seed, "generate", number, JOB_ID_CHARS)
        metadata = {
            "@type": _FOREIGN_TYPE,
            "model": "models/gemini-2.5-flash",
            "displayName": f"others-{number}",
            "createTime": timestamp(datetime.fromtimestamp(self._clock.now() - 3600, UTC)),
            "state": "BATCH_STATE_RUNNING",
            "name": name,
        }
        return {"name": name, "metadata": metadata}


def _doc(model: str, tokens: int) -> Doc:
    return {"api": "gemini", "model": model, "tokens": tokens}


def _facts_of(batch: ShownBatch) -> Facts:
    return {
        "api": "gemini",
        "model": batch.model,
        "display_name": batch.display_name,
        "name": f"batches/{batch.id}",
    }
