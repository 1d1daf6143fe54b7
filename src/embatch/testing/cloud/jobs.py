"""The life of a batch job: created, due by the clock, settled once, billed once."""

import hashlib
import shutil
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from embatch.testing.cloud.answers import ApiError
from embatch.testing.cloud.core import Core
from embatch.testing.cloud.faults import Facts, FaultKind
from embatch.testing.cloud.outcomes import Outcome, outcome_of
from embatch.testing.cloud.outputs import write_output
from embatch.testing.cloud.quota import check_ceilings
from embatch.testing.cloud.results import StoppedError, Tally
from embatch.testing.cloud.spoil import RESULT_KINDS, Spoiler
from embatch.testing.cloud.store import Doc
from embatch.testing.cloud.words import JOB_ID_CHARS, made_id

EXPIRY_S: Final = {"gemini": 48 * 3600.0, "vertex": 72 * 3600.0}
"""A job that waited or ran this long is EXPIRED."""
_STARTS_AT: Final = 0.2
"""Share of a job's time after which it is RUNNING."""
_K = FaultKind


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What a create asks for."""

    api: str
    model: str
    display_name: str
    priority: int
    source: Path
    """The input rows; the job takes the file over."""
    rows: int
    tokens: int
    extra: Doc
    """What the API's own view needs."""


def facts_of(job: Doc) -> Facts:
    """What faults are matched against."""
    return {key: job[key] for key in ("api", "model", "display_name", "name")}


class Jobs:
    """All jobs of the cloud."""

    def __init__(self, core: Core, crashes: list[str]) -> None:
        self._core = core
        self._crashes = crashes
        self._settling = threading.RLock()
        self._changed = threading.Condition()
        self._dirty = False
        self._thread = threading.Thread(target=self._work, name="fake-cloud-jobs")

    # What is.

    def get(self, name: str) -> Doc | None:
        """A job by its full name."""
        return self._core.store.get("job", name)

    def all(self) -> list[Doc]:
        """Every job, oldest first."""
        return self._core.store.all("job")

    def shown(self, api: str) -> list[Doc]:
        """Jobs of one API that were not deleted, oldest first."""
        return [job for job in self.all() if job["api"] == api and not job.get("deleted")]

    def live(self) -> list[Doc]:
        """Jobs that have not ended."""
        return [job for job in self.all() if job["state"] is None]

    def state_word(self, job: Doc) -> str:
        """PENDING, RUNNING, CANCELLING or how it ended."""
        if job["state"] is not None:
            return str(job["state"])
        if job["stuck"]:
            return str(job["stuck_state"])
        if job["cancel_s"] is not None and job["api"] == "vertex":
            return "CANCELLING"
        return "PENDING" if self._core.clock.now() < self._start_s(job) else "RUNNING"

    def progress(self, job: Doc) -> tuple[int, int]:
        """Rows succeeded and failed by now; a running job moves on evenly."""
        if job["state"] is not None:
            return job["succeeded"], job["failed"]
        if job["stuck"] or self.state_word(job) == "PENDING":
            return 0, 0
        start, now = self._start_s(job), self._core.clock.now()
        share = (now - start) / max(job["due_s"] - start, 1e-9)
        return min(job["rows"] - 1, int(job["rows"] * share)), 0

    def output_paths(self, job: Doc) -> list[Path]:
        """Files that hold the answer; empty without one."""
        return [self._core.store.folder / place for place in job["output"] or ()]

    @staticmethod
    def _start_s(job: Doc) -> float:
        return float(job["created_s"] + _STARTS_AT * (job["due_s"] - job["created_s"]))

    # What happens.

    def create(self, new: NewJob) -> Doc:
        """Makes a job, unless a ceiling forbids it."""
        core = self._core
        facts = {"api": new.api, "model": new.model, "display_name": new.display_name}
        with core.lock:
            live = [job for job in self.live() if job["api"] == new.api]
            check_ceilings(core.board, core.clock, live, facts, new.tokens)
            number = core.store.next_number("job")
            job_id = made_id(core.settings.seed, "job", number, JOB_ID_CHARS)
            name = f"batches/{job_id}"
            if new.api == "vertex":
                digits = int(hashlib.sha256(job_id.encode()).hexdigest()[:16], 16)
                job_id = str(10**18 + digits % (9 * 10**18))
                name = f"{new.extra['parent']}/batchPredictionJobs/{job_id}"
            facts["name"] = name
            folder = core.store.folder / "jobs" / job_id
            folder.mkdir()
            new.source.replace(folder / "input.jsonl")
            now = core.clock.now()
            job = {
                "name": name,
                "id": job_id,
                "api": new.api,
                "model": new.model,
                "display_name": new.display_name,
                "priority": new.priority,
                "rows": new.rows,
                "tokens": new.tokens,
                "created_s": now,
                "updated_s": now,
                "due_s": now + self._duration_s(new, facts),
                "listed_s": now + self._listing_delay_s(facts),
                "ended_s": None,
                "cancel_s": None,
                "stuck": None,
                "state": None,
                "error": None,
                "output": None,
                "succeeded": 0,
                "failed": 0,
                "extra": new.extra,
            }
            core.store.put("job", name, job)
            core.store.count("created", new.display_name)
        self.wake()
        return job

    def _duration_s(self, new: NewJob, facts: Facts) -> float:
        fault = self._core.board.strike(_K.JOB_DURATION, facts)
        if fault:
            return float(fault.arg("seconds") + fault.arg("row_s") * new.rows)
        return self._core.settings.job_duration_s

    def _listing_delay_s(self, facts: Facts) -> float:
        fault = self._core.board.strike(_K.LISTING_DELAY, facts)
        return float(fault.arg("seconds")) if fault else 0.0

    def update(self, name: str, **changes: Any) -> Doc:
        """Changes fields of a job. ApiError 404 when it is gone."""
        with self._core.store.transaction():
            job = self.get(name)
            if job is None:
                raise ApiError(404, "Requested entity was not found.")
            job.update(changes, updated_s=self._core.clock.now())
            self._core.store.put("job", name, job)
        self.wake()
        return job

    def cancel(self, name: str) -> None:
        """Asks for a job's end; it comes later. On a finished job nothing happens."""
        with self._core.store.transaction():
            job = self.get(name)
            if job is None:
                raise ApiError(404, "Requested entity was not found.")
            if job["state"] is None and job["cancel_s"] is None:
                self.update(name, cancel_s=self._core.clock.now())

    def delete(self, name: str) -> None:
        """Hides a job with its results. One that runs goes on unseen, and is charged."""
        job = self.update(name, deleted=True)
        if job["state"] is not None:
            self._forget(job)

    def _forget(self, job: Doc) -> None:
        self._core.store.delete("job", job["name"])
        shutil.rmtree(self._core.store.folder / "jobs" / job["id"], ignore_errors=True)

    # How it ends.

    def finish(self, name: str) -> None:
        """Brings one job to its end now, whatever the clock says; a stuck one too."""
        with self._settling:
            job = self.update(name, due_s=self._core.clock.now(), stuck=None)
            if job["state"] is None:
                self._settle(job, forced=True)

    def settle_due(self) -> None:
        """Brings every job that is due to its end, the most urgent first."""
        with self._settling:
            for job in sorted(self.live(), key=lambda job: (-job["priority"], job["seq"])):
                if self._core.stopping.is_set():
                    return
                if self._is_due(job):
                    self._settle(job, forced=False)

    def _is_due(self, job: Doc) -> bool:
        due_s = min(job["due_s"], job["created_s"] + EXPIRY_S[job["api"]])
        return job["cancel_s"] is not None or due_s <= self._core.clock.now()

    def _settle(self, job: Doc, *, forced: bool) -> None:
        core = self._core
        now = core.clock.now()
        job = self.get(job["name"]) or {"state": "DELETED"}
        if job["state"] is not None:
            return
        expired = now >= job["created_s"] + EXPIRY_S[job["api"]]
        if not forced and not expired and job["cancel_s"] is None and self._sticks(job):
            return
        outcome = outcome_of(
            job, core.board, facts_of(job), expired=expired, started=now > self._start_s(job)
        )
        if outcome is None:
            job = self.update(job["name"], cancel_s=None)
            if forced:
                self._settle(job, forced=True)
            return
        if "plan" not in job:
            plan = core.board.strike_all(RESULT_KINDS, facts_of(job)) if outcome.has_output else []
            job["plan"] = [fault.to_json() for fault in plan]
            core.store.put("job", job["name"], job)
        tally, output, spoiler = Tally(failed=0), None, None
        if outcome.has_output:
            try:
                tally, output, spoiler = write_output(core, job, outcome)
            except StoppedError:
                return
        self._close(job, outcome, tally, output, spoiler)

    def _sticks(self, job: Doc) -> bool:
        board = self._core.board
        if job["stuck"] and board.stands(job["stuck"]):
            return True
        fault = board.strike(_K.JOB_STUCK, facts_of(job))
        if fault is None:
            return False
        self.update(job["name"], stuck=fault.id, stuck_state=fault.arg("state"))
        return True

    def _close(
        self,
        job: Doc,
        outcome: Outcome,
        tally: Tally,
        output: list[str] | None,
        spoiler: Spoiler | None,
    ) -> None:
        core, name = self._core, job["name"]
        if output and job["api"] == "vertex":
            core.publish({**job, "output": output})
        state = outcome.state
        if state == "SUCCEEDED" and tally.failed and job["api"] == "vertex":
            partial = core.board.strike(_K.JOB_PARTIAL, facts_of(job))
            state = "PARTIALLY_SUCCEEDED" if partial else state
        if tally.succeeded:
            digests = core.store.folder / "jobs" / job["id"] / "digests"
            core.ledger.charge_batch(name, job["model"], digests, core.stopping)
        with core.store.transaction():
            current = self.get(name)
            if current is None or current["state"] is not None:
                return
            now = core.clock.now()
            current.update(
                state=state,
                error=outcome.error,
                output=output,
                succeeded=tally.succeeded,
                failed=tally.failed,
                ended_s=now,
                updated_s=now,
            )
            core.store.put("job", name, current)
            if tally.succeeded:
                core.ledger.charge_job(
                    name, job["display_name"], rows=tally.succeeded, tokens=tally.tokens
                )
            for what, digest in spoiler.seen if spoiler else ():
                core.store.count(what, digest)
        if current.get("deleted"):
            self._forget(current)

    # Who sees to it.

    def start(self) -> None:
        """Begins to watch the clock."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch; a job half written is written anew at the next start."""
        self.wake()
        self._thread.join()

    def wake(self) -> None:
        """Has the watch look again."""
        with self._changed:
            self._dirty = True
            self._changed.notify_all()

    def _work(self) -> None:
        core = self._core
        while not core.stopping.is_set():
            try:
                self.settle_due()
                wait_s = self._until_next_s()
            except Exception:  # noqa: BLE001 # a thread's outer edge: recorded, the owner raises it
                self._crashes.append(traceback.format_exc())
                return
            with self._changed:
                if not self._dirty and not core.stopping.is_set():
                    self._changed.wait(wait_s)
                self._dirty = False

    def _until_next_s(self) -> float | None:
        if self._core.clock.manual:
            return None
        now = self._core.clock.now()
        waits = [job["due_s"] - now for job in self.live() if not job["stuck"]]
        return max(0.001, min(waits)) if waits else 3600.0
