"""Batches, one test per row of what the client promises, on both clouds, sync and async."""

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from embatch.errors import (
    BatchFailedError,
    BatchNotCompleteError,
    BatchTimeoutError,
    IndeterminateError,
    InvalidRequestError,
    NotFoundError,
)
from embatch.testing.cloud import expected_vectors
from embatch.types.embedding import ContentEmbedding, RowError
from embatch.types.label import Label
from embatch.types.state import JobState

if TYPE_CHECKING:
    from embatch.types.batch import EmbedContentBatch

TEXTS = [f'text number {i} — ü\n\t\u2028 "quoted" \\ {{}}' for i in range(7)]


def test_submission_gives_the_batch_at_once(case: Any) -> None:
    """A batch has its name, the user's display name and a label no other batch bears."""
    first = case.client.async_batch_embed_contents(TEXTS, display_name="nightly")
    second = case.client.async_batch_embed_contents(TEXTS, display_name="nightly")
    assert first.display_name == second.display_name == "nightly"
    assert first.label != second.label
    assert Label.parse(first.label) is not None
    assert first.model == "gemini-embedding-001"
    expected = "batches/" if case.on == "gemini" else "projects/"
    assert first.name.startswith(expected)
    assert first.batch_stats.request_count == len(TEXTS)


@pytest.mark.parametrize("display_name", [{}, {"display_name": ""}, {"display_name": "  "}])
def test_display_name_is_required(case: Any, display_name: dict[str, str]) -> None:
    """Without a display name the error says how to mend the call, and nothing is sent."""
    with pytest.raises(InvalidRequestError, match="display_name"):
        case.client.async_batch_embed_contents(TEXTS, **display_name)
    assert case.asked(case.route("create")) == 0


@pytest.mark.parametrize("dims", [127, 3073, 0, -1, 2.5, True])
def test_dimensions_have_bounds(case: Any, dims: Any) -> None:
    """Dimensions outside 128..3072 are refused before anything is sent."""
    with pytest.raises(InvalidRequestError, match="output_dimensionality"):
        case.client.async_batch_embed_contents(TEXTS, display_name="x", output_dimensionality=dims)


def test_status_tells_all(case: Any) -> None:
    """A finished batch has state, counts, times, input and output in our words."""
    batch = case.finished(TEXTS)
    assert batch.state is JobState.COMPLETED
    assert batch.is_terminal
    assert batch.batch_stats.successful_request_count == len(TEXTS)
    assert batch.batch_stats.progress_percentage == 100.0
    assert batch.batch_stats.success_rate == 100.0
    assert batch.batch_stats.is_complete
    for time in (batch.create_time, batch.update_time, batch.end_time):
        assert time is not None
        assert time.tzinfo is not None
    assert batch.output is not None
    assert batch.error is None
    assert batch.input_config.inline is (case.on == "gemini")


@pytest.mark.parametrize("rows", [7, 1_200], ids=["small", "large"])
def test_results_are_aligned_with_the_inputs(case: Any, rows: int) -> None:
    """Vector i belongs to text i, though the service shuffles its rows."""
    case.fault("shuffle")
    texts = [f"row {i}" for i in range(rows)]
    found = case.results(texts, output_dimensionality=256, task_type="retrieval_document")
    assert found.aligned
    expected = expected_vectors(texts, dims=256, task_type="RETRIEVAL_DOCUMENT")
    assert found.to_numpy().dtype == np.float32
    np.testing.assert_array_equal(found.to_numpy(), expected)
    assert [index for index, _ in found.successful_responses] == list(range(rows))
    assert found.failed_responses == []
    assert found.total_tokens is not None
    assert isinstance(found[0], ContentEmbedding)


def test_small_batches_go_inline_and_large_ones_through_a_file(gemini: Any) -> None:
    """The choice is the library's; the caller sees one call."""
    small = gemini.finished(["a"] * 999)
    large = gemini.finished(["a"] * 1_000)
    assert small.input_config.inline
    assert not large.input_config.inline
    assert small.output.inlined
    assert large.output.file.startswith("files/batch-")


def test_inline_stays_under_its_limit_of_bytes(gemini: Any) -> None:
    """A few huge texts go through a file: the service takes no body over 20 MB."""
    batch = gemini.finished(["x" * 200_000 for _ in range(90)])
    assert not batch.input_config.inline


_READER = """
import json, sys
from embatch import Client
asked = json.loads(sys.argv[1])
if asked.pop("token", None):
    from google.oauth2.credentials import Credentials
    asked["credentials"] = Credentials(token=sys.argv[3])
with Client(**asked) as client:
    found = client.get_batch_embeddings(sys.argv[2], keys=json.loads(sys.argv[4]))
said = {"aligned": found.aligned, "keys": found.keys}
print(json.dumps({**said, "vectors": found.to_numpy().tolist()}))
"""


def test_another_process_reads_by_name_alone(case: Any) -> None:
    """A process that knows nothing but the name reads every result into its place."""
    case.fault("shuffle")
    keys = [f"doc {i}" for i in range(len(TEXTS))]
    batch = case.finished(TEXTS, output_dimensionality=128, keys=keys)
    asked: dict[str, Any] = {"api_key": case.cloud.api_key, "base_url": case.cloud.url}
    if case.on == "vertex":
        asked = {
            "auth": "vertex_ai",
            "token": True,
            "project": "a-project",
            "location": "us-central1",
            "base_url": case.cloud.vertex_url,
            "storage_base_url": case.cloud.storage_url,
        }
    token = case.cloud.access_token
    done = subprocess.run(
        [sys.executable, "-c", _READER, json.dumps(asked), batch.name, token, json.dumps(keys)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said = json.loads(done.stdout)
    assert said["aligned"]
    assert said["keys"] == keys
    np.testing.assert_array_equal(
        np.array(said["vectors"], dtype=np.float32), expected_vectors(TEXTS, dims=128)
    )


def test_keys_stay_here_and_come_back(case: Any) -> None:
    """Users' keys name the results, never reach the service, and others are refused."""
    keys = [f"secret-key-{i}" for i in range(len(TEXTS))]
    batch = case.client.async_batch_embed_contents(TEXTS, display_name="k", keys=keys)
    case.cloud.finish(batch.name)
    assert list(case.client.get_batch_embeddings(batch).keys) == keys
    assert case.client.get_batch_embeddings(batch.name).keys is None
    assert list(case.client.get_batch_embeddings(batch.name, keys=keys).keys) == keys
    with pytest.raises(InvalidRequestError, match="keys"):
        case.client.get_batch_embeddings(batch.name, keys=keys[::-1])
    for path in case.cloud.folder.rglob("*"):
        if path.is_file():
            assert b"secret-key-" not in path.read_bytes()


@pytest.mark.parametrize(
    ("keys", "said"), [(["a"], "1 entries"), (["a", "a"], "twice"), (["a", 1], "strings")]
)
def test_keys_are_checked(case: Any, keys: Any, said: str) -> None:
    """Keys must be as many as the texts, strings, and each its own."""
    with pytest.raises(InvalidRequestError, match=said):
        case.client.async_batch_embed_contents(["x", "y"], display_name="k", keys=keys)


def test_results_of_an_unfinished_batch(case: Any) -> None:
    """Asked for too early, the error tells the state in our words."""
    case.fault("job_stuck")
    batch = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    with pytest.raises(BatchNotCompleteError) as caught:
        case.client.get_batch_embeddings(batch)
    assert str(caught.value) in {
        "Batch not yet completed (current state: processing)",
        "Batch not yet completed (current state: pending)",
    }


def test_waiting_reports_progress(case: Any) -> None:
    """Waiting gives the terminal batch and calls back with the batch at every look."""
    seen: list[EmbedContentBatch] = []
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    batch = case.client.await_batch_completion(made.name, on_progress=seen.append)
    assert batch.state is JobState.COMPLETED
    assert seen[-1] == batch
    assert all(one.name == made.name for one in seen)


def test_waiting_ends_at_its_timeout(case: Any) -> None:
    """The error names the batch, which goes on."""
    case.fault("job_stuck")
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    with pytest.raises(BatchTimeoutError) as caught:
        case.client.await_batch_completion(made.name, timeout=0.05, poll_interval=0.01)
    assert caught.value.name == made.name
    assert not case.client.get_batch_status(made.name).is_terminal


def test_lists_hide_their_pages(case: Any) -> None:
    """Every batch is listed once, across small and empty pages, without others' generate jobs."""
    names = {
        case.client.async_batch_embed_contents(["x"], display_name=f"b{i}").name for i in range(5)
    }
    case.fault("small_pages", size=2)
    case.fault("empty_pages")
    case.fault("foreign_jobs", count=2)
    listed = [batch.name for batch in case.client.list_batches()]
    assert sorted(listed) == sorted(names)


def test_find_looks_through_the_whole_list(case: Any) -> None:
    """A batch is found by its label on whatever page it stands; else None."""
    made = [case.client.async_batch_embed_contents(["x"], display_name="b") for _ in range(4)]
    case.fault("small_pages", size=1)
    for batch in made:
        assert case.client.find_batch(batch.label).name == batch.name
    assert case.client.find_batch("no such label") is None


def test_cancelled_batches_end_cancelled(case: Any) -> None:
    """Cancelling asks for the end, which comes; a batch without results says so."""
    case.fault("job_duration", seconds=3600.0)
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.client.cancel_batch(made.name)
    batch = case.client.await_batch_completion(made.name, poll_interval=0.01)
    assert batch.state is JobState.CANCELLED
    with pytest.raises(BatchFailedError, match="cancelled"):
        case.client.get_batch_embeddings(batch)


def test_deleting_a_running_batch_cancels_it_first(case: Any) -> None:
    """Deleting alone would not stop the bill: cancel, poll, delete."""
    case.fault("job_duration", seconds=3600.0)
    made = case.client.async_batch_embed_contents(TEXTS, display_name="x")
    case.client.delete_batch(made)
    assert case.asked(case.route("cancel")) == 1
    assert case.cloud.bill().rows == 0
    with pytest.raises(NotFoundError):
        case.client.get_batch_status(made.name)
    assert list(case.client.list_batches()) == []


def test_deleting_removes_what_was_uploaded(case: Any) -> None:
    """The input that embatch uploaded goes with its batch."""
    batch = case.finished(["x"] * 1_000)
    assert len(list(case.client.list_files())) >= 1
    case.client.delete_batch(batch.name)
    assert list(case.client.list_files()) == []


def test_doubtful_creations_keep_their_input(case: Any) -> None:
    """A batch that may have been made after all needs what was laid out for it."""
    case.fault("reset_before", times=1, match={"route": case.route("create")})
    with pytest.raises(IndeterminateError):
        case.client.async_batch_embed_contents(["a"] * 1_000, display_name="x")
    assert len(list(case.client.list_files())) == 1


def test_priority_travels_and_changes(gemini: Any) -> None:
    """Priority is sent, told, and changed."""
    made = gemini.client.async_batch_embed_contents(["x"], display_name="x", priority=-7)
    assert made.priority == -7
    assert gemini.client.update_batch(made.name, priority=2**40).priority == 2**40
    with pytest.raises(InvalidRequestError, match="priority"):
        gemini.client.update_batch(made.name, priority=2**63)


def test_vertex_has_no_priorities(vertex: Any) -> None:
    """Changing a priority on Vertex AI is an error that says so."""
    made = vertex.client.async_batch_embed_contents(["x"], display_name="x", priority=3)
    with pytest.raises(InvalidRequestError, match="no priorities"):
        vertex.client.update_batch(made.name, priority=1)


def test_results_stream_in_blocks(case: Any) -> None:
    """Results can be read as blocks of keys and float32 in constant memory."""
    batch = case.finished([f"row {i}" for i in range(1_200)], output_dimensionality=128)
    blocks = list(case.client.read_batch_results(batch))
    assert sum(len(block.keys) for block in blocks) == 1_200
    assert all(block.vectors.dtype == np.float32 for block in blocks)
    assert len(blocks) == 3


def test_expired_batches_have_no_results(held: Any) -> None:
    """A batch that waited 48 hours is expired, and the error says to submit again."""
    held.fault("job_stuck")
    made = held.client.async_batch_embed_contents(TEXTS, display_name="x")
    held.cloud.advance(49 * 3600)
    assert held.client.get_batch_status(made.name).state is JobState.EXPIRED
    with pytest.raises(BatchFailedError, match="Submit the texts again"):
        held.client.get_batch_embeddings(made.name)


def test_failed_batches_say_why(case: Any) -> None:
    """A job-level failure is told with its code, and partial results are still read."""
    case.fault("job_failed", times=1)
    batch = case.finished(TEXTS)
    assert batch.state is JobState.FAILED
    assert batch.error is not None
    assert batch.error.code == "resource_exhausted"
    with pytest.raises(BatchFailedError, match="resource_exhausted"):
        case.client.get_batch_embeddings(batch)


def test_empty_texts_fail_alone(case: Any) -> None:
    """An empty text is a row error in its place; the others have their vectors."""
    found = case.results(["a", "", "c"])
    assert isinstance(found[1], RowError)
    assert [index for index, _ in found.successful_responses] == [0, 2]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ("one string", "list of strings"),
        ([], "empty"),
        (["a", 3], r"texts\[1\]"),
        (["\ud800"], "surrogate"),
    ],
)
def test_texts_are_checked(case: Any, texts: Any, said: str) -> None:
    """What is no text is refused by its place before anything is sent."""
    with pytest.raises(InvalidRequestError, match=said):
        case.client.async_batch_embed_contents(texts, display_name="x")
    assert case.asked(case.route("create")) == 0


def test_second_models_get_their_task_in_the_text(gemini: Any) -> None:
    """gemini-embedding-2 ignores task types: its documented prefix goes around each text."""
    texts = ['alpha "q"', "beta\n{text}"]
    found = gemini.results(
        texts,
        model="gemini-embedding-2",
        task_type="retrieval_document",
        title="T {text}",
        output_dimensionality=128,
    )
    prefixed = [f"title: T {{text}} | text: {text}" for text in texts]
    np.testing.assert_array_equal(
        found.to_numpy(), expected_vectors(prefixed, model="gemini-embedding-2", dims=128)
    )


def test_titles_go_with_documents_only(case: Any) -> None:
    """A title without task_type="retrieval_document" is refused."""
    with pytest.raises(InvalidRequestError, match="title"):
        case.client.async_batch_embed_contents(["a"], display_name="x", title="T")
