"""What users hand in, checked, as values that the clouds take."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from embatch.client.cloud import NewBatch, NewFileBatch, checked_display_name, checked_label
from embatch.client.requests import EmbedOptions, checked_model, checked_texts
from embatch.errors import InvalidRequestError
from embatch.types.batch import EmbedContentBatch
from embatch.types.label import Label
from embatch.types.models import bare_model_name

MOST_PRIORITY = 2**63 - 1


def new_batch(
    texts: Sequence[str],
    display_name: str,
    model: str,
    task_type: str | None,
    output_dimensionality: int | None,
    title: str | None,
    priority: int,
    keys: Sequence[str] | None,
) -> NewBatch:
    """A batch of texts; InvalidRequestError says what to mend."""
    name = checked_display_name(display_name)
    listed = checked_texts(texts)
    if not listed:
        raise InvalidRequestError("texts is empty: there is nothing to embed")
    return NewBatch(
        texts=listed,
        options=EmbedOptions.of(model, task_type, output_dimensionality, title),
        display_name=name,
        priority=checked_priority(priority),
        keys=None if keys is None else _checked_keys(keys, len(listed)),
    )


_REMOTE: Final = re.compile(r"files/[a-z0-9-]+|gs://.*", re.DOTALL)
"""Names of files at a service. Ids of the Files API hold no dot: files/rows.jsonl is a path."""


def new_file_batch(
    path: str | os.PathLike[str], display_name: str, model: str, priority: int, *, unique: bool
) -> NewFileBatch:
    """A batch of request rows in a file; `unique` takes the name for a label as it is."""
    name = checked_display_name(display_name)
    return NewFileBatch(
        path=Path(path),
        remote=path if isinstance(path, str) and _REMOTE.fullmatch(path) else None,
        label=checked_label(name if unique else Label.new(name).text),
        model=bare_model_name(checked_model(model)),
        priority=checked_priority(priority),
    )


def checked_priority(priority: int) -> int:
    """The priority; InvalidRequestError for what is no 64-bit whole number."""
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidRequestError("priority must be a whole number")
    if not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
        raise InvalidRequestError("priority must fit into 64 bits")
    return priority


def _checked_keys(keys: Sequence[str], rows: int) -> tuple[str, ...]:
    listed = tuple(keys)
    if len(listed) != rows:
        raise InvalidRequestError(f"keys has {len(listed)} entries, texts has {rows}")
    if any(not isinstance(key, str) for key in listed):
        raise InvalidRequestError("keys must be strings")
    if len(set(listed)) != rows:
        raise InvalidRequestError("keys holds one key twice: each text needs its own")
    return listed


def batch_name_of(batch: EmbedContentBatch | str) -> str:
    """The name of a batch, given itself or by name."""
    return batch.name if isinstance(batch, EmbedContentBatch) else batch


def embed_options(
    model: str, task_type: str | None, output_dimensionality: int | None, title: str | None
) -> EmbedOptions:
    """What is asked of every text; InvalidRequestError says what to mend."""
    return EmbedOptions.of(model, task_type, output_dimensionality, title)


def listed_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several, as a list."""
    return checked_texts([texts] if isinstance(texts, str) else texts)


def listed_text(text: str) -> list[str]:
    """One text as a list; InvalidRequestError for anything else."""
    if not isinstance(text, str):
        raise InvalidRequestError(
            f"text is of type {type(text).__name__}: give one string, or call embed_contents"
        )
    return [text]
