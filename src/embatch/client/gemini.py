"""The Gemini API: each operation as a flow."""

import itertools
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from embatch.client import files
from embatch.client.alignment import expected_dims, tagged_rows
from embatch.client.calls import Calls, create_once, parse_object
from embatch.client.cloud import NewBatch, NewFileBatch, TakeLines, created_or_undone
from embatch.client.cutter import DocumentCutter, LineCutter
from embatch.client.embeds import embed_in_groups, vectors_of
from embatch.client.flow import Emit, Flow, ReadStream, ShutStream, Sleep, Work, perform
from embatch.client.requests import EmbedOptions, build_batch, build_inline, build_lines, spool
from embatch.client.results import Tally
from embatch.client.retry import Again
from embatch.client.waiting import wait_until_stopped
from embatch.client.wire import (
    integer,
    is_embedding_operation,
    parse_model,
    parse_operation,
    require_whole,
)
from embatch.errors import (
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
)
from embatch.transport import Lost, Request, Stream
from embatch.types.batch import EmbedContentBatch, EmbedContentBatchStats
from embatch.types.embedding import ContentEmbedding
from embatch.types.files import RemoteFile
from embatch.types.label import Label

MOST_CONTENTS: Final = 100
"""Texts of one `batchEmbedContents`; the service refuses more."""
PAGE_SIZE: Final = 100
_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
"""What goes into a path as it is."""


def _model_path(model: str) -> str:
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def batch_name(name: str) -> str:
    """`batches/{id}`; a bare id is taken too, what is no name is refused."""
    bare = name.removeprefix("batches/")
    if not _ID.fullmatch(bare):
        raise InvalidRequestError(f"{name!r} is not the name of a batch: it reads batches/…")
    return f"batches/{bare}"


def file_name(name: str) -> str:
    """`files/{id}`; a bare id is taken too, what is no name is refused."""
    bare = name.removeprefix("files/")
    if not _ID.fullmatch(bare):
        raise InvalidRequestError(f"{name!r} is not the name of a file: it reads files/…")
    return f"files/{bare}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemini:
    """The operations, for one service and one set of credentials."""

    calls: Calls
    version: str
    """Version of the API in every path: "v1beta"."""

    @property
    def account(self) -> str:
        """Where the calls go, and a mark of the key that tells two keys apart."""
        return f"{self.calls.base_url.partition('://')[2]}/{self.calls.authorization.mark}"

    @property
    def ignores_dims(self) -> bool:
        """Vectors come as short as they were asked for."""
        return False

    def trying_once(self) -> "Gemini":
        """The same operations, each call tried once: for a caller who tries again by itself."""
        return replace(self, calls=self.calls.trying_once())

    # Batches.

    def create(self, new: NewBatch) -> Flow[EmbedContentBatch]:
        """Creates a batch from texts: inline while it is small, else through a file."""
        label = new.label()
        body = build_inline(new.texts, new.options, label, priority=new.priority)
        if body is None:
            source = yield from self._uploaded(new, label)
            document = build_batch(label, {"fileName": source.name}, priority=new.priority)
            made = yield from created_or_undone(
                self._create(label.text, new.options.model.name, document),
                lambda: files.delete(self.calls, self.version, source.name),
            )
        else:
            made = yield from self._create(label.text, new.options.model.name, body)
        return replace(made, keys=new.keys)

    def _uploaded(self, new: NewBatch, label: Label) -> Flow[RemoteFile]:
        with tempfile.TemporaryDirectory(prefix="embatch-") as folder:
            path = Path(folder) / "input.jsonl"
            lines = build_lines(new.texts, new.options, label)
            yield from perform(Work(call=lambda: spool(lines, path)))
            return (yield from self.upload_file(path, display_name=label.text))

    def create_from_file(self, new: NewFileBatch) -> Flow[EmbedContentBatch]:
        """Creates a batch from a JSONL file, local or uploaded already."""
        if new.remote is not None:
            return (yield from self._create_from(file_name(new.remote), new))
        source = (yield from self.upload_file(new.path, display_name=new.label)).name
        return (
            yield from created_or_undone(
                self._create_from(source, new),
                lambda: files.delete(self.calls, self.version, source),
            )
        )

    def _create_from(self, source: str, new: NewFileBatch) -> Flow[EmbedContentBatch]:
        document = build_batch(new.label, {"fileName": source}, priority=new.priority)
        return (yield from self._create(new.label, new.model, document))

    def _create(
        self, label: str, model: str, body: Mapping[str, Any] | bytes
    ) -> Flow[EmbedContentBatch]:
        path = f"/{self.version}/{_model_path(model)}:asyncBatchEmbedContent"
        return (
            yield from create_once(
                self.calls,
                label=label,
                request=self.calls.request("POST", path, body=body),
                parse=parse_operation,
                find=self.find,
            )
        )

    def find(self, label: str) -> Flow[EmbedContentBatch | None]:
        """The batch that bears `label`, after a complete look through the list."""
        found: EmbedContentBatch | None = None
        token = ""
        while True:
            batches, token = yield from self._page(token)
            found = found or next((batch for batch in batches if batch.label == label), None)
            if found is not None or not token:
                return found

    def _page(self, token: str) -> Flow[tuple[list[EmbedContentBatch], str]]:
        request = self.calls.request(
            "GET",
            f"/{self.version}/batches",
            query={"pageSize": PAGE_SIZE, "pageToken": token},
        )
        # A list may bear results too: rows are cut out here as everywhere.
        page = require_whole((yield from self._walk("listing batches", request, _drop)))
        batches = [
            parse_operation(document)
            for document in page.get("operations") or ()
            if is_embedding_operation(document)
        ]
        return batches, str(page.get("nextPageToken") or "")

    def list_batches(self) -> Flow[None]:
        """Emits every embedding batch, newest pages first as the service has them."""
        token = ""
        while True:
            batches, token = yield from self._page(token)
            for batch in batches:
                yield from perform(Emit(value=batch))
            if not token:
                return

    def get(self, name: str) -> Flow[EmbedContentBatch]:
        """The batch as it is now. Rows in its document are counted, not kept.

        They outweigh the counts that the service tells: a row without a sound vector has failed,
        as get_batch_embeddings says of it, and so has one that is not there.
        """
        seen = Tally()

        def count(rows: Sequence[bytes]) -> Flow[None]:
            for row in rows:
                seen.add(row)
            return
            yield  # a flow without effects

        document = yield from self._walk(*self._document(name), count)
        batch = parse_operation(document, holds_rows=seen.rows > 0)
        if not seen.rows:
            return batch
        total = max(tagged_rows(batch) or 0, seen.rows)
        good = seen.good(expected_dims(batch))
        left = 0 if batch.is_terminal else total - seen.rows
        stats = EmbedContentBatchStats(
            request_count=total,
            successful_request_count=good,
            failed_request_count=total - good - left,
            pending_request_count=left,
        )
        return replace(batch, batch_stats=stats)

    def _document(self, name: str) -> tuple[str, Request]:
        name = batch_name(name)
        return f"looking at {name}", self.calls.request("GET", f"/{self.version}/{name}")

    def _walk(self, what: str, request: Request, take: TakeLines) -> Flow[dict[str, Any]]:
        """A document without its rows, which go to `take`, each once."""
        given = 0
        for attempt in itertools.count():
            stream = yield from self.calls.opened(what, request)
            cutter = DocumentCutter()
            broken, given = yield from _cut(stream, cutter, take, given)
            if broken is None:
                return parse_object(cutter.envelope(), what)
            verdict = self.calls.judged(broken, what=what, attempt=attempt)
            if not isinstance(verdict, Again) or attempt + 1 >= self.calls.policy.attempts:
                raise ProviderUnavailableError(f"{what}: {broken.reason}. Try again later.")
            yield from perform(Sleep(seconds=verdict.wait_s))
        raise AssertionError("counting never ends")

    def rows(self, batch: EmbedContentBatch, take: TakeLines) -> Flow[None]:
        """Gives every result row of a finished batch to `take`."""
        if batch.output is None or batch.output.file is None:
            yield from self._walk(*self._document(batch.name), take)
            return
        lines = LineCutter()

        def cut(chunk: bytes) -> Flow[None]:
            yield from take(lines.feed(chunk))

        yield from files.download(self.calls, self.version, batch.output.file, cut)
        yield from take(lines.finish())

    def texts_of(self, _: EmbedContentBatch, /) -> Flow[dict[str, list[int]]]:
        """The Gemini API always gives keys back."""
        return {}
        yield  # a flow without effects

    def sent_rows(self, _: EmbedContentBatch, /) -> Flow[int | None]:
        """Files that were uploaded cannot be read back: nothing tells."""
        return None
        yield  # a flow without effects

    def cancel(self, name: str) -> Flow[None]:
        """Asks for the batch's end. It comes later, and the batch may still complete."""
        name = batch_name(name)
        path = f"/{self.version}/{name}:cancel"
        yield from self.calls.answer(
            f"cancelling {name}", self.calls.request("POST", path, body={})
        )

    def delete(self, name: str) -> Flow[None]:
        """Removes a batch and its results; a running one is cancelled first and waited for."""
        name = batch_name(name)
        batch = yield from wait_until_stopped(self, name)
        yield from self.calls.answer(
            f"deleting {name}",
            self.calls.request("DELETE", f"/{self.version}/{name}"),
            gone=(NotFoundError,),
        )
        source = batch.input_config.file
        if source is not None and Label.parse(batch.label) is not None:
            yield from self._forget(source, batch.label)

    def _forget(self, source: str, label: str) -> Flow[None]:
        """Removes the input that was uploaded for the batch `label`; no file of the user's."""
        try:
            file = yield from files.get(self.calls, self.version, source)
            if file.display_name == label:
                yield from files.delete(self.calls, self.version, source)
        except (NotFoundError, PermissionDeniedError):
            return  # it ended after its 48 hours

    def update(self, name: str, *, priority: int) -> Flow[EmbedContentBatch]:
        """Changes the batch's priority."""
        name = batch_name(name)
        yield from self.calls.answer(
            f"updating {name}",
            self.calls.request(
                "PATCH",
                f"/{self.version}/{name}:updateEmbedContentBatch",
                query={"updateMask": "priority"},
                body={"priority": str(priority)},
            ),
        )
        return (yield from self.get(name))

    # Files.

    def upload_file(
        self,
        path: Path,
        *,
        display_name: str,
        mime_type: str = files.JSONL,
        name: str | None = None,
    ) -> Flow[RemoteFile]:
        """Uploads a local file in chunks of 8 MiB; `name` as files.upload takes it."""
        return (
            yield from files.upload(
                self.calls,
                self.version,
                path,
                display_name=display_name,
                mime_type=mime_type,
                name=name,
            )
        )

    def get_file(self, name: str) -> Flow[RemoteFile]:
        """What the service knows of a file."""
        return (yield from files.get(self.calls, self.version, file_name(name)))

    def delete_file(self, name: str) -> Flow[None]:
        """Removes an uploaded file. Result files go with their batch."""
        if file_name(name).startswith("files/batch-"):
            raise InvalidRequestError(
                f"{name} is a batch's result file: delete the batch, the file goes with it"
            )
        yield from files.delete(self.calls, self.version, file_name(name))

    def list_files(self) -> Flow[None]:
        """Emits every uploaded file."""
        yield from files.listed(self.calls, self.version)

    def download_file(self, name: str, path: Path) -> Flow[Path]:
        """Downloads a result file."""
        return (yield from files.download_to(self.calls, self.version, file_name(name), path))

    # Now.

    def embed(self, texts: Sequence[str], options: EmbedOptions) -> Flow[list[ContentEmbedding]]:
        """One vector for each text, 100 a call."""
        model = _model_path(options.model.name)

        def group(some: Sequence[str]) -> Flow[list[ContentEmbedding]]:
            what = f"embedding {len(some)} texts"
            requests = [{"model": model, **options.gemini_request(text)} for text in some]
            path = f"/{self.version}/{model}:batchEmbedContents"
            answer = yield from self.calls.json(
                what, self.calls.request("POST", path, body={"requests": requests})
            )
            return vectors_of(answer.get("embeddings"), some, options, what, answer)

        return (yield from embed_in_groups(texts, options, group, most=MOST_CONTENTS))

    def count_tokens(self, texts: Sequence[str], model: str) -> Flow[int]:
        """Tokens of the texts, together."""
        path = f"/{self.version}/{_model_path(model)}:countTokens"
        contents = [{"parts": [{"text": text}]} for text in texts]
        answer = yield from self.calls.json(
            "counting tokens", self.calls.request("POST", path, body={"contents": contents})
        )
        return integer(answer.get("totalTokens"))

    def list_models(self) -> Flow[None]:
        """Emits every model that the service offers."""
        token = ""
        while True:
            request = self.calls.request(
                "GET", f"/{self.version}/models", query={"pageSize": 1000, "pageToken": token}
            )
            page = yield from self.calls.json("listing models", request)
            for document in page.get("models") or ():
                yield from perform(Emit(value=parse_model(document)))
            token = str(page.get("nextPageToken") or "")
            if not token:
                return


def _drop(_: Sequence[bytes]) -> Flow[None]:
    return
    yield  # a flow without effects


def _cut(
    stream: Stream, cutter: DocumentCutter, take: TakeLines, given: int
) -> Flow[tuple[Lost | None, int]]:
    """Gives rows to `take` but for the first `given` ones; tells how many were given by now."""
    seen = 0
    while True:
        chunk = yield from perform(ReadStream(stream=stream))
        if isinstance(chunk, Lost) or not chunk:
            yield from perform(ShutStream(stream=stream))
            return (chunk if isinstance(chunk, Lost) else None), given
        rows = cutter.feed(chunk)
        fresh = rows[max(given - seen, 0) :]
        seen += len(rows)
        if fresh:
            given = seen
            yield from take(fresh)
