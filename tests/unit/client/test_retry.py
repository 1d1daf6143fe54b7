"""Answers judged: what each means, how long to wait, and what is repeated of a service's words."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.client.retry import (
    Accepted,
    Again,
    Refused,
    RetryPolicy,
    Stale,
    Verdict,
    judge,
    told,
)
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

POLICY = RetryPolicy()


def _judged(
    status: int, error: Any = None, *, attempt: int = 0, creating: bool = False, **headers: str
) -> Verdict:
    body = json.dumps({"error": error}).encode() if error is not None else b"<html>"
    return judge(
        Response(
            status=status,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            body=body,
        ),
        what="calling",
        attempt=attempt,
        policy=POLICY,
        jitter=lambda: 1.0,
        creating=creating,
    )


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, {"message": "bad"}, InvalidRequestError),
        (400, {"message": "API key not valid."}, AuthenticationError),
        (400, {"details": [{"reason": "API_KEY_INVALID"}]}, AuthenticationError),
        (403, {"status": "PERMISSION_DENIED"}, PermissionDeniedError),
        (404, {"status": "NOT_FOUND"}, NotFoundError),
        (413, None, InvalidRequestError),
        (418, None, InvalidRequestError),
    ],
)
def test_refusals(status: int, error: Any, kind: type[EmbatchError]) -> None:
    """What trying again does not change."""
    verdict = _judged(status, error)
    assert isinstance(verdict, Refused)
    assert isinstance(verdict.error, kind)


@pytest.mark.parametrize("status", [408, 499, 500, 502, 503, 504, 529, 302])
def test_failures_in_doubt(status: int) -> None:
    """The service may have acted: try again, but never a creation."""
    verdict = _judged(status)
    assert isinstance(verdict, Again)
    assert verdict.ambiguous
    assert isinstance(verdict.error, ProviderUnavailableError)


def test_success_and_stale_tokens() -> None:
    """200 is success; 401 asks for a new token."""
    assert isinstance(_judged(200, {}), Accepted)
    assert isinstance(_judged(401, {}), Stale)


def test_waits_grow_to_their_limit() -> None:
    """Doubling, with jitter, never over the policy's longest."""
    waits = []
    for attempt in range(10):
        verdict = _judged(503, attempt=attempt)
        assert isinstance(verdict, Again)
        waits.append(verdict.wait_s)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert max(waits) == POLICY.longest_wait_s


MINUTE = {"quotaId": "EmbedContentRequestsPerMinutePerProject-FreeTier"}
DAY = {"quotaId": "EmbedContentRequestsPerDayPerProject"}


def _quota(violation: dict[str, str] | None, delay: str | None) -> dict[str, Any]:
    details: list[dict[str, Any]] = [{"@type": "x/google.rpc.Help", "links": []}]
    if violation is not None:
        details.append({"violations": [violation]})
    if delay is not None:
        details.append({"retryDelay": delay})
    return {
        "status": "RESOURCE_EXHAUSTED",
        "message": "exceeded your current quota",
        "details": details,
    }


@pytest.mark.parametrize(
    ("violation", "delay", "creating", "wait_s"),
    [
        (MINUTE, "33s", False, 34.0),
        (MINUTE, "14.044580725s", True, 15.044580725),
        (None, None, False, 1.0),
        (None, "0s", True, 1.0),
    ],
)
def test_quotas_that_pass(
    violation: dict[str, str] | None, delay: str | None, creating: bool, wait_s: float
) -> None:
    """RetryInfo is followed; without it reads back off. Nothing happened: no doubt."""
    verdict = _judged(429, _quota(violation, delay), creating=creating)
    assert isinstance(verdict, Again)
    assert verdict.wait_s == pytest.approx(wait_s)
    assert not verdict.ambiguous


@pytest.mark.parametrize(
    ("violation", "delay", "creating", "per_day"),
    [
        (DAY, "43s", False, True),
        (DAY, None, False, True),
        (MINUTE, "68408s", False, False),
        (None, None, True, False),
    ],
)
def test_quotas_that_do_not(
    violation: dict[str, str] | None, delay: str | None, creating: bool, per_day: bool
) -> None:
    """Days, hours, and creations without a hint go to the caller."""
    verdict = _judged(429, _quota(violation, delay), creating=creating)
    assert isinstance(verdict, Refused)
    assert isinstance(verdict.error, RateLimitError)
    assert verdict.error.per_day is per_day


def test_spoken_and_header_delays() -> None:
    """A delay may stand in a header or in the words."""
    header = _judged(429, {}, retry_after="7")
    assert isinstance(header, Again)
    assert header.wait_s == 8.0
    spoken = _judged(429, {"message": "Please retry in 33.4s."})
    assert isinstance(spoken, Again)
    assert spoken.wait_s == pytest.approx(34.4)


def test_lost_requests() -> None:
    """Never sent is no doubt; sent is."""
    for sent in (True, False):
        verdict = judge(
            Lost(sent=sent, reason="it broke"),
            what="calling",
            attempt=0,
            policy=POLICY,
            jitter=lambda: 0.0,
        )
        assert isinstance(verdict, Again)
        assert verdict.ambiguous is sent
        assert isinstance(verdict.error, ProviderUnavailableError)
        assert verdict.error.sent is sent


@given(st.text(min_size=12), st.sampled_from([400, 403, 404, 429, 500]))
def test_words_of_services_are_not_repeated(text: str, status: int) -> None:
    """A service that quotes a text in its message does not get it into ours."""
    canary = f"zq{text}qz"
    verdict = _judged(status, {"message": f"Invalid value: {canary}", "status": "X"})
    assert isinstance(verdict, (Again, Refused))
    assert canary not in str(verdict.error)
    assert canary not in repr(verdict.error)
    assert verdict.error.service_message == f"Invalid value: {canary}"


def test_useful_words_are_repeated() -> None:
    """What no text can fill is told: the line, the limit, the model."""
    assert (
        told("Error on line 12: No request specified") == "Error on line 12; No request specified"
    )
    assert "at most 100 requests can be in one batch" in told(
        "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch\n"
    )
    assert told(None) == told({"x": 1}) == ""


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"error": 3}', b'[{"error":{"code":1}}]'])
def test_odd_bodies_are_survived(body: bytes) -> None:
    """An error without Google's shape is judged by its status."""
    verdict = judge(
        Response(status=503, headers={}, body=body),
        what="calling",
        attempt=0,
        policy=POLICY,
        jitter=lambda: 0.0,
    )
    assert isinstance(verdict, Again)


@pytest.mark.parametrize(
    "quoted",
    [
        "models/our-secret-plan is not found",
        "Frieda is not supported for Otto",
        "too many lovers; models/x is not supported for bankruptcy",
    ],
)
def test_quoted_texts_fill_no_phrase(quoted: str) -> None:
    """What a user wrote in the words of a service is not repeated either."""
    said = told(f"invalid content: {quoted}")
    for word in ("secret", "Frieda", "Otto", "lovers", "bankruptcy"):
        assert word not in said


@pytest.mark.parametrize("delay", ["nan", "inf", "-inf", "1e999s"])
def test_waits_that_are_no_number_are_not_waited_for(delay: str) -> None:
    """A hint that is no finite number counts as none."""
    response = Response(status=503, headers={"retry-after": delay}, body=b"")
    verdict = judge(
        response, what="x", attempt=0, policy=RetryPolicy(), jitter=lambda: 1.0, creating=False
    )
    assert isinstance(verdict, Again)
    assert verdict.wait_s == 1.0


_NOW = 1_792_000_000.0  # Wed, 14 Oct 2026 17:46:40 GMT


@pytest.mark.parametrize(
    ("retry_after", "date", "seconds"),
    [
        ("Wed, 14 Oct 2026 17:47:10 GMT", "", 30.0),
        ("Wed, 14 Oct 2026 17:47:10 GMT", "nonsense", 30.0),
        ("Wed, 14 Oct 2026 17:47:10 GMT", "Wed, 14 Oct 2026 17:47:00 GMT", 10.0),
        ("Wed, 14 Oct 2026 12:00:30 GMT", "Wed, 14 Oct 2026 12:00:00 GMT", 30.0),
        ("Wednesday, 14-Oct-26 17:47:10 GMT", "", 30.0),
        ("Wed Oct 14 17:47:10 2026", "", 30.0),
        ("Wed, 14 Oct 2026 17:00:00 GMT", "", 0.0),
        ("Wed, 14 Oct 2026 17:47:10 GMT", "Thu, 15 Oct 2026 17:47:10 GMT", 0.0),
        ("Wed, 14 Oct 99999 17:47:10 GMT", "", None),
        ("soon", "", None),
        ("", "Wed, 14 Oct 2026 17:47:00 GMT", None),
    ],
)
def test_retry_after_as_a_date(retry_after: str, date: str, seconds: float | None) -> None:
    """A date is held against the service's clock, else against ours; it is never in the past."""
    response = Response(status=429, headers={"retry-after": retry_after, "date": date}, body=b"")
    verdict = judge(
        response,
        what="x",
        attempt=0,
        policy=POLICY,
        jitter=lambda: 0.0,
        now=lambda: _NOW,
    )
    assert isinstance(verdict, Again)
    assert isinstance(verdict.error, RateLimitError)
    assert verdict.error.retry_after_s == seconds
    assert verdict.wait_s == (0.5 if seconds is None else seconds)


def test_outages_tell_their_wait() -> None:
    """A service that is down and says for how long: the caller hears it."""
    response = Response(status=503, headers={"retry-after": "7"}, body=b"")
    verdict = judge(response, what="x", attempt=0, policy=POLICY, jitter=lambda: 0.0)
    assert isinstance(verdict, Again)
    assert isinstance(verdict.error, ProviderUnavailableError)
    assert verdict.error.retry_after_s == 7.0
    assert verdict.wait_s == 7.0


@pytest.mark.parametrize(
    "said",
    [
        "output_dimensionality must be between 128 and 3072",
        "Error on line 1; output_dimensionality: must be between 1 and 384",
    ],
)
def test_what_a_model_cannot_give_is_told(said: str) -> None:
    """Dimensions that are out of bounds are told with the bounds."""
    assert told(said.replace("; ", ": ")) == said
