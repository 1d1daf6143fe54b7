"""Batches whose label bears no tag: their keys tell what was sent, counts only help."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from obstore.store import GCSStore

from embatch.errors import AlignmentError, InvalidRequestError
from embatch.testing.cloud import expected_vectors
from embatch.types.batch import EmbedContentBatch
from embatch.types.label import wire_key

LABEL = "journal-1/run-7/batch-3/attempt-1"
TEXTS = [f"text {i}" for i in range(12)]
KEYS = [f"doc-{i}" for i in range(12)]

Write = Callable[..., Path]


def _finished(case: Any, jsonl: Write, indices: Sequence[int | str]) -> EmbedContentBatch:
    rows = [
        json.dumps(
            {
                "key": wire_key(LABEL, i) if isinstance(i, int) else i,
                "request": {"content": {"parts": [{"text": f"text {i}"}]}},
            }
        )
        for i in indices
    ]
    made = case.client.create_batch_from_file(jsonl(rows), display_name=LABEL, unique_name=True)
    case.cloud.finish(made.name)
    batch: EmbedContentBatch = case.client.get_batch_status(made.name)
    return batch


def _failed(found: Any) -> dict[int, str]:
    return {index: error.code for index, error in found.failed_responses}


@pytest.mark.parametrize("counts", ["told", "missing"])
def test_keys_align_whatever_the_counts(case: Any, jsonl: Write, counts: str) -> None:
    """Counts that a service leaves out neither shorten the results nor refuse them."""
    if counts == "missing":
        case.fault("stats_missing")
    case.fault("shuffle")
    case.fault("missing_rows", indices=[3])
    found = case.client.get_batch_embeddings(_finished(case, jsonl, range(12)))
    assert found.aligned
    assert len(found) == 12
    assert _failed(found) == {3: "missing"}
    good = [i for i in range(12) if i != 3]
    np.testing.assert_array_equal(found.to_numpy()[good], expected_vectors(TEXTS)[good])


@pytest.mark.parametrize("by", ["counts", "keys", "input"])
def test_a_missing_last_row_is_named(case: Any, jsonl: Write, by: str) -> None:
    """The end of the list is known by the caller's keys, by the staged input, else by counts."""
    case.fault("missing_rows", indices=[10, 11])
    if by != "counts":
        case.fault("stats_missing")
    batch = _finished(case, jsonl, range(12))
    if by == "input" and case.on == "gemini":
        # Uploads cannot be read back: without counts and keys nobody knows of the last rows.
        assert len(case.client.get_batch_embeddings(batch)) == 10
        return
    found = case.client.get_batch_embeddings(batch, keys=KEYS if by == "keys" else None)
    assert _failed(found) == {10: "missing", 11: "missing"}
    assert found.keys == (tuple(KEYS) if by == "keys" else None)


def test_the_input_outweighs_counts(vertex: Any, jsonl: Write) -> None:
    """Where the input is still there, it alone tells how many rows were sent."""
    batch = _finished(vertex, jsonl, range(12))
    stale = vertex.client.get_batch_embeddings(_with_count(batch, 40))
    assert len(stale) == 12
    vertex.client.delete_file(batch.input_config.file)
    assert len(vertex.client.get_batch_embeddings(batch)) == 12


def test_an_input_that_became_unreadable_is_no_error(vertex: Any, jsonl: Write) -> None:
    """Lines that somebody wrote over tell nothing; results and counts are still there."""
    batch = _finished(vertex, jsonl, range(12))
    name = batch.input_config.file
    assert name is not None
    bucket, _, key = name.removeprefix("gs://").partition("/")
    store = GCSStore(
        bucket,
        base_url=vertex.cloud.storage_url,
        bearer_token=vertex.cloud.access_token,
        client_options={"allow_http": True},
    )
    obstore.put(store, key, b"\x1f\x8b no JSON\n[1]\n")
    assert len(vertex.client.get_batch_embeddings(batch)) == 12


def _with_count(batch: EmbedContentBatch, rows: int) -> EmbedContentBatch:
    return replace(batch, batch_stats=replace(batch.batch_stats, request_count=rows))


def test_counts_that_are_too_low_refuse_nothing(gemini: Any, jsonl: Write) -> None:
    """A count under the highest key that came is stale: the key stands."""
    batch = _finished(gemini, jsonl, range(12))
    for count in (0, 5):
        assert len(gemini.client.get_batch_embeddings(_with_count(batch, count))) == 12


def test_own_keys_may_begin_late(gemini: Any, jsonl: Write) -> None:
    """Whose keys they are is told by all rows, not by the first block."""
    gemini.fault("metadata_missing")
    rows = _finished(gemini, jsonl, range(12))
    assert not gemini.client.get_batch_embeddings(rows).aligned
    gemini.cloud.clear_faults()
    mixed = _finished(gemini, jsonl, ["theirs", *range(700)])
    with pytest.raises(AlignmentError, match="another batch"):
        gemini.client.get_batch_embeddings(mixed)


def test_keys_do_not_rename_the_rows_of_others(case: Any, jsonl: Write) -> None:
    """keys= is refused where it would be ignored, or where it names fewer rows than there are."""
    theirs = _finished(case, jsonl, ["a", "b"])
    with pytest.raises(InvalidRequestError, match="keys="):
        case.client.get_batch_embeddings(theirs, keys=["x", "y"])
    ours = _finished(case, jsonl, range(12))
    with pytest.raises(AlignmentError, match="11 inputs"):
        case.client.get_batch_embeddings(ours, keys=KEYS[:11])
