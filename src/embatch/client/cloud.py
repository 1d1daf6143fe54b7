"""What Client asks of a cloud, and the flows that both clouds share."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol, TypeVar

from embatch.client.alignment import (
    Aligner,
    checked_keys,
    expected_dims,
    in_file_order,
    last_own_index,
    tagged_rows,
)
from embatch.client.calls import Calls
from embatch.client.flow import Emit, Flow, perform
from embatch.client.requests import EmbedOptions, is_text
from embatch.client.results import BlockBuilder, Row, RowBlock, open_reader
from embatch.errors import (
    BatchFailedError,
    BatchNotCompleteError,
    EmbatchError,
    IndeterminateError,
    InvalidRequestError,
)
from embatch.types.batch import EmbedContentBatch
from embatch.types.embedding import BatchEmbeddings, ContentEmbedding
from embatch.types.files import RemoteFile
from embatch.types.label import Label
from embatch.types.state import JobState

T = TypeVar("T")
TakeLines = Callable[[Sequence[bytes]], Flow[None]]
"""Is given result rows as they come, some at a time."""

LABEL_CHARS: Final = 128
"""Longest display name that both services take; our tag is part of it."""
_log = logging.getLogger("embatch.client")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch to be created from texts."""

    texts: Sequence[str] = field(repr=False)
    options: EmbedOptions
    display_name: str
    priority: int = 0
    keys: tuple[str, ...] | None = field(default=None, repr=False)

    def label(self) -> Label:
        """A label that only this submission bears."""
        label = Label.new(
            self.display_name, rows=len(self.texts), dims=self.options.dims, keys=self.keys
        )
        checked_label(label.text)
        return label


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFileBatch:
    """A batch to be created from a file of request rows."""

    path: Path
    """The local file; of no meaning when `remote` is set."""
    remote: str | None
    """`files/…` or `gs://…`, when the file is at the service already."""
    label: str
    model: str
    priority: int = 0


def checked_label(label: str) -> str:
    """The label; InvalidRequestError when it is longer than the services take."""
    if len(label) > LABEL_CHARS:
        raise InvalidRequestError(
            f"display_name is too long: with embatch's tag it has {len(label)} characters, the "
            f"services take {LABEL_CHARS}. Shorten it by {len(label) - LABEL_CHARS}."
        )
    return label


def checked_display_name(display_name: str) -> str:
    """The name; InvalidRequestError when there is none."""
    if not isinstance(display_name, str) or not display_name.strip():
        raise InvalidRequestError(
            "display_name is missing: give the batch a name to find it by, like "
            "display_name='catalogue 2026-11'"
        )
    if not is_text(display_name):
        raise InvalidRequestError(
            "display_name holds half of a surrogate pair, which no UTF-8 can carry: clean it"
        )
    return display_name.strip()


def created_or_undone(creation: Flow[T], undo: Callable[[], Flow[None]]) -> Flow[T]:
    """What `creation` gives; `undo` removes what was laid out for it when it certainly failed."""
    try:
        return (yield from creation)
    except IndeterminateError:
        raise
    except EmbatchError:
        try:
            yield from undo()
        except EmbatchError as failure:
            _log.info("after a creation that failed: %s", failure)
        raise


class Cloud(Protocol):
    """One service. Flows that give None may emit values."""

    @property
    def calls(self) -> Calls: ...
    @property
    def account(self) -> str: ...
    @property
    def ignores_dims(self) -> bool: ...
    def trying_once(self) -> "Cloud": ...
    def create(self, new: NewBatch) -> Flow[EmbedContentBatch]: ...
    def create_from_file(self, new: NewFileBatch) -> Flow[EmbedContentBatch]: ...
    def find(self, label: str) -> Flow[EmbedContentBatch | None]: ...
    def get(self, name: str) -> Flow[EmbedContentBatch]: ...
    def rows(self, batch: EmbedContentBatch, take: TakeLines) -> Flow[None]: ...
    def texts_of(self, _: EmbedContentBatch, /) -> Flow[dict[str, list[int]]]: ...
    def sent_rows(self, _: EmbedContentBatch, /) -> Flow[int | None]: ...
    def list_batches(self) -> Flow[None]: ...
    def cancel(self, name: str) -> Flow[None]: ...
    def delete(self, name: str) -> Flow[None]: ...
    def update(self, name: str, *, priority: int) -> Flow[EmbedContentBatch]: ...
    def upload_file(
        self, path: Path, *, display_name: str, mime_type: str = ...
    ) -> Flow[RemoteFile]: ...
    def get_file(self, name: str) -> Flow[RemoteFile]: ...
    def delete_file(self, name: str) -> Flow[None]: ...
    def list_files(self) -> Flow[None]: ...
    def download_file(self, name: str, path: Path) -> Flow[Path]: ...
    def embed(
        self, texts: Sequence[str], options: EmbedOptions
    ) -> Flow[list[ContentEmbedding]]: ...
    def count_tokens(self, texts: Sequence[str], model: str) -> Flow[int]: ...
    def list_models(self) -> Flow[None]: ...


def finished(cloud: Cloud, batch: EmbedContentBatch | str) -> Flow[EmbedContentBatch]:
    """The batch with results to read; an error says why there are none."""
    known = batch if isinstance(batch, EmbedContentBatch) else None
    if known is None or not known.has_results:
        name = batch if isinstance(batch, str) else batch.name
        keys = known.keys if known else None
        known = yield from cloud.get(name)
        if keys is not None:
            known = replace(known, keys=keys)
    if not known.is_terminal:
        raise BatchNotCompleteError(f"Batch not yet completed (current state: {known.state})")
    if known.output is None:
        why = f": {known.error.message}" if known.error else ""
        advice = "An expired batch has no results." if known.state == JobState.EXPIRED else ""
        raise BatchFailedError(
            f"{known.name} ended {known.state} without results{why}. {advice}".rstrip()
            + " Submit the texts again."
        )
    return known


def read_embeddings(
    cloud: Cloud, batch: EmbedContentBatch | str, keys: Sequence[str] | None
) -> Flow[BatchEmbeddings]:
    """The results of a finished batch, aligned with its inputs where embatch made it."""
    known = yield from finished(cloud, batch)
    dims, rows = expected_dims(known), tagged_rows(known)
    if rows is None:
        return (yield from _read_untagged(cloud, known, keys, dims))
    names = checked_keys(known, keys, rows)
    aligner, read = Aligner(known, rows, cut=cloud.ignores_dims), open_reader()

    def take(lines: Sequence[bytes]) -> Flow[None]:
        yield from _align(cloud, known, aligner, [read(line) for line in lines])

    yield from cloud.rows(known, take)
    return aligner.finish(keys=names)


def _align(
    cloud: Cloud, batch: EmbedContentBatch, aligner: Aligner, rows: Sequence[Row]
) -> Flow[None]:
    if aligner.by_text is None and any(row.is_keyed_by_text for row in rows):
        aligner.by_text = yield from cloud.texts_of(batch)
    aligner.add(rows)


def _read_untagged(
    cloud: Cloud, batch: EmbedContentBatch, keys: Sequence[str] | None, dims: int | None
) -> Flow[BatchEmbeddings]:
    """Aligned by keys that a caller wrote as we do, else in the order of the results.

    All blocks are held until the last one: only together do they tell whose keys they bear.
    """
    held: list[RowBlock] = []

    def hold(block: RowBlock) -> Flow[None]:
        held.append(block)
        return
        yield  # a flow without effects

    yield from _blocks(cloud, batch, hold)
    last = last_own_index(batch, held)
    if last is None:
        if keys is not None:
            raise InvalidRequestError(
                f"the rows of {batch.name} bear keys of their own, which keys= cannot rename: "
                "leave keys= out and read .keys of the results"
            )
        return in_file_order(held, dims=dims)
    rows = len(keys) if keys is not None else (yield from cloud.sent_rows(batch))
    if rows is None:
        rows = max(last + 1, batch.batch_stats.request_count)
    aligner = Aligner(batch, rows)
    for block in held:
        yield from _align(cloud, batch, aligner, list(block.unpacked()))
    return aligner.finish(keys=checked_keys(batch, keys, rows))


def _blocks(
    cloud: Cloud, batch: EmbedContentBatch, sink: Callable[[RowBlock], Flow[None]]
) -> Flow[None]:
    builder = BlockBuilder(dims=expected_dims(batch), cut=cloud.ignores_dims)

    def take(lines: Sequence[bytes]) -> Flow[None]:
        for block in builder.add(lines):
            yield from sink(block)

    yield from cloud.rows(batch, take)
    for last in builder.finish():
        yield from sink(last)


def emit_blocks(cloud: Cloud, batch: EmbedContentBatch | str) -> Flow[None]:
    """Emits the results of a finished batch as they come, in blocks."""
    known = yield from finished(cloud, batch)

    def sink(block: RowBlock) -> Flow[None]:
        yield from perform(Emit(value=block.block))

    yield from _blocks(cloud, known, sink)
