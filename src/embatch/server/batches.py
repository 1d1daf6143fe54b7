"""What callers do with batches, on the service's store."""

import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, Final

from embatch.errors import NotFoundError
from embatch.server.details import BatchDetails, shown_batch
from embatch.server.finisher import Finisher
from embatch.server.intake import count_tokens, file_rows, inline_rows, write_requests
from embatch.server.models import ServedModel
from embatch.server.outputs import OUTPUT_FILE
from embatch.server.room import Room
from embatch.server.settings import ServerSettings
from embatch.server.weather import NewBatch, Weather
from embatch.server.wire import (
    ApiError,
    field_of,
    integer_of,
    invalid,
    message_of,
    text_of,
    too_many_batches,
)
from embatch.server.wire_rows import RowRules
from embatch.server.wire_shapes import ShownBatch
from embatch.service.batch import StoredBatch
from embatch.service.scheduler import Scheduler
from embatch.service.store import BatchStore

ID_CHARS: Final = 36
MAX_NAME_CHARS: Final = 512
_ALPHABET: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID: Final = re.compile(r"[a-z0-9]{36}", re.ASCII)

_NAMES: Final = {
    "priority": "priority",
    "displayName": "displayName",
    "display_name": "displayName",
}
"""What can be changed, by the names that a mask may use."""

OpenFile = Callable[[str], BinaryIO]
"""Opens an uploaded file by `files/…`; ApiError 403 when it is not there."""


class Batches:
    """The batches of one server. Safe to use from several threads."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        store: BatchStore,
        reads: BatchStore,
        scheduler: Scheduler,
        finisher: Finisher,
        weather: Weather,
        room: Room,
    ) -> None:
        """`reads` is another connection to the store: polls never wait for a commit."""
        self._settings = settings
        self._store = store
        self._reads = reads
        self._scheduler = scheduler
        self._finisher = finisher
        self._weather = weather
        self._room = room
        self._incoming = settings.folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left in self._incoming.iterdir():
            left.unlink()

    def create(
        self, asked: Mapping[str, Any], called: str, model: ServedModel, open_file: OpenFile
    ) -> ShownBatch:
        """A new batch as an EmbedContentBatch asks for it; it is queued at once.

        Every row is read and checked before anything is made. ApiError 400, 403, 429 or 503.
        """
        if not self._finisher.reserve(self._settings.max_batches):
            raise too_many_batches(self._settings.max_batches)
        try:
            batch = self._create(asked, called, model, open_file)
        except BaseException:
            self._finisher.give_back()
            raise
        self._finisher.add(batch)
        self._scheduler.wake()
        return self._weather.shown(batch)

    def _create(
        self, asked: Mapping[str, Any], called: str, model: ServedModel, open_file: OpenFile
    ) -> StoredBatch:
        rules = RowRules(model=called, dims=model.engine.dims)
        named = text_of(asked, "model")
        if named and named.removeprefix("models/") != called:
            raise invalid(f"batch.model: models/{called} is required, as in the URL.")
        display_name = _display_name(asked)
        priority = integer_of(asked, "priority") or 0
        config = message_of(asked, "inputConfig")
        file_name = text_of(config, "fileName")
        listed = field_of(message_of(config, "requests"), "requests")
        if (not file_name) == (listed is None):
            raise invalid("batch.input_config: one of file_name and requests is required.")
        batch_id = "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARS))
        path = self._incoming / batch_id
        try:
            if file_name:
                with open_file(file_name) as file:
                    rows = file_rows(file, rules, self._settings.max_inline_bytes)
                    written = write_requests(path, rows, model)
            else:
                written = write_requests(path, inline_rows(listed, rules), model)
            plan = self._weather.deal(
                NewBatch(
                    id=batch_id,
                    model=called,
                    display_name=display_name,
                    rows=written.rows,
                    count_tokens=partial(count_tokens, path, model.engine),
                )
            )
            dims = self._weather.length_of(plan, written.dims, model.engine.dims)
            self._room.check(written.rows, dims)
            return self._store.create(
                label=batch_id,
                requests=path,
                items=written.rows,
                model=model.key,
                dims=dims,
                priority=priority,
                details=BatchDetails(
                    display_name=display_name, model=called, file_name=file_name or None, plan=plan
                ).build(),
            )
        except BaseException:
            self._weather.forget(batch_id)
            raise
        finally:
            path.unlink(missing_ok=True)

    def get(self, batch_id: str) -> ShownBatch:
        """A batch now, in one read. ApiError 404."""
        return self._weather.shown(self._find(self._reads, batch_id))

    def page(self, *, before_seq: int | None, size: int) -> tuple[list[ShownBatch], int | None]:
        """Batches, newest first, and where the next page begins; None when there is none."""
        found: list[StoredBatch] = []
        while len(found) <= size:
            read = self._reads.page(before_seq=before_seq, limit=size + 1)
            found += [one for one in read if not self._weather.hides(one)]
            if len(read) <= size:
                break
            before_seq = read[-1].seq
        page = found[:size]
        shown = [self._weather.shown(one) for one in page]
        return shown, page[-1].seq if len(found) > size else None

    def cancel(self, batch_id: str) -> None:
        """Stops a batch; rows that are done stay. One that has ended stays as it is."""
        batch = self._find(self._store, batch_id)
        self._room.with_ballast(lambda: self._weather.cancel(self._store, batch))

    def delete(self, batch_id: str) -> None:
        """Removes a batch with its results; one under way stops."""
        batch = self._find(self._store, batch_id)
        try:
            self._room.with_ballast(lambda: self._store.delete(batch.id))
        except NotFoundError:
            raise unknown_batch() from None
        self._finisher.forget(batch_id)

    def update(self, batch_id: str, body: Mapping[str, Any], mask: str) -> ShownBatch:
        """Changes priority or display name. ApiError 400 for any other field."""
        batch = self._find(self._store, batch_id)
        named = text_of(body, "name")
        if named and named != f"batches/{batch_id}":
            raise invalid("name: the batch in the URL is required.")
        priority, display_name = integer_of(body, "priority"), _display_name(body)
        if mask:
            paths = {_NAMES.get(path.strip(), "") for path in mask.split(",")}
        else:
            paths = {name for name in _NAMES.values() if field_of(body, name) is not None}
        if "" in paths:
            raise invalid("update_mask: priority and display_name can be changed.")
        try:
            if "priority" in paths:
                batch = self._store.set_priority(batch.id, priority or 0)
            if "displayName" in paths:
                batch = self._store.change_details(
                    batch.id,
                    lambda stored: replace(
                        BatchDetails.parse(stored), display_name=display_name
                    ).build(),
                )
        except NotFoundError:
            raise unknown_batch() from None
        return self._weather.shown(batch)

    def open_output(self, batch_id: str) -> tuple[ShownBatch, BinaryIO | None]:
        """A batch with its output, open for reading; None while there is none. ApiError 404."""
        stored = self._find(self._reads, batch_id)
        batch = self._weather.shown(stored)
        if not batch.output:
            return batch, None
        try:
            return batch, (self._store.folder(stored.id) / OUTPUT_FILE).open("rb")
        except FileNotFoundError:
            raise unknown_batch() from None

    def sweep(self) -> None:
        """Removes batches that ended long ago, with their results."""
        oldest, seq = self._store.clock() - self._settings.result_lifetime_s, 0
        while old := self._store.ended_before(oldest, after_seq=seq):
            for batch in old:
                if shown_batch(batch).ended_at is not None:
                    with suppress(NotFoundError):  # its caller was faster
                        self._room.with_ballast(partial(self._store.delete, batch.id))
            seq = old[-1].seq

    def _find(self, store: BatchStore, batch_id: str) -> StoredBatch:
        batch = store.find(batch_id) if _ID.fullmatch(batch_id) else None
        if batch is None:
            raise unknown_batch()
        return batch


def unknown_batch() -> ApiError:
    """404, as the real service says it."""
    return ApiError(404, "Requested entity was not found.")


def _display_name(asked: Mapping[str, Any]) -> str:
    name = text_of(asked, "displayName")
    if len(name) > MAX_NAME_CHARS:
        raise invalid(f"display_name: at most {MAX_NAME_CHARS} characters are allowed.")
    return name
