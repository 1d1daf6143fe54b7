"""Quotas: the bodies of a 429, and the hidden ceilings that lead to one."""

import time
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

from embatch.testing.cloud.answers import ApiError
from embatch.testing.cloud.board import FaultBoard
from embatch.testing.cloud.clock import CloudClock
from embatch.testing.cloud.faults import Facts, Fault, FaultKind
from embatch.testing.cloud.store import Doc

_QUOTA_NAMES = {"gemini-embedding-001": "gemini-embedding-1.0"}
"""Quota messages call models by internal names."""


def rate_limit_error(fault: Fault, model: str | None) -> ApiError:
    """A 429 with the hints that the fault asks for; batch calls get none but a Help link."""
    hints = fault.arg("hints")
    delay = fault.arg("retry_delay_s")
    headers = {}
    wait_s = fault.arg("retry_after_s")
    if wait_s is not None:
        until = formatdate(time.time() + wait_s, usegmt=True)
        headers["Retry-After"] = until if fault.arg("as_date") else str(wait_s)
    details: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [
                {
                    "description": "Learn more about Gemini API quotas",
                    "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
                }
            ],
        }
    ]
    if hints == "none":
        message = "Resource has been exhausted (e.g. check quota)."
        return ApiError(429, message, details=details, headers=headers)
    period = "Minute" if hints == "minute" else "Day"
    details.append(
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [
                {
                    "quotaMetric": "generativelanguage.googleapis.com/"
                    "embed_content_free_tier_requests",
                    "quotaId": f"EmbedContentRequestsPer{period}PerUserPerProjectPerModel-FreeTier",
                    "quotaDimensions": {
                        "model": _QUOTA_NAMES.get(model or "", model or "unknown"),
                        "location": "global",
                    },
                    "quotaValue": "100" if period == "Minute" else "1000",
                }
            ],
        }
    )
    if hints in ("minute", "misleading"):
        details.append(
            {
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": f"{delay:g}s",
            }
        )
    message = f"You exceeded your current quota. Please retry in {delay:g}s."
    return ApiError(429, message, details=details, headers=headers)


def check_ceilings(
    board: FaultBoard, clock: CloudClock, live: Sequence[Doc], facts: Facts, tokens: int
) -> None:
    """Refuses a create that would go over a ceiling of tokens or of jobs.

    `live` are the jobs of its API that have not ended, with their `model` and `tokens`.
    """
    model = facts.get("model")
    for fault in board.peek(FaultKind.JOB_CEILING, facts):
        if len(live) >= fault.arg("jobs"):
            board.strike(FaultKind.JOB_CEILING, facts)
            raise rate_limit_error(fault, model)
    enqueued = sum(job["tokens"] for job in live if job["model"] == model)
    for fault in board.peek(FaultKind.TOKEN_CEILING, facts):
        if enqueued + tokens > _ceiling_now(board, clock, fault):
            board.strike(FaultKind.TOKEN_CEILING, facts)
            raise rate_limit_error(fault, model)


def _ceiling_now(board: FaultBoard, clock: CloudClock, fault: Fault) -> float:
    elapsed = clock.now() - board.set_at(fault)
    ceiling = float(fault.arg("tokens"))
    for since_s, tokens in fault.arg("steps"):
        if elapsed >= since_s:
            ceiling = float(tokens)
    return ceiling
