"""What Client asks of a cloud, and the flows that both clouds share."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from embatch.client.alignment import Aligner, checked_keys, expected_dims, in_file_order, own_rows
from embatch.client.calls import Calls
from embatch.client.flow import Emit, Flow, Notify, Sleep, perform
from embatch.client.requests import EmbedOptions, is_text
from embatch.client.results import RowBlock
from embatch.errors import (
    BatchFailedError,
    BatchNotCompleteError,
    BatchTimeoutError,
    EmbatchError,
    IndeterminateError,
    InvalidRequestError,
    ProviderUnavailableError,
)
from embatch.types.batch import EmbedContentBatch
from embatch.types.embedding import BatchEmbeddings, ContentEmbedding
from embatch.types.files import RemoteFile
from embatch.types.label import Label
from embatch.types.state import JobState

T = TypeVar("T")
Sink = Callable[[RowBlock], Flow[None]]

POLL_STEPS_S: Final = ((100, 2.0), (1_000, 5.0), (10_000, 10.0))
"""Batches of fewer rows are looked at every so many seconds."""
SLOWEST_START_S: Final = 30.0
BACKOFF: Final = 1.5
LONGEST_POLL_S: Final = 600.0
LEAST_TIMEOUT_S: Final = 600.0
TIMEOUT_PER_ROW_S: Final = 1.0
TIMEOUT_MARGIN_S: Final = 120.0
STOP_TIMEOUT_S: Final = 600.0
"""Longest wait for a cancelled batch to end before it is deleted."""
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
    def create(self, new: NewBatch) -> Flow[EmbedContentBatch]: ...
    def create_from_file(self, new: NewFileBatch) -> Flow[EmbedContentBatch]: ...
    def find(self, label: str) -> Flow[EmbedContentBatch | None]: ...
    def get(self, name: str) -> Flow[EmbedContentBatch]: ...
    def rows(self, batch: EmbedContentBatch, sink: Sink) -> Flow[None]: ...
    def texts_of(self, _: EmbedContentBatch, /) -> Flow[dict[str, list[int]]]: ...
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
    aligner: Aligner | None = None
    held: list[RowBlock] = []
    started = False

    def begin(first: RowBlock | None) -> Flow[None]:
        nonlocal aligner, started
        started = True
        rows = own_rows(known, first)
        if rows is not None:
            by_text: dict[str, list[int]] = {}
            if first is not None and first.is_keyed_by_text:
                by_text = yield from cloud.texts_of(known)
            aligner = Aligner(known, rows, by_text=by_text)

    def take(block: RowBlock) -> Flow[None]:
        if not started:
            yield from begin(block)
        if aligner is None:
            held.append(block)
        else:
            aligner.add(block)

    yield from cloud.rows(known, take)
    if not started:
        yield from begin(None)
    dims = expected_dims(known)
    if aligner is None:
        return in_file_order(held, dims=dims)
    return aligner.finish(dims=dims, keys=checked_keys(known, keys, aligner.rows))


def emit_blocks(cloud: Cloud, batch: EmbedContentBatch | str) -> Flow[None]:
    """Emits the results of a finished batch as they come, in blocks."""
    known = yield from finished(cloud, batch)

    def sink(block: RowBlock) -> Flow[None]:
        yield from perform(Emit(value=block.block))

    yield from cloud.rows(known, sink)


def first_interval_s(rows: int) -> float:
    """Seconds between polls of a batch of so many rows, while it moves."""
    return next((seconds for most, seconds in POLL_STEPS_S if rows < most), SLOWEST_START_S)


def adapted_timeout_s(rows: int) -> float:
    """How long a batch of so many rows is waited for when nothing else is asked."""
    return max(LEAST_TIMEOUT_S, rows * TIMEOUT_PER_ROW_S + TIMEOUT_MARGIN_S)


def await_completion(
    cloud: Cloud,
    name: str,
    *,
    poll_interval: float | None,
    timeout: float | None,
    on_progress: Callable[[EmbedContentBatch], object] | None,
) -> Flow[EmbedContentBatch]:
    """Polls a batch to its end, ever more rarely while nothing moves."""
    if poll_interval is not None and not 0.0 < poll_interval < math.inf:
        raise InvalidRequestError(f"poll_interval must be seconds over 0, not {poll_interval!r}")
    if timeout is not None and not timeout >= 0.0:
        raise InvalidRequestError(f"timeout must be seconds from 0 on, not {timeout!r}")
    clock = cloud.calls.clock
    begun, last, interval = clock(), None, 0.0
    batch: EmbedContentBatch | None = None
    while True:
        batch = yield from _look(cloud, name, batch)
        if on_progress is not None:
            yield from perform(Notify(call=partial(on_progress, batch)))
        if batch.is_terminal:
            return batch
        rows = batch.batch_stats.request_count
        limit = adapted_timeout_s(rows) if timeout is None else timeout
        moved = (batch.state, batch.batch_stats)
        if poll_interval is not None:
            interval = poll_interval
        elif moved != last:
            interval = first_interval_s(rows)
        else:
            interval = min(interval * BACKOFF, LONGEST_POLL_S)
        last = moved
        pause = interval if poll_interval is not None else _jittered(interval, cloud.calls.jitter)
        left = begun + limit - clock()
        if left <= 0:
            raise BatchTimeoutError(
                f"{batch.name} is still {batch.state} after {limit:g} seconds. It goes on: wait "
                "again with a longer timeout, or ask for its status later.",
                name=batch.name,
            )
        yield from perform(Sleep(seconds=min(pause, left)))


def _look(cloud: Cloud, name: str, seen: EmbedContentBatch | None) -> Flow[EmbedContentBatch]:
    """The batch as it is now; as it was `seen` last while the service is out of reach."""
    try:
        return (yield from cloud.get(name))
    except ProviderUnavailableError as error:
        if seen is None:
            raise
        _log.warning("%s; the wait goes on", error)
        return seen


def _jittered(seconds: float, jitter: Callable[[], float]) -> float:
    return min(seconds * (0.9 + 0.2 * jitter()), LONGEST_POLL_S)


def wait_until_stopped(cloud: Cloud, name: str) -> Flow[EmbedContentBatch]:
    """Cancels a running batch and waits for its end: deleting it would not stop its bill."""
    batch = yield from cloud.get(name)
    if batch.is_terminal:
        return batch
    yield from cloud.cancel(name)
    return (
        yield from await_completion(
            cloud, name, poll_interval=None, timeout=STOP_TIMEOUT_S, on_progress=None
        )
    )
