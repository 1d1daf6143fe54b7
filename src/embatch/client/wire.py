"""JSON of the services <-> our types. With results.py and requests.py the only place of the client
that knows remote field names."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from embatch.client.retry import GRPC_CODES, told
from embatch.errors import ProviderUnavailableError
from embatch.types.batch import (
    BatchError,
    BatchInput,
    BatchOutput,
    EmbedContentBatch,
    EmbedContentBatchStats,
)
from embatch.types.files import ModelDescription, RemoteFile
from embatch.types.label import Label
from embatch.types.models import bare_model_name
from embatch.types.state import TERMINAL_JOB_STATES, JobState

Object = Mapping[str, Any]
T = TypeVar("T", bound=Mapping[str, Any])

_PREFIX: Final = re.compile(r"^(?:[A-Z]+_)*STATE_")
_STATES: Final[Mapping[str, JobState]] = {
    "UNSPECIFIED": JobState.UNSPECIFIED,
    "PENDING": JobState.PENDING,
    "QUEUED": JobState.PENDING,
    "RUNNING": JobState.PROCESSING,
    "PROCESSING": JobState.PROCESSING,
    "UPDATING": JobState.PROCESSING,
    "CANCELLING": JobState.PROCESSING,
    "PAUSED": JobState.PENDING,
    "SUCCEEDED": JobState.COMPLETED,
    "COMPLETED": JobState.COMPLETED,
    "PARTIALLY_SUCCEEDED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "EXPIRED": JobState.EXPIRED,
}


def parse_state(word: object) -> JobState | str:
    """Our word for a service's, whatever it writes before it; unknown ones in lower case."""
    bare = _PREFIX.sub("", str(word or "UNSPECIFIED").upper())
    return _STATES.get(bare, bare.lower())


def parse_time(text: object) -> datetime | None:
    """A time in UTC; nanoseconds are cut to microseconds."""
    if not isinstance(text, str) or not text:
        return None
    found = re.fullmatch(r"(.*?)(?:\.(\d+))?(Z|[+-]\d\d:?\d\d)?", text)
    if found is None:
        return None
    base, fraction, zone = found.groups()
    try:
        time = datetime.fromisoformat(
            f"{base}.{(fraction or '0')[:6]:0<6}{(zone or 'Z').replace('Z', '+00:00')}"
        )
    except ValueError:
        return None
    return time.astimezone(UTC)


def integer(value: object) -> int:
    """A count as services write it: a number, a string of digits, or nothing for 0."""
    try:
        return int(value) if value is not None else 0  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return 0


def pick(holder: object, *names: str) -> Any:
    """The first of the fields that is there, under either spelling of its name."""
    if isinstance(holder, Mapping):
        for name in names:
            if name in holder:
                return holder[name]
    return None


def _object(value: object) -> Object:
    return value if isinstance(value, Mapping) else {}


def _settled(state: JobState | str, *, done: bool, output: object, error: object) -> JobState | str:
    """The state in the light of `done: true`, which a stale word does not outweigh."""
    stale = isinstance(state, JobState) and state not in TERMINAL_JOB_STATES
    if not (done and stale):
        return state
    return JobState.COMPLETED if output is not None or error is None else JobState.FAILED


def _error(value: object) -> BatchError | None:
    error = _object(value)
    if not error:
        return None
    code = GRPC_CODES.get(integer(error.get("code")), "unknown")
    said = told(error.get("message"))
    return BatchError(
        code=code, message=f"the service ended it: {code}" + (f" ({said})" if said else "")
    )


def _named(label: object) -> tuple[str, str]:
    text = str(label or "")
    parsed = Label.parse(text)
    return (parsed.display_name if parsed else text), text


def parse_operation(document: Object, *, holds_rows: bool = False) -> EmbedContentBatch:
    """A batch of the Gemini API, from its long-running operation.

    `holds_rows`: there were rows in the document, cut out of it on the way.
    """
    metadata = _object(document.get("metadata")) or document
    name = document.get("name") or metadata.get("name")
    if not isinstance(name, str) or not name:
        raise ProviderUnavailableError("the service's answer names no batch: try again later")
    done = document.get("done") is True
    output = _output(metadata.get("output"), document.get("response"), holds_rows=holds_rows)
    error = _error(document.get("error"))
    display_name, label = _named(pick(metadata, "displayName", "display_name"))
    return EmbedContentBatch(
        name=name,
        display_name=display_name,
        label=label,
        model=bare_model_name(str(metadata.get("model") or "")),
        state=_settled(parse_state(metadata.get("state")), done=done, output=output, error=error),
        done=done,
        batch_stats=_stats(pick(metadata, "batchStats", "batch_stats")),
        priority=integer(metadata.get("priority")),
        create_time=parse_time(metadata.get("createTime")),
        update_time=parse_time(metadata.get("updateTime")),
        end_time=parse_time(metadata.get("endTime")),
        input_config=BatchInput(
            file=pick(_object(metadata.get("inputConfig")), "fileName", "file_name")
        ),
        output=output,
        error=error,
    )


def _stats(value: object) -> EmbedContentBatchStats:
    return EmbedContentBatchStats(
        request_count=integer(pick(value, "requestCount")),
        successful_request_count=integer(pick(value, "successfulRequestCount")),
        failed_request_count=integer(pick(value, "failedRequestCount")),
        pending_request_count=integer(pick(value, "pendingRequestCount")),
    )


def _output(output: object, response: object, *, holds_rows: bool) -> BatchOutput | None:
    for holder in (output, response):
        file = pick(holder, "responsesFile", "responses_file")
        if isinstance(file, str) and file:
            return BatchOutput(file=file)
    listed = any(
        pick(holder, "inlinedResponses", "inlinedEmbedContentResponses") is not None
        for holder in (output, response)
    )
    return BatchOutput(inlined=True) if listed or holds_rows else None


def require_whole(page: T) -> T:
    """The page of a list; ProviderUnavailableError when the service left a part of it out."""
    if pick(page, "unreachable"):
        raise ProviderUnavailableError(
            "listing batches: the service could not reach all of its places: try again later"
        )
    return page


def is_embedding_operation(document: Object) -> bool:
    """The operation is an embedding batch: lists mix them with batches that generate text."""
    kind = str(_object(document.get("metadata")).get("@type") or "EmbedContentBatch")
    return kind.endswith("EmbedContentBatch")


def parse_job(document: Object) -> EmbedContentBatch:
    """A batch of Vertex AI, from its batchPredictionJob."""
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise ProviderUnavailableError("the service's answer names no job: try again later")
    state = parse_state(document.get("state"))
    directory = _object(document.get("outputInfo")).get("gcsOutputDirectory")
    uris = _object(_object(document.get("inputConfig")).get("gcsSource")).get("uris") or [None]
    display_name, label = _named(document.get("displayName"))
    return EmbedContentBatch(
        name=name,
        display_name=display_name,
        label=label,
        model=bare_model_name(str(document.get("model") or "")),
        state=state,
        done=state in TERMINAL_JOB_STATES or "endTime" in document,
        batch_stats=_completion(document.get("completionStats"), Label.parse(label)),
        create_time=parse_time(document.get("createTime")),
        update_time=parse_time(document.get("updateTime")),
        end_time=parse_time(document.get("endTime")),
        input_config=BatchInput(file=uris[0]),
        output=BatchOutput(directory=str(directory).rstrip("/")) if directory else None,
        error=_error(document.get("error")),
    )


def _completion(value: object, label: Label | None) -> EmbedContentBatchStats:
    # Unknown counts are "-1" on Vertex AI.
    successful, failed, left = (
        max(integer(pick(value, name)), 0)
        for name in ("successfulCount", "failedCount", "incompleteCount")
    )
    sent = label.rows if label is not None and label.rows is not None else 0
    total = max(successful + failed + left, sent)
    return EmbedContentBatchStats(
        request_count=total,
        successful_request_count=successful,
        failed_request_count=failed,
        pending_request_count=total - successful - failed,
    )


def parse_file(document: Object) -> RemoteFile:
    """A file of the Files API; both spellings of every name are read."""
    name = document.get("name")
    if not isinstance(name, str) or not name:
        raise ProviderUnavailableError("the service's answer names no file: try again later")
    return RemoteFile(
        name=name,
        display_name=str(pick(document, "displayName", "display_name") or ""),
        mime_type=str(pick(document, "mimeType", "mime_type") or ""),
        size_bytes=integer(pick(document, "sizeBytes", "size_bytes")),
        create_time=parse_time(pick(document, "createTime", "create_time")),
        expiration_time=parse_time(pick(document, "expirationTime", "expiration_time")),
        sha256=_sha256(pick(document, "sha256Hash", "sha256_hash")),
        state=str(document.get("state") or "").lower(),
    )


def _sha256(value: object) -> str | None:
    """Hex digest from what the wire holds: base64 of the hex digits, or of the bare 32 bytes."""
    import base64
    import binascii

    try:
        raw = base64.b64decode(str(value or ""), validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) == 32:
        return raw.hex()
    return raw.decode("ascii", "replace").lower() if len(raw) == 64 else None


def parse_model(document: Object) -> ModelDescription:
    """A model that a service offers."""
    name = bare_model_name(str(document.get("name") or ""))
    methods = pick(document, "supportedGenerationMethods", "supportedActions") or ()
    return ModelDescription(
        name=name,
        display_name=str(pick(document, "displayName") or name),
        input_token_limit=integer(pick(document, "inputTokenLimit")) or None,
        methods=tuple(str(method) for method in methods),
    )
