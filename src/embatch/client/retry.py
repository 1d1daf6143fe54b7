"""What an answer means, and whether and when to ask again. Data and judgement, no sleeping."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from embatch.errors import (
    AuthenticationError,
    EmbatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    RateLimitError,
)
from embatch.transport import Lost, Response


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a call is tried again."""

    attempts: int = 5
    """Tries in all; 1 never tries again."""
    first_wait_s: float = 1.0
    """Wait after the first failure; it doubles each time."""
    longest_wait_s: float = 60.0
    """No wait of our own is longer."""
    patience_s: float = 120.0
    """A service that asks for a longer wait gets none: the error goes to the caller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The service did it."""

    response: Response


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """It did not work now and may work later."""

    wait_s: float
    error: EmbatchError
    """To raise when there is no other try."""
    ambiguous: bool
    """The service may have done it all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """The token is not accepted: get a new one, once."""

    error: EmbatchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Trying again changes nothing."""

    error: EmbatchError


Verdict = Accepted | Again | Stale | Refused

AMBIGUOUS_STATUSES: Final = frozenset({408, 499, 500, 502, 503, 504})
"""Answers after which a call may have taken effect, or may yet."""

GRPC_CODES: Final[Mapping[int, str]] = {
    1: "cancelled", 2: "unknown", 3: "invalid_argument", 4: "deadline_exceeded", 5: "not_found",
    6: "already_exists", 7: "permission_denied", 8: "resource_exhausted",
    9: "failed_precondition", 10: "aborted", 11: "out_of_range", 12: "unimplemented",
    13: "internal", 14: "unavailable", 15: "data_loss", 16: "unauthenticated",
}  # fmt: skip
"""google.rpc codes, as rows and jobs bear them (not HTTP codes)."""

TRANSIENT_CODES: Final = frozenset(
    {"cancelled", "deadline_exceeded", "resource_exhausted", "aborted", "internal", "unavailable"}
)
"""Codes of rows that may succeed when sent again."""

_SAFE_WORDS: Final = re.compile(
    r"Error on line \d+"
    r"|No request specified"
    r"|API key (?:not valid|expired|not found)"
    r"|content is empty"
    r"|(?:must|should|may) not be empty"
    r"|(?:payload|file) size exceeds the limit(?:: \d+ bytes)?"
    r"|at most \d+ requests can be in one batch"
    r"|output_?dimensionality:? must be between \d+ and \d+"
    r"|is not found for API version v1\w{0,5}"
    r"|is not supported for (?:asyncBatchEmbed|batchEmbed|embed|generate)Contents?"
    r"|does not have permission|do not have permission|it may not exist"
    r"|exceeded your current quota|quota exceeded|too many (?:requests|tokens|items)"
    r"|spend(?:ing)? cap|billing"
    r"|failed without error|was cancelled|deadline exceeded|timed out|expired"
    r"|internal error|overloaded|unavailable|currently unavailable"
    r"|User location is not supported",
    re.IGNORECASE,
)
"""Phrases that services write and no text of a user can fill: all that we repeat of a message."""

_PER_DAY: Final = re.compile(r"per_?day", re.IGNORECASE)
_RETRY_IN: Final = re.compile(r"retry in ([\d.]+)s")


def told(message: object) -> str:
    """The parts of a service's message that cannot hold a user's text, joined by "; "."""
    return "; ".join(dict.fromkeys(_SAFE_WORDS.findall(str(message or ""))))


def judge(
    outcome: Response | Lost,
    *,
    what: str,
    attempt: int,
    policy: RetryPolicy,
    jitter: Callable[[], float],
    now: Callable[[], float] = time.time,
    creating: bool = False,
) -> Verdict:
    """What `outcome` of try number `attempt` (from 0) means for the call `what`.

    `what` reads like "creating batch 'x'"; `jitter` gives numbers in 0..1; `now` is our clock, in
    seconds since 1970, for dates of services that do not tell theirs. `creating` marks the
    creation of batches, whose quotas free up in minutes at best: without a word from the service
    on how long to wait, its refusal is final.
    """
    wait_s = min(policy.first_wait_s * 2.0**attempt, policy.longest_wait_s) * (0.5 + jitter() / 2)
    if isinstance(outcome, Lost):
        gone = ProviderUnavailableError(f"{what}: {outcome.reason}. Try again later.")
        gone.sent = outcome.sent
        return Again(wait_s=wait_s, error=gone, ambiguous=outcome.sent)
    if 200 <= outcome.status < 300:
        return Accepted(response=outcome)
    failure = _Failure.parse(outcome, now)
    error = _error(failure, what)
    error.service_message = failure.message or None
    error.service_status = failure.name or None
    if isinstance(error, ProviderUnavailableError):
        error.retry_after_s = failure.retry_after_s
    if failure.status == 401:
        return Stale(error=error)
    if isinstance(error, RateLimitError):
        asked = error.retry_after_s
        if error.per_day or (creating and asked is None) or (asked or 0.0) > policy.patience_s:
            return Refused(error=error)
        pause_s = wait_s if asked is None else asked + jitter()
        return Again(wait_s=pause_s, error=error, ambiguous=False)
    if failure.status in AMBIGUOUS_STATUSES or failure.status > 504 or failure.status < 400:
        wait_s = max(wait_s, min(failure.retry_after_s or 0.0, policy.patience_s))
        return Again(wait_s=wait_s, error=error, ambiguous=True)
    return Refused(error=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    status: int
    name: str
    message: str
    reasons: Sequence[str]
    quota_ids: Sequence[str]
    retry_after_s: float | None

    @classmethod
    def parse(cls, response: Response, now: Callable[[], float]) -> "_Failure":
        error = _error_object(response.body)
        details = [entry for entry in error.get("details") or () if isinstance(entry, dict)]
        message = str(error.get("message") or "")
        return cls(
            status=response.status,
            name=str(error.get("status") or ""),
            message=message,
            reasons=[str(entry["reason"]) for entry in details if "reason" in entry],
            quota_ids=[
                f"{violation.get('quotaId') or ''} {violation.get('quotaMetric') or ''}".strip()
                for entry in details
                for violation in entry.get("violations") or ()
                if isinstance(violation, dict)
            ],
            retry_after_s=_retry_after_s(response, details, message, now),
        )


def _error_object(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(document, list) and document:
        document = document[0]
    error = document.get("error") if isinstance(document, dict) else None
    return error if isinstance(error, dict) else {}


def _retry_after_s(
    response: Response,
    details: Sequence[dict[str, Any]],
    message: str,
    now: Callable[[], float],
) -> float | None:
    for entry in details:
        seconds = _seconds(str(entry.get("retryDelay") or ""))
        if seconds is not None:
            return seconds
    header = _until(response.headers, now)
    if header is not None:
        return header
    spoken = _RETRY_IN.search(message)
    return _seconds(spoken[1].rstrip(".")) if spoken else None


def _until(headers: Mapping[str, str], now: Callable[[], float]) -> float | None:
    """Seconds that the Retry-After header asks for, which is a number of them or a date (RFC 9110).

    A date is held against the service's own clock, its Date header, where it tells it.
    """
    text = headers.get("retry-after", "")
    seconds = _seconds(text)
    if seconds is not None:
        return seconds
    end = _date(text)
    if end is None:
        return None
    begin = _date(headers.get("date", ""))
    return max(end - (now() if begin is None else begin), 0.0)


def _date(text: str) -> float | None:
    """An HTTP date, in any of its three forms, as seconds since 1970."""
    try:
        date = parsedate_to_datetime(text)
        # asctime's form names no zone: HTTP has none but GMT.
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _seconds(text: str) -> float | None:
    """A protobuf duration ("14.04s") or a bare number of seconds."""
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _error(failure: _Failure, what: str) -> EmbatchError:
    said = f" The service says: {words}." if (words := told(failure.message)) else ""
    line = f"{what}: {failure.status} {failure.name}".rstrip() + f".{said}"
    keyed = any("API_KEY" in reason for reason in failure.reasons) or (
        "api key" in failure.message.lower()
    )
    match failure.status:
        case 400 | 403 if keyed:
            return AuthenticationError(f"{line} Give a valid API key (GOOGLE_API_KEY or api_key=).")
        case 401:
            return AuthenticationError(f"{line} Give a valid key or log in again.")
        case 403:
            return PermissionDeniedError(
                f"{line} The credentials lack the right, or the file is unknown or older than "
                "48 hours."
            )
        case 404:
            return NotFoundError(f"{line} Check the name, and that the model offers this call.")
        case 429:
            return _rate_limit(failure, line)
        case 400 | 409 | 411 | 412 | 413 | 415 | 422:
            return InvalidRequestError(f"{line} Change the request; it was not carried out.")
    if failure.status in AMBIGUOUS_STATUSES or failure.status >= 500 or failure.status < 400:
        return ProviderUnavailableError(f"{line} Try again later.")
    return InvalidRequestError(f"{line} Change the request; it was not carried out.")


def _rate_limit(failure: _Failure, line: str) -> RateLimitError:
    per_day = any(_PER_DAY.search(quota) for quota in failure.quota_ids)
    if per_day:
        advice = "The quota of the day is used up: go on tomorrow."
    elif failure.retry_after_s is None:
        advice = "Wait some minutes, and for your own running batches to end."
    else:
        advice = f"Wait {failure.retry_after_s:.0f} seconds."
    return RateLimitError(f"{line} {advice}", retry_after_s=failure.retry_after_s, per_day=per_day)
