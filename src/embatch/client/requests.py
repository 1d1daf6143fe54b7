"""Texts to request rows of every dialect, fast: what does not change is encoded once."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from embatch.errors import InvalidRequestError, StorageError
from embatch.types.label import Label, label_hash
from embatch.types.models import EmbeddingModel, find_model
from embatch.types.task import TaskType, parse_task_type

INLINE_ROWS: Final = 1_000
"""Fewer rows than this may be sent in the call itself: beyond, results have come back permuted."""
INLINE_BYTES: Final = 15_000_000
"""Smaller bodies than this may be sent in the call itself; the service's limit is 20 MB."""
_SPOOL_ROWS: Final = 1_024
_MARK: Final = b'"\\u0000"'
"""Stands for the text in a row that is encoded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions:
    """What is asked for of every text of a call."""

    model: EmbeddingModel
    task: TaskType | None = None
    dims: int | None = None
    title: str | None = None

    @classmethod
    def of(
        cls, model: str, task_type: str | None, output_dimensionality: int | None, title: str | None
    ) -> "EmbedOptions":
        """The options, checked; InvalidRequestError says what to mend."""
        known = find_model(checked_model(model))
        task = parse_task_type(task_type)
        dims = output_dimensionality
        if dims is not None:
            top = known.dims if known.known else dims
            if isinstance(dims, bool) or not isinstance(dims, int) or dims < 1:
                raise InvalidRequestError("output_dimensionality must be a whole number")
            if not known.min_dims <= dims <= top:
                raise InvalidRequestError(
                    f"output_dimensionality must be {known.min_dims}..{known.dims} for "
                    f"{known.name}, not {dims}"
                )
        if title is not None and task is not TaskType.RETRIEVAL_DOCUMENT:
            raise InvalidRequestError(
                "title goes with task_type='retrieval_document' only: set that or leave it out"
            )
        if title is not None and not is_text(title):
            raise InvalidRequestError("title must be a string that UTF-8 can carry")
        return cls(model=known, task=task, dims=dims, title=title)

    @property
    def template(self) -> str | None:
        """Text around each input, with `{text}` in it, where the model wants the task there."""
        if self.task is None or self.task not in self.model.prefixes:
            return None
        return self.model.prefixes[self.task].replace("{title}", self.title or "none")

    @property
    def affixes(self) -> tuple[str, str]:
        """What is written before and after each text."""
        if self.task is None or self.task not in self.model.prefixes:
            return "", ""
        before, after = self.model.prefixes[self.task].split("{text}", 1)
        return before.replace("{title}", self.title or "none"), after

    @property
    def expected_dims(self) -> int | None:
        """The length that vectors will have, None when it is not known."""
        return self.dims or (self.model.dims if self.model.known else None)

    @property
    def _parameters(self) -> dict[str, Any]:
        sent: dict[str, Any] = {"outputDimensionality": self.dims}
        if not self.model.prefixes:
            sent["taskType"] = _wire_task(self.task)
            sent["title"] = self.title
        return {name: value for name, value in sent.items() if value is not None}

    def gemini_request(self, text: str) -> dict[str, Any]:
        """One request of the Gemini API."""
        return {"content": {"parts": [{"text": text}]}, **self._parameters}

    def vertex_request(self, text: str) -> dict[str, Any]:
        """One interactive request of Gemini models on Vertex AI."""
        config = self._parameters
        content = {"content": {"parts": [{"text": text}]}}
        return {**content, "embedContentConfig": config} if config else content

    def vertex_row(self, text: str) -> dict[str, Any]:
        """One row of a Vertex AI batch, without its key."""
        if self.model.flat_rows:
            flat = self._parameters
            if "taskType" in flat:
                flat["task_type"] = flat.pop("taskType")
            return {"content": text, **flat}
        config = {_SNAKE[name]: value for name, value in self._parameters.items()}
        row: dict[str, Any] = {"content": {"parts": [{"text": text}]}}
        if config:
            row["embed_content_config"] = config
        return {"request": row}

    def instance(self, text: str) -> dict[str, Any]:
        """One instance of `:predict`."""
        instance = {"content": text, "task_type": _wire_task(self.task), "title": self.title}
        return {name: value for name, value in instance.items() if value is not None}


_SNAKE: Final = {
    "outputDimensionality": "output_dimensionality",
    "taskType": "task_type",
    "title": "title",
}


def _wire_task(task: TaskType | None) -> str | None:
    if task is None:
        return None
    words = {TaskType.CODE_RETRIEVAL_QUERY: "CODE_RETRIEVAL_QUERY"}
    return words.get(task, task.value.upper())


_MODEL: Final = re.compile(r"[A-Za-z0-9][\w./@:-]*", re.ASCII)


def checked_model(model: str) -> str:
    """The model's name; InvalidRequestError for what cannot be one."""
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise InvalidRequestError(
            "model must be the name of a model, like 'gemini-embedding-001': letters, digits and "
            "./@:_- only"
        )
    return model


def is_text(value: object) -> bool:
    """A string without halves of surrogate pairs, which no UTF-8 can carry."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list; InvalidRequestError names the place of what is no text."""
    if isinstance(texts, (str, bytes)):
        raise InvalidRequestError("texts must be a list of strings, not one string")
    listed = list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise InvalidRequestError(
                f"texts[{index}] is of type {type(text).__name__}: give strings only"
            )
    return listed


def require_utf8(texts: Sequence[str]) -> None:
    """Raises InvalidRequestError for a text that cannot travel, naming its place."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            break
    else:
        return
    raise _unsendable(texts, 0)


def _unsendable(texts: Sequence[str], start: int) -> InvalidRequestError:
    for index, text in enumerate(texts, start):
        try:
            text.encode()
        except UnicodeEncodeError:
            return InvalidRequestError(
                f"texts[{index}] holds half of a surrogate pair, which no UTF-8 can carry: "
                "clean or leave out this text"
            )
    return InvalidRequestError("a text cannot be written as JSON")


def _around(row: dict[str, Any], affixes: tuple[str, str]) -> tuple[bytes, bytes]:
    """The bytes before and after a text's JSON, its affixes included."""
    before, after = orjson.dumps(row).split(_MARK, 1)
    head, tail = (orjson.dumps(affix)[1:-1] for affix in affixes)
    return before + b'"' + head, tail + b'"' + after


def build_rows(
    texts: Sequence[str],
    row: dict[str, Any],
    *,
    affixes: tuple[str, str],
    key: bytes,
    start: int = 0,
) -> Iterator[bytes]:
    """JSON of each text's row: `row` holds NUL in the text's place, `key` goes before the index."""
    before, after = _around(row, affixes)
    opening, middle = b'{"key":"' + key, b'",' + before[1:]
    dumps = orjson.dumps
    try:
        for index, text in enumerate(texts, start):
            yield b"%b%d%b%b%b" % (opening, index, middle, dumps(text)[1:-1], after)
    except orjson.JSONEncodeError:
        failure = _unsendable(texts, start)
    else:
        return
    raise failure


def build_lines(texts: Sequence[str], options: EmbedOptions, label: Label) -> Iterator[bytes]:
    """Rows of an input file of the Gemini API, without line ends."""
    row = {"request": options.gemini_request("\0")}
    return build_rows(texts, row, affixes=options.affixes, key=_key(label))


def build_vertex_lines(
    texts: Sequence[str], options: EmbedOptions, label: Label
) -> Iterator[bytes]:
    """Rows of an input file of Vertex AI, without line ends."""
    row = options.vertex_row("\0")
    return build_rows(texts, row, affixes=options.affixes, key=_key(label))


def _key(label: Label) -> bytes:
    return f"{label_hash(label.text)}:".encode()


def build_inline(
    texts: Sequence[str], options: EmbedOptions, label: Label, *, priority: int
) -> bytes | None:
    """The body that creates a batch with its rows inside; None when they belong into a file."""
    if len(texts) >= INLINE_ROWS:
        return None
    rows = []
    size = 0
    for line in build_lines(texts, options, label):
        # {"key":K,"request":R} becomes {"metadata":{"key":K},"request":R}: cut at the first comma,
        # which follows the key, since a key of ours holds none.
        key, rest = line.split(b",", 1)
        rows.append(b'{"metadata":%b},%b' % (key, rest))
        size += len(rows[-1])
        if size >= INLINE_BYTES:
            return None
    head = orjson.dumps(build_batch(label, {"requests": {"requests": []}}, priority=priority))
    before, after = head.split(b"[]", 1)
    return b"%b[%b]%b" % (before, b",".join(rows), after)


def build_batch(label: Label | str, source: dict[str, Any], *, priority: int) -> dict[str, Any]:
    """The body that creates a batch of the Gemini API."""
    text = label if isinstance(label, str) else label.text
    batch: dict[str, Any] = {"inputConfig": source, "displayName": text}
    if priority:
        batch["priority"] = str(priority)
    return {"batch": batch}


def spool(lines: Iterator[bytes], path: Path) -> Path:
    """Writes lines to a file; StorageError when the disk does not take them."""
    try:
        with path.open("wb") as file:
            held: list[bytes] = []
            for line in lines:
                held.append(line)
                if len(held) == _SPOOL_ROWS:
                    file.write(b"\n".join(held) + b"\n")
                    held.clear()
            if held:
                file.write(b"\n".join(held) + b"\n")
    except OSError as error:
        raise StorageError(
            f"the rows cannot be kept in {path.parent}: {error.strerror}. Free space there, or set "
            "TMPDIR to another folder."
        ) from None
    return path
