"""Counts of a finished batch: what they say is what reading its results says."""

from typing import Any

import pytest

TEXTS = [f"text {i}" for i in range(20)]

SPOILED: dict[str, dict[str, Any]] = {
    "null_vector null": {"shape": "null"},
    "null_vector empty": {"shape": "empty"},
    "null_vector absent": {"shape": "absent"},
    "null_vector no_response": {"shape": "no_response"},
    "null_value": {},
    "nan": {},
    "overflow": {},
    "wrong_dims": {},
    "missing_rows": {},
    "row_error": {"code": 3},
}


@pytest.mark.parametrize("fault", SPOILED)
@pytest.mark.parametrize("dims", [None, 128])
def test_inline_counts_are_what_reading_says(gemini: Any, fault: str, dims: int | None) -> None:
    """Rows without a sound vector have failed, whatever the service counts."""
    gemini.fault(fault.split()[0], **SPOILED[fault], indices=[0, 3, 17])
    batch = gemini.finished(TEXTS, output_dimensionality=dims)
    found = gemini.client.get_batch_embeddings(batch)
    stats = batch.batch_stats
    assert len(found.failed_responses) == 3
    assert stats.request_count == len(found) == 20
    assert stats.failed_request_count == 3
    assert stats.successful_request_count == len(found.successful_responses)
    assert stats.pending_request_count == 0
    assert stats.is_complete
    assert stats.success_rate == 85.0


def test_counts_of_cancelled_batches(gemini: Any) -> None:
    """Rows that were never served count as failed once the batch has ended."""
    gemini.fault("cancel_partial", share=0.5)
    gemini.fault("job_duration", seconds=3600.0)
    made = gemini.client.async_batch_embed_contents(TEXTS, display_name="x")
    gemini.client.cancel_batch(made.name)
    batch = gemini.client.await_batch_completion(made.name, poll_interval=0.01)
    found = gemini.client.get_batch_embeddings(batch)
    assert batch.batch_stats.request_count == 20
    assert batch.batch_stats.failed_request_count == len(found.failed_responses) > 0
