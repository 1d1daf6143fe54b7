"""A closed client: every call is an error of embatch that says what to do."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embatch.client import Client
from embatch.errors import InvalidRequestError

BATCH = {"gemini": "batches/x", "vertex": "projects/1/locations/l/batchPredictionJobs/2"}
FILE = {"gemini": "files/x", "vertex": "gs://bucket/x"}
CALLS: dict[str, Callable[[Any, str, Path], object]] = {
    "async_batch_embed_contents": lambda c, on, p: c.async_batch_embed_contents(
        ["a"], display_name="x"
    ),
    "create_batch_from_file": lambda c, on, p: c.create_batch_from_file(p, display_name="x"),
    "get_batch_status": lambda c, on, p: c.get_batch_status(BATCH[on]),
    "get_batch_embeddings": lambda c, on, p: c.get_batch_embeddings(BATCH[on]),
    "read_batch_results": lambda c, on, p: list(c.read_batch_results(BATCH[on])),
    "await_batch_completion": lambda c, on, p: c.await_batch_completion(BATCH[on]),
    "list_batches": lambda c, on, p: list(c.list_batches()),
    "find_batch": lambda c, on, p: c.find_batch("x"),
    "cancel_batch": lambda c, on, p: c.cancel_batch(BATCH[on]),
    "delete_batch": lambda c, on, p: c.delete_batch(BATCH[on]),
    "update_batch": lambda c, on, p: c.update_batch(BATCH[on], priority=1),
    "upload_file": lambda c, on, p: c.upload_file(p),
    "get_file": lambda c, on, p: c.get_file(FILE[on]),
    "list_files": lambda c, on, p: list(c.list_files()),
    "delete_file": lambda c, on, p: c.delete_file(FILE[on]),
    "download_file": lambda c, on, p: c.download_file(FILE[on], p.with_name("y")),
    "embed_content": lambda c, on, p: c.embed_content("a"),
    "embed_contents": lambda c, on, p: c.embed_contents([]),
    "count_tokens": lambda c, on, p: c.count_tokens("a"),
    "list_models": lambda c, on, p: list(c.list_models()),
}


def test_every_call_is_tried() -> None:
    """The list below holds every public call."""
    public = {name for name in vars(Client) if not name.startswith("_") and name != "close"}
    assert public == set(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_closed_clients_say_so(case: Any, tmp_path: Path, call: str) -> None:
    """On both clouds, from both clients, before anything is sent; closing twice is fine."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"request":{"content":{"parts":[{"text":"a"}]}}}\n')
    case.client.close()
    case.client.close()
    with pytest.raises(InvalidRequestError, match="the client is closed: open another"):
        CALLS[call](case.client, case.on, path)
    assert case.cloud.bill().requests == {}


def test_lists_end_when_their_client_is_closed(gemini: Any) -> None:
    """A list that is read on after the client was closed says so too."""
    if gemini.kind != "Client":
        return  # the async cases read their lists to the end at once
    gemini.fault("small_pages", size=1)
    for _ in range(2):
        gemini.client.async_batch_embed_contents(["a"], display_name="x")
    listed = gemini.client.list_batches()
    next(listed)
    gemini.client.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        next(listed)


def test_waits_end_when_their_client_is_closed(held: Any) -> None:
    """A client closed by another thread ends a wait with the same error."""
    held.fault("job_stuck")
    made = held.client.async_batch_embed_contents(["a"], display_name="x")
    slept = threading.Event()

    def sleep(_: float) -> None:
        slept.set()
        closer.join()

    def close() -> None:
        slept.wait(10)
        held.client.close()

    held.client._performer.sleep = sleep
    closer = threading.Thread(target=close)
    closer.start()
    with pytest.raises(InvalidRequestError, match="closed"):
        held.client.await_batch_completion(made.name)
