"""The twenty-five traps that the protocol sets for clients, one test each."""

import json
from typing import Any

import numpy as np
import pytest

from embatch.client import Client
from embatch.config import CloudSettings
from embatch.errors import (
    AlignmentError,
    AuthenticationError,
    BatchFailedError,
    IndeterminateError,
    InvalidRequestError,
    PermissionDeniedError,
    RateLimitError,
)
from embatch.testing.cloud import expected_vector, expected_vectors
from embatch.types.embedding import ContentEmbedding, RowError
from embatch.types.models import MODELS
from embatch.types.state import JobState

TEXTS = [f"text {i}" for i in range(12)]


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha"])
def test_trap_01_version_is_a_setting(gemini: Any, version: str, tmp_path: Any) -> None:
    """The version is in every path, uploads and downloads included, and can be chosen."""
    gemini.client = gemini.open(api_version=version)
    batch = gemini.finished(["a"] * 1_000)
    gemini.client.download_file(batch.output.file, tmp_path / "x")
    assert len(gemini.client.get_batch_embeddings(batch)) == 1_000


@pytest.mark.parametrize("prefix", ["JOB_STATE_", "BATCH_STATE_", ""])
def test_trap_02_states_under_any_prefix(case: Any, prefix: str) -> None:
    """States are matched by their last word."""
    case.fault("state_prefix", prefix=prefix)
    assert case.finished(TEXTS).state is JobState.COMPLETED


def test_trap_02_unknown_states_are_not_terminal_but_done_is(case: Any) -> None:
    """An unknown word is kept as text; `done: true` is honoured all the same."""
    case.fault("state_word", word="BATCH_STATE_NEW_WORD", when="running")
    case.fault("job_duration", seconds=3600.0)
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    running = case.client.get_batch_status(made.name)
    assert running.state == "new_word"
    assert not running.is_terminal
    case.cloud.clear_faults("state_word")
    case.fault("state_word", word="BATCH_STATE_NEW_WORD", when="end")
    case.cloud.finish(made.name)
    ended = case.client.await_batch_completion(made.name)
    assert ended.is_terminal
    assert len(case.client.get_batch_embeddings(ended).successful_responses) == len(TEXTS)


def test_trap_03_everything_sits_in_metadata(gemini: Any) -> None:
    """State, counts and times are read from the operation's metadata."""
    batch = gemini.finished(["a"] * 1_000)
    assert batch.batch_stats.request_count == 1_000
    assert batch.create_time is not None


@pytest.mark.parametrize("place", ["metadata", "response"])
def test_trap_04_lists_are_nested_twice(gemini: Any, place: str) -> None:
    """`requests.requests` goes out and `inlinedResponses.inlinedResponses` comes in."""
    gemini.fault("output_in", place=place)
    assert len(gemini.results(TEXTS).successful_responses) == len(TEXTS)


def test_trap_05_rows_are_counted_not_believed(gemini: Any) -> None:
    """Counts that are missing do not matter where the rows are seen; stale ones do not break."""
    gemini.fault("stats_missing")
    gemini.fault("row_error", code=3, indices=[1])
    batch = gemini.finished(TEXTS)
    assert batch.batch_stats.successful_request_count == len(TEXTS) - 1
    assert batch.batch_stats.failed_request_count == 1
    gemini.fault("stale_stats")
    assert [one.state for one in gemini.client.list_batches()] == [JobState.COMPLETED]


@pytest.mark.parametrize("rows", [12, 1_100])
def test_trap_06_result_order_is_not_trusted(case: Any, rows: int) -> None:
    """Shuffled results are joined by key; keys that are no bijection are an error."""
    texts = [f"text {i}" for i in range(rows)]
    case.fault("shuffle")
    np.testing.assert_array_equal(
        case.results(texts, output_dimensionality=128).to_numpy(), expected_vectors(texts, dims=128)
    )
    case.fault("unknown_rows")
    with pytest.raises(AlignmentError):
        case.results(texts)


def test_trap_06_swapped_values_show_under_a_canary(case: Any) -> None:
    """Values under one another's keys pass any check of keys: an interactive canary tells them."""
    case.fault("swap_values", indices=[3, 4])
    found = case.results(TEXTS)
    canary = case.client.embed_contents([TEXTS[2], TEXTS[3]])
    pairs = list(zip((found[2], found[3]), canary, strict=True))
    assert [one.cosine_similarity(other) > 0.99 for one, other in pairs] == [True, False]


def test_trap_07_failed_rows_do_not_shift_the_rest(case: Any) -> None:
    """A failed row stands in its place."""
    case.fault("row_error", code=3, indices=[0, 5])
    found = case.results(TEXTS)
    assert len(found) == len(TEXTS)
    assert isinstance(found[0], RowError)
    last = found[11]
    assert isinstance(last, ContentEmbedding)
    np.testing.assert_array_equal(last.values, expected_vector(TEXTS[11]))


def test_trap_08_success_is_told_by_rows(case: Any) -> None:
    """A completed job may hold failed rows."""
    case.fault("row_error", code=13, indices=[2])
    batch = case.finished(TEXTS)
    assert batch.state is JobState.COMPLETED
    assert batch.batch_stats.failed_request_count == 1


@pytest.mark.parametrize("fault", ["cancel_late", "cancel_partial"])
def test_trap_08_cancelled_jobs_may_hold_results(case: Any, fault: str) -> None:
    """Cancelled late: SUCCEEDED with code-1 rows, or CANCELLED with a part; both are read."""
    case.fault(fault, share=0.5)
    case.fault("job_duration", seconds=3600.0)
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.client.cancel_batch(made.name)
    batch = case.client.await_batch_completion(made.name, poll_interval=0.01)
    found = case.client.get_batch_embeddings(batch)
    assert len(found) == len(TEXTS)
    assert {error.code for _, error in found.failed_responses} <= {"cancelled", "missing"}
    assert 0 < len(found.successful_responses) < len(TEXTS)


def test_trap_09_create_is_never_sent_twice(case: Any) -> None:
    """An ambiguous create is looked for by its label, not repeated."""
    case.fault("reset_after", times=1, match={"route": case.route("create")})
    case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.fault("reset_before", times=1, match={"route": case.route("create")})
    with pytest.raises(IndeterminateError):
        case.client.async_batch_embed_contents(TEXTS, display_name="x")
    assert len(case.cloud.jobs()) == 1


def test_trap_10_job_errors_are_read_raw(case: Any) -> None:
    """A failed job tells why."""
    case.fault("job_failed", code=8)
    batch = case.finished(TEXTS)
    assert batch.state is JobState.FAILED
    assert batch.error is not None
    assert batch.error.code == "resource_exhausted"


def test_trap_11_tokens_are_read(case: Any) -> None:
    """What was billed is told, row by row and together."""
    found = case.results(TEXTS)
    assert found.total_tokens == sum(one.tokens for _, one in found.successful_responses)
    assert found.total_tokens == case.cloud.bill().tokens


def test_trap_12_details_do_not_break_a_batch(case: Any) -> None:
    """Objects in a row's error, and batches of errors only, are read like any other."""
    case.fault("row_error", code=13, details=True)
    found = case.results(TEXTS)
    assert len(found.failed_responses) == len(TEXTS)


def test_trap_13_short_vectors_come_as_they_are(case: Any) -> None:
    """001 below 3072 dims is not of length 1: the table says so, normalize() mends it."""
    one = case.results(TEXTS, output_dimensionality=768)[0]
    assert not MODELS["gemini-embedding-001"].is_normalized(768)
    assert MODELS["gemini-embedding-001"].is_normalized(3072)
    assert MODELS["gemini-embedding-2"].is_normalized(768)
    assert one.norm < 0.99
    assert one.normalize().norm == pytest.approx(1.0, abs=1e-6)


def test_trap_14_second_models_get_the_task_as_text(gemini: Any) -> None:
    """task_type is not sent to gemini-embedding-2: its prefix is."""
    asked = {"model": "gemini-embedding-2", "task_type": "retrieval_query"}
    prefixed = [f"task: search result | query: {text}" for text in TEXTS]
    expected = expected_vectors(prefixed, model="gemini-embedding-2")
    np.testing.assert_array_equal(gemini.results(TEXTS, **asked).to_numpy(), expected)
    now = gemini.client.embed_contents(TEXTS, **asked)
    np.testing.assert_array_equal(np.stack([one.values for one in now]), expected)


@pytest.mark.parametrize("model", ["gemini-embedding-001", "gemini-embedding-2"])
def test_trap_15_a_vector_for_each_text(gemini: Any, model: str) -> None:
    """A list of texts never becomes one vector."""
    assert len(gemini.client.embed_contents(TEXTS, model=model)) == len(TEXTS)


def test_trap_16_jsonl_has_a_type_and_rows_are_wrapped(gemini: Any, tmp_path: Any) -> None:
    """Uploads say their type; rows without `request` are refused with their line."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"content": {"parts": [{"text": "bare"}]}}) + "\n")
    assert gemini.client.upload_file(path).mime_type == "application/jsonl"
    with pytest.raises(InvalidRequestError, match="Error on line 1"):
        gemini.client.create_batch_from_file(path, display_name="x")


def test_trap_17_files_that_vanished(gemini: Any, tmp_path: Any) -> None:
    """A file that is gone answers 403: the error names the 48 hours."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"request": {"content": {"parts": [{"text": "a"}]}}}) + "\n")
    file = gemini.client.upload_file(path)
    gemini.fault("file_vanished")
    with pytest.raises(PermissionDeniedError, match="48 hours"):
        gemini.client.create_batch_from_file(file.name, display_name="x")


def test_trap_18_result_files_go_with_their_batch(gemini: Any) -> None:
    """A result file is not deleted alone; a running batch is cancelled before it is deleted."""
    batch = gemini.finished(["a"] * 1_000)
    with pytest.raises(InvalidRequestError, match="delete the batch"):
        gemini.client.delete_file(batch.output.file)
    gemini.client.delete_batch(batch)
    gemini.fault("job_duration", seconds=3600.0)
    gemini.client.delete_batch(gemini.client.async_batch_embed_contents(["a"], display_name="x"))
    assert gemini.asked("batches.cancel") == 1


def test_trap_19_finished_batches_are_not_polled_again(gemini: Any) -> None:
    """Results of a batch in hand take one request; waiting stops at the first terminal answer."""
    made = gemini.client.async_batch_embed_contents(TEXTS, display_name="x")
    gemini.cloud.finish(made.name)
    batch = gemini.client.await_batch_completion(made.name)
    assert gemini.asked("batches.get") == 1
    gemini.client.get_batch_embeddings(batch)
    assert gemini.asked("batches.get") == 2


def test_trap_20_creates_are_not_hammered(case: Any) -> None:
    """429 of a create without a hint, and of a day's quota, are told after one try."""
    for hints in ("none", "day", "misleading"):
        case.cloud.clear_faults()
        case.fault("rate_limited", hints=hints, match={"route": case.route("create")})
        with pytest.raises(RateLimitError):
            case.client.async_batch_embed_contents(TEXTS, display_name="x")
    assert case.asked(case.route("create")) == 3
    assert case.sleeps == []


def test_trap_21_wrong_keys_are_not_bad_rows(gemini: Any) -> None:
    """400 for a key and 400 for a row are told apart."""
    with pytest.raises(AuthenticationError):
        gemini.open(api_key="AIza-wrong").embed_content("a")


def test_trap_22_calls_are_cut_to_a_hundred(case: Any) -> None:
    """More than 100 texts go in several calls."""
    assert len(case.client.embed_contents(["a"] * 201)) == 201


def test_trap_23_expired_batches_have_nothing(held: Any) -> None:
    """EXPIRED has no results. Splitting by tokens is the runner's part, not the client's."""
    held.fault("job_stuck")
    made = held.client.async_batch_embed_contents(TEXTS, display_name="x")
    held.cloud.advance(49 * 3600)
    with pytest.raises(BatchFailedError):
        held.client.get_batch_embeddings(made.name)


def test_trap_24_vertex_has_its_own_ways(vertex: Any) -> None:
    """Two row dialects, a partial end that is an end, and a delete that is an operation."""
    vertex.fault("job_partial")
    vertex.fault("row_error", code=3, indices=[0])
    batch = vertex.finished(TEXTS, task_type="retrieval_document", output_dimensionality=128)
    assert batch.state is JobState.COMPLETED
    assert batch.is_terminal
    found = vertex.client.get_batch_embeddings(batch)
    np.testing.assert_array_equal(
        found.to_numpy()[1:],
        expected_vectors(TEXTS, dims=128, task_type="RETRIEVAL_DOCUMENT")[1:],
    )
    older = vertex.results(TEXTS, model="text-embedding-005", task_type="retrieval_query")
    assert len(older) == len(TEXTS)
    vertex.client.delete_batch(batch)


def test_trap_25_field_order_is_not_trusted() -> None:
    """Lines are read by name, the key first or last.

    The rest of the trap does not apply: embatch calls the native API only, so no id bears a slash
    to be quoted and no file goes through the OpenAI-compatible layer.
    """
    from embatch.client.results import read_blocks

    lines = (
        b'{"response":{"usageMetadata":{"promptTokenCount":2},"embedding":{"values":[1,2]}},"key":"a"}\n'
        b'{"key":"b","response":{"embedding":{"values":[3,4]}}}\n'
    )
    (block,) = read_blocks([lines])
    assert list(block.keys) == ["a", "b"]
    assert block.vectors.tolist() == [[1, 2], [3, 4]]


def test_settings_are_not_read_at_import() -> None:
    """A client with settings of its own looks at no variable."""
    with Client(settings=CloudSettings(), api_key="k", base_url="http://127.0.0.1:9") as client:
        assert "k'" not in repr(client)
