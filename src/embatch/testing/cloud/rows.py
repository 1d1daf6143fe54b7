"""Request rows as they arrive: parsed, checked as the service checks them, and counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from embatch.testing.cloud.answers import ApiError, field_of
from embatch.testing.cloud.models import TASK_TYPES, ModelCard, count_read, cut_to_limit

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RowRequest:
    """What one row asks for."""

    text: str
    dims: int
    task_type: str | None
    title: str | None


def content_text(content: Any) -> str:
    """All parts of a content as one text; media stand in by their place and kind."""
    if isinstance(content, str):
        return content
    parts = field_of(content, "parts")
    if isinstance(parts, dict):
        parts = [parts]
    if not isinstance(parts, list):
        raise ApiError(400, "content: parts is required.")
    if len(parts) == 1 and isinstance(parts[0], dict) and isinstance(parts[0].get("text"), str):
        return str(parts[0]["text"])
    texts = []
    for part in parts:
        text = field_of(part, "text")
        media = field_of(part, "fileData") or field_of(part, "inlineData")
        if isinstance(text, str):
            texts.append(text)
        elif isinstance(media, dict):
            texts.append(orjson.dumps(media, option=orjson.OPT_SORT_KEYS).decode())
        elif part != {}:
            raise ApiError(400, "content.parts: data is not set.")
    return "\n".join(texts)


def read_request(request: Line, card: ModelCard, *, url_model: bool = True) -> RowRequest:
    """One EmbedContentRequest. ApiError 400 where the service would refuse it."""
    named = field_of(request, "model")
    if url_model and named and str(named).rsplit("/", 1)[-1] != card.name:
        raise ApiError(400, f"model: must be models/{card.name} or absent, as in the URL.")
    content = field_of(request, "content")
    if content is None:
        raise ApiError(400, "content is required.")
    config = field_of(request, "embedContentConfig")
    return _checked(
        content_text(content),
        field_of(request, "outputDimensionality", field_of(config, "outputDimensionality")),
        field_of(request, "taskType", field_of(config, "taskType")),
        field_of(request, "title", field_of(config, "title")),
        card,
    )


def read_instance(instance: Line, card: ModelCard, dims: Any = None) -> RowRequest:
    """One flat row of the older Vertex models."""
    content = instance.get("content")
    if not isinstance(content, str):
        raise ApiError(400, "content is required and is a string.")
    return _checked(
        content,
        field_of(instance, "outputDimensionality", dims),
        field_of(instance, "taskType"),
        field_of(instance, "title"),
        card,
    )


def _checked(text: str, dims: Any, task_type: Any, title: Any, card: ModelCard) -> RowRequest:
    if dims is None:
        dims = card.full_dims
    elif isinstance(dims, bool) or not str(dims).lstrip("-").isdigit():
        raise ApiError(400, "output_dimensionality: not an integer.")
    dims = int(dims)
    if not card.min_dims <= dims <= card.full_dims:
        limits = f"{card.min_dims} and {card.full_dims}"
        raise ApiError(400, f"output_dimensionality must be between {limits}.")
    if task_type is not None and task_type not in TASK_TYPES:
        raise ApiError(400, "task_type: not a known value.")
    if title and card.reads_task and task_type != "RETRIEVAL_DOCUMENT":
        raise ApiError(400, "title is only valid with task type RETRIEVAL_DOCUMENT.")
    return RowRequest(text, dims, task_type, title or None)


def tokens_read(text: str, card: ModelCard, bytes_per_token: int) -> int:
    """Tokens that the model reads of a text, and that are charged."""
    return count_read(cut_to_limit(text, card)[0], card, bytes_per_token)


def lines_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line that is not blank."""
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def read_line(line: bytes, card: ModelCard) -> tuple[Line, RowRequest]:
    """A line of a batch file and what it asks for. ApiError 400 says what is wrong."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ApiError(400, "Invalid JSON") from None
    if card.legacy:
        return row, read_instance(row, card)
    request = row.get("request") if isinstance(row, dict) else None
    if not isinstance(request, dict):
        raise ApiError(400, "No request specified")
    return row, read_request(request, card)


def measure(path: Path, card: ModelCard, bytes_per_token: int) -> tuple[int, int]:
    """Rows and tokens of a batch file; the first bad row is a 400 that names its line."""
    rows = tokens = 0
    for number, line in lines_of(path):
        try:
            _, wanted = read_line(line, card)
        except ApiError as error:
            raise ApiError(400, f"Error on line {number}: {error.message}") from None
        rows += 1
        tokens += tokens_read(wanted.text, card, bytes_per_token)
    if rows == 0:
        raise ApiError(400, "No requests specified")
    return rows, tokens
