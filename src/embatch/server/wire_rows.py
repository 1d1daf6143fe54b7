"""Embedding requests as they arrive, alone or as rows of a batch: parsed and checked. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from embatch.server.wire import (
    ApiError,
    dump_json,
    field_of,
    integer_of,
    invalid,
    load_json,
    message_of,
    messages_of,
    text_of,
)
from embatch.types.task import TaskType

_UNSPECIFIED: Final = "TASK_TYPE_UNSPECIFIED"
_TASKS: Final = {task.value.upper(): task for task in TaskType}
_NO_REQUEST: Final = "No request specified"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """What the rows of one call must keep to."""

    model: str
    """The model's name as in the URL."""
    dims: int
    """Length of its full vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRequest:
    """What one row asks for."""

    text: str
    dims: int
    task_type: TaskType | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRow:
    """One row of a batch."""

    request: RowRequest
    echo: bytes
    """`key` and `metadata` as JSON members without braces, to come back as they are."""


def read_content(content: Any) -> str:
    """All parts of a content as one text. ApiError 400 for parts that are no text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, dict):
        raise invalid("content: a message with parts is required.")
    if field_of(content, "parts") is None:
        raise invalid("content.parts: at least one part is required.")
    parts = messages_of(content, "parts")
    text_of(content, "role")
    return "\n".join([_read_part(part) for part in parts])


def _read_part(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if isinstance(text, str):
        return text
    if text is not None:
        raise invalid("content.parts.text: a string is required.")
    if part:
        raise invalid("content.parts: this model reads text only.")
    return ""


def read_request(request: Mapping[str, Any], rules: RowRules) -> RowRequest:
    """One EmbedContentRequest. ApiError 400 where the service refuses it."""
    named = text_of(request, "model")
    if named and named.removeprefix("models/") != rules.model:
        raise invalid(f"model: models/{rules.model} is required, as in the URL.")
    content = field_of(request, "content")
    if content is None:
        raise invalid("content is required.")
    config = message_of(request, "embedContentConfig")
    dims = integer_of(request, "outputDimensionality")
    if dims is None:
        dims = integer_of(config, "outputDimensionality")
    if dims is None:
        dims = rules.dims
    elif not 1 <= dims <= rules.dims:
        raise invalid(
            f"output_dimensionality: must be between 1 and {rules.dims}, "
            "the dimensions of the model that this server runs. Ask for fewer or leave it out, or "
            "start the server with a larger --model."
        )
    task = _read_task(text_of(request, "taskType") or text_of(config, "taskType"))
    title = text_of(request, "title") or text_of(config, "title")
    if title and task is not TaskType.RETRIEVAL_DOCUMENT:
        raise invalid("title: only valid with task type RETRIEVAL_DOCUMENT.")
    return RowRequest(text=read_content(content), dims=dims, task_type=task)


def _read_task(word: str) -> TaskType | None:
    word = word.upper()
    if not word or word == _UNSPECIFIED:
        return None
    if word not in _TASKS:
        raise invalid(f"task_type: must be one of {', '.join(_TASKS)}.")
    return _TASKS[word]


def read_file_row(line: bytes, rules: RowRules) -> BatchRow:
    """A line of a batch's file. ApiError 400 says what is wrong, without a word of the line."""
    try:
        row = load_json(line)
    except ValueError:
        raise invalid("Invalid JSON") from None
    return _read_row(row, rules, ("key", "metadata"))


def read_inline_row(row: Any, rules: RowRules) -> BatchRow:
    """An InlinedEmbedContentRequest."""
    return _read_row(row, rules, ("metadata",))


def _read_row(row: Any, rules: RowRules, echoed: tuple[str, ...]) -> BatchRow:
    request = row.get("request") if isinstance(row, dict) else None
    if not isinstance(request, dict):
        raise invalid(_NO_REQUEST)
    return BatchRow(
        request=read_request(request, rules),
        echo=b",".join(
            b'"%b":%b' % (name.encode(), dump_json(row[name])) for name in echoed if name in row
        ),
    )


def at_line(number: int, error: ApiError) -> ApiError:
    """The refusal of a whole create for its row `number`, from 1."""
    return invalid(f"Error on line {number}: {error.message}")


def read_many(body: Mapping[str, Any], rules: RowRules, *, most: int) -> list[RowRequest]:
    """The requests of a batchEmbedContents."""
    where = "* BatchEmbedContentsRequest.requests"
    requests = messages_of(body, "requests")
    if not requests:
        raise invalid(f"{where}: requests is not specified\n")
    if len(requests) > most:
        raise invalid(f"{where}: at most {most} requests can be in one batch\n")
    return [read_request(request, rules) for request in requests]


def read_countable(body: Mapping[str, Any]) -> list[str]:
    """The texts of a countTokens."""
    contents = messages_of(body, "contents")
    if not contents:
        contents = messages_of(message_of(body, "generateContentRequest"), "contents")
    if not contents:
        raise invalid("contents: at least one content is required.")
    return [read_content(content) for content in contents]
