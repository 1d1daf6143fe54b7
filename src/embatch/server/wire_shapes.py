"""Models, files and batches as the API shows them: built as plain JSON. Pure."""

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson

from embatch.server.wire import CANCELLED, INTERNAL, timestamp
from embatch.types.state import JobState

METHODS: Final = ("embedContent", "countTextTokens", "countTokens", "asyncBatchEmbedContent")
RESULT_PREFIX: Final = "batch-"
"""A batch's result file is `files/batch-<id of the batch>`."""
JSONL: Final = "application/jsonl"

# Whatever version was called, the wire says v1main.
_TYPE: Final = "type.googleapis.com/google.ai.generativelanguage.v1main.EmbedContentBatch"
# Drawn anew by each process: no display name can equal it.
_ITEMS: Final = f"items {secrets.token_hex(16)}"
_SPLIT: Final = orjson.dumps(_ITEMS)
_STATES: Final = {
    JobState.PENDING: "BATCH_STATE_PENDING",
    JobState.PROCESSING: "BATCH_STATE_RUNNING",
    JobState.COMPLETED: "BATCH_STATE_SUCCEEDED",
    JobState.FAILED: "BATCH_STATE_FAILED",
    JobState.CANCELLED: "BATCH_STATE_CANCELLED",
    JobState.EXPIRED: "BATCH_STATE_EXPIRED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownBatch:
    """A batch as callers see it."""

    id: str
    """36 characters, a-z and 0-9."""
    model: str
    """Name of the model as it was called."""
    display_name: str
    priority: int
    file_name: str | None
    """`files/…` of the input; None for inline requests."""
    state: JobState
    total: int
    succeeded: int
    failed: int
    output: bool
    """There are results to fetch; of a batch that has ended only."""
    error: str | None
    """Why it failed."""
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None
    """None until it has ended and its results can be fetched."""
    plan: Mapping[str, Any] | None = None
    """What a simulated day has in store for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFile:
    """An uploaded file as callers see it."""

    id: str
    display_name: str
    mime_type: str
    size_bytes: int
    sha256: str
    """Hex."""
    created_at: datetime
    expires_at: datetime


def build_model(name: str, served: str, max_tokens: int, dims: int) -> dict[str, Any]:
    """A Model: `name` as it is called, `served` as it is called on this machine."""
    alias = f"; {name} is another name for it" if name != served else ""
    return {
        "name": f"models/{name}",
        "version": "001",
        "displayName": name,
        "description": f"{served} on this machine, {dims} dimensions{alias}",
        "inputTokenLimit": max_tokens,
        "outputTokenLimit": 1,
        "supportedGenerationMethods": list(METHODS),
    }


def build_file(file: ShownFile, base_url: str) -> dict[str, Any]:
    """A File."""
    shown = {
        "name": f"files/{file.id}",
        "displayName": file.display_name,
        "mimeType": file.mime_type,
        "sizeBytes": str(file.size_bytes),
        "createTime": timestamp(file.created_at),
        "updateTime": timestamp(file.created_at),
        "expirationTime": timestamp(file.expires_at),
        # The wire carries base64 of the hex digest's characters, not of the digest.
        "sha256Hash": base64.b64encode(file.sha256.encode()).decode(),
        "uri": f"{base_url}/v1beta/files/{file.id}",
        "state": "ACTIVE",
        "source": "UPLOADED",
    }
    return {name: value for name, value in shown.items() if value != ""}


def build_result_file(batch: ShownBatch, size_bytes: int, base_url: str) -> dict[str, Any]:
    """The File that a batch's results are."""
    name = f"files/{RESULT_PREFIX}{batch.id}"
    ended = timestamp(batch.ended_at or batch.updated_at)
    return {
        "name": name,
        "mimeType": JSONL,
        "sizeBytes": str(size_bytes),
        "createTime": ended,
        "updateTime": ended,
        "uri": f"{base_url}/v1beta/{name}",
        "downloadUri": f"{base_url}/v1beta/{name}:download?alt=media",
        "state": "ACTIVE",
        "source": "GENERATED",
    }


def build_batch(batch: ShownBatch) -> dict[str, Any]:
    """An EmbedContentBatch, without its output. Empty fields and zero counts are left out."""
    counts = {
        "requestCount": batch.total,
        "successfulRequestCount": batch.succeeded,
        "failedRequestCount": batch.failed,
        "pendingRequestCount": batch.total - batch.succeeded - batch.failed,
    }
    shown = {
        "model": f"models/{batch.model}",
        "displayName": batch.display_name,
        "inputConfig": {"fileName": batch.file_name} if batch.file_name else "",
        "createTime": timestamp(batch.created_at),
        "endTime": timestamp(batch.ended_at) if batch.ended_at else "",
        "updateTime": timestamp(batch.updated_at),
        "batchStats": {name: str(count) for name, count in counts.items() if count},
        "state": _STATES[batch.state],
        "priority": str(batch.priority) if batch.priority else "",
        "name": f"batches/{batch.id}",
    }
    return {name: value for name, value in shown.items() if value != ""}


def build_operation(batch: ShownBatch, *, results: bool) -> dict[str, Any]:
    """The Operation of a batch; with `results` it tells them twice, as the API does.

    Inline results are a mark in it, which `split_at_items` finds.
    """
    metadata = {"@type": _TYPE, **build_batch(batch)}
    shown: dict[str, Any] = {"name": f"batches/{batch.id}", "metadata": metadata}
    if batch.ended_at is None:
        return shown
    shown["done"] = True
    if batch.state is JobState.CANCELLED:
        shown["error"] = {"code": CANCELLED, "message": "The batch was cancelled."}
    elif batch.state is JobState.FAILED:
        shown["error"] = {"code": INTERNAL, "message": batch.error or "The batch failed."}
    if results and batch.output:
        output: dict[str, Any] = {"inlinedResponses": {"inlinedResponses": [_ITEMS]}}
        if batch.file_name:
            output = {"responsesFile": f"files/{RESULT_PREFIX}{batch.id}"}
        metadata["output"] = output
        shown["response"] = {"@type": _TYPE + "Output", **output}
    return shown


def split_at_items(operation: dict[str, Any]) -> list[bytes]:
    """The Operation's JSON in the pieces between which inline items go; one piece without any."""
    return orjson.dumps(operation).split(_SPLIT)


def build_usage(tokens: int) -> dict[str, Any]:
    """`usageMetadata` of an interactive call."""
    return {
        "promptTokenCount": tokens,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": tokens}],
    }


def success_line(echo: bytes, values: bytes, tokens: int) -> bytes:
    """A row's result: `echo` are its members, `values` numbers between commas."""
    comma = b"," if echo else b""
    return (
        b'{%b%b"response":{"embedding":{"values":[%b]},"usageMetadata":{"promptTokenCount":%d}}}'
        % (echo, comma, values, tokens)
    )


def error_line(echo: bytes, code: int, message: str) -> bytes:
    """A row that failed. Never with details: they break the official Python client."""
    comma = b"," if echo else b""
    status = orjson.dumps({"code": code, "message": message})
    return b'{%b%b"error":%b}' % (echo, comma, status)
