"""Documents of the services, read into our types."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.client.wire import (
    parse_file,
    parse_job,
    parse_operation,
    parse_state,
    parse_time,
    require_whole,
)
from embatch.errors import ProviderUnavailableError
from embatch.types.state import JobState

STATES = {
    "PENDING": JobState.PENDING,
    "QUEUED": JobState.PENDING,
    "RUNNING": JobState.PROCESSING,
    "SUCCEEDED": JobState.COMPLETED,
    "PARTIALLY_SUCCEEDED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "CANCELLING": JobState.PROCESSING,
    "EXPIRED": JobState.EXPIRED,
    "UNSPECIFIED": JobState.UNSPECIFIED,
    "UNHEARD_OF": "unheard_of",
}


@pytest.mark.parametrize("prefix", ["BATCH_STATE_", "JOB_STATE_", ""])
@pytest.mark.parametrize(("word", "state"), STATES.items())
def test_states(prefix: str, word: str, state: str) -> None:
    """Every spelling of a state is one of ours; an unknown one is kept as text."""
    assert parse_state(prefix + word) == state
    assert parse_state((prefix + word).lower()) == state


@given(
    st.datetimes(
        min_value=datetime(2000, 1, 1)  # noqa: DTZ001 - hypothesis wants it naive
    ),
    st.integers(0, 999),
    st.integers(0, 9),
)
def test_times(time: datetime, nanos: int, digits: int) -> None:
    """Zero to nine digits of a second; what is finer than microseconds is cut."""
    fraction = f"{time.microsecond:06d}{nanos:03d}"[:digits]
    text = time.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction}" if fraction else "") + "Z"
    parsed = parse_time(text)
    assert parsed is not None
    assert parsed.tzinfo is UTC
    assert timedelta(0) <= time.replace(tzinfo=UTC) - parsed < timedelta(seconds=1)
    assert parsed.microsecond == int(f"{fraction:0<6}"[:6])


@pytest.mark.parametrize("text", [None, "", "soon", 5])
def test_times_that_are_none(text: Any) -> None:
    """No time is None."""
    assert parse_time(text) is None


@given(
    st.integers(0, 2**40), st.integers(0, 2**40), st.integers(-(2**63), 2**63 - 1), st.booleans()
)
def test_counts_are_strings_numbers_or_absent(
    good: int, failed: int, priority: int, as_text: bool
) -> None:
    """int64 comes as text; zero is left out."""

    def spelled(value: int) -> Any:
        return str(value) if as_text else value

    stats = {
        "requestCount": spelled(good + failed),
        "successfulRequestCount": spelled(good),
        "failedRequestCount": spelled(failed),
    }
    batch = parse_operation(
        {
            "name": "batches/x",
            "metadata": {
                "model": "models/m",
                "priority": spelled(priority),
                "batchStats": {name: value for name, value in stats.items() if int(value)},
            },
        }
    )
    assert batch.batch_stats.request_count == good + failed
    assert batch.batch_stats.successful_request_count == good
    assert batch.batch_stats.failed_request_count == failed
    assert batch.batch_stats.pending_request_count == 0
    assert batch.priority == priority
    assert batch.model == "m"


@pytest.mark.parametrize(
    ("document", "state", "terminal"),
    [
        ({"metadata": {"state": "BATCH_STATE_PENDING"}}, JobState.PENDING, False),
        ({"done": True, "metadata": {"state": "BATCH_STATE_PENDING"}}, JobState.COMPLETED, True),
        (
            {"done": True, "error": {"code": 8}, "metadata": {"state": "BATCH_STATE_RUNNING"}},
            JobState.FAILED,
            True,
        ),
        ({"done": False, "metadata": {"state": "ODD"}}, "odd", False),
        ({"done": True, "metadata": {"state": "ODD"}}, "odd", True),
        ({"metadata": {"state": "BATCH_STATE_EXPIRED"}}, JobState.EXPIRED, True),
        ({"metadata": {}}, JobState.UNSPECIFIED, False),
    ],
)
def test_done_is_honoured(document: Any, state: str, terminal: bool) -> None:
    """`done: true` ends a batch whatever its word; an unknown word alone does not."""
    batch = parse_operation({"name": "batches/x", **document})
    assert batch.state == state
    assert batch.is_terminal is terminal


@pytest.mark.parametrize("holder", ["response", "output"])
def test_result_files_stand_in_two_places(holder: str) -> None:
    """Either place will do."""
    file = {"responsesFile": "files/batch-x"}
    document: dict[str, Any] = {"name": "batches/x", "metadata": {}}
    (document if holder == "response" else document["metadata"])[holder] = file
    output = parse_operation(document).output
    assert output is not None
    assert output.file == "files/batch-x"


@pytest.mark.parametrize("parse", [parse_operation, parse_job, parse_file])
def test_answers_that_name_nothing(parse: Any) -> None:
    """An answer without a name is no batch, job or file."""
    with pytest.raises(ProviderUnavailableError):
        parse({"foo": 1})


def test_jobs_of_vertex() -> None:
    """Counts of -1 mean unknown; the output's folder is kept without its slash."""
    batch = parse_job(
        {
            "name": "projects/1/locations/l/batchPredictionJobs/2",
            "displayName": "x [embatch 5f0c9ab3d17e n=9]",
            "model": "publishers/google/models/gemini-embedding-001",
            "state": "JOB_STATE_PARTIALLY_SUCCEEDED",
            "completionStats": {
                "successfulCount": "7",
                "failedCount": "2",
                "incompleteCount": "-1",
            },
            "outputInfo": {"gcsOutputDirectory": "gs://b/o/"},
            "error": {"code": 3, "message": "secret"},
        }
    )
    assert batch.display_name == "x"
    assert batch.model == "gemini-embedding-001"
    assert batch.batch_stats.request_count == 9
    assert batch.output is not None
    assert batch.output.directory == "gs://b/o"
    assert batch.error is not None
    assert "secret" not in batch.error.message


def test_digests_of_files_in_either_form() -> None:
    """base64 of the hex digits, as the service writes it, or of the bare bytes."""
    import base64
    import hashlib

    digest = hashlib.sha256(b"x")
    for raw in (digest.hexdigest().encode(), digest.digest()):
        document = {"name": "files/x", "sha256Hash": base64.b64encode(raw).decode()}
        assert parse_file(document).sha256 == digest.hexdigest()
    assert parse_file({"name": "files/x", "sha256Hash": "?"}).sha256 is None


@pytest.mark.parametrize("page", [{}, {"operations": []}, {"unreachable": []}])
def test_a_whole_page_is_given_as_it_is(page: dict[str, Any]) -> None:
    """Nothing was left out: the page is what came."""
    assert require_whole(page) is page


def test_a_page_that_leaves_places_out_is_no_page() -> None:
    """A look that missed a part of the service proves no absence."""
    with pytest.raises(ProviderUnavailableError, match="could not reach all"):
        require_whole({"operations": [], "unreachable": ["locations/x"]})
