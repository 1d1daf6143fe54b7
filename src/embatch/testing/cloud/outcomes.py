"""How a job ends: its state, its error, and how much of it was served."""

from dataclasses import dataclass
from typing import Any

from embatch.testing.cloud.board import FaultBoard
from embatch.testing.cloud.faults import Facts, FaultKind
from embatch.testing.cloud.store import Doc

_K = FaultKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a job."""

    state: str
    error: dict[str, Any] | None = None
    share: float = 0.0
    """Share of the rows that were served, in input order."""
    cancelled_rows: bool = False
    """Rows not served stand in the output with code 1."""

    @property
    def has_output(self) -> bool:
        """There is something to fetch."""
        return self.share > 0 or self.cancelled_rows


def outcome_of(
    job: Doc, board: FaultBoard, facts: Facts, *, expired: bool, started: bool
) -> Outcome | None:
    """How the job ends now; None when it takes no notice of being cancelled and goes on."""
    if job["cancel_s"] is not None:
        return _cancelled(job, board, facts, started=started)
    if expired or board.strike(_K.JOB_EXPIRED, facts):
        return Outcome(
            state="EXPIRED",
            error={"code": 4, "message": "The batch expired before it could be completed."},
        )
    failed = board.strike(_K.JOB_FAILED, facts)
    if failed:
        error = {"code": int(failed.arg("code")), "message": failed.arg("message")}
        return Outcome(state="FAILED", error=error, share=float(failed.arg("share")))
    if job["extra"].get("bad_input") or board.strike(_K.INPUT_LOST, facts):
        message = job["extra"].get("bad_input") or "The input file could not be read."
        return Outcome(state="FAILED", error={"code": 5, "message": message})
    stopped = board.strike(_K.JOB_CANCELLED, facts)
    if stopped:
        return _plain_cancel(job, share=float(stopped.arg("share")), started=True)
    return Outcome(state="SUCCEEDED", share=1.0)


def _cancelled(job: Doc, board: FaultBoard, facts: Facts, *, started: bool) -> Outcome | None:
    if board.strike(_K.CANCEL_IGNORED, facts):
        return None
    late = board.strike(_K.CANCEL_LATE, facts)
    if late:
        return Outcome(state="SUCCEEDED", share=float(late.arg("share")), cancelled_rows=True)
    partial = board.strike(_K.CANCEL_PARTIAL, facts)
    share = float(partial.arg("share")) if partial else 0.0
    return _plain_cancel(job, share=share, started=started)


def _plain_cancel(job: Doc, *, share: float, started: bool) -> Outcome:
    if started:
        error = {"code": 1, "message": "The batch was cancelled."}
    else:
        error = {"code": 13, "message": f"Batch {job['id']} failed without error."}
    return Outcome(state="CANCELLED", error=error, share=share)
