"""Vertex AI and Cloud Storage: the same operations, each as a flow."""

import itertools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from embatch.client import objects
from embatch.client.alignment import own_index
from embatch.client.calls import Calls, create_once
from embatch.client.cloud import NewBatch, NewFileBatch, TakeLines, created_or_undone
from embatch.client.embeds import embed_in_groups, vectors_of
from embatch.client.flow import Emit, Flow, Sleep, Work, perform
from embatch.client.requests import EmbedOptions, build_vertex_lines, spool
from embatch.client.results import text_key
from embatch.client.vertex_places import Places, object_name
from embatch.client.waiting import wait_until_stopped
from embatch.client.wire import integer, parse_job, parse_model, require_whole
from embatch.errors import (
    InvalidRequestError,
    NotFoundError,
    ProviderUnavailableError,
)
from embatch.types.batch import EmbedContentBatch
from embatch.types.embedding import ContentEmbedding
from embatch.types.files import RemoteFile
from embatch.types.label import Label, label_hash
from embatch.types.models import find_model

if TYPE_CHECKING:
    from embatch.storage.objects import ObjectStorage

MOST_CONTENTS: Final = 100
MOST_PREDICT_BYTES: Final = 40_000
"""UTF-8 bytes of one `:predict`: the service takes 20,000 tokens a call."""
PAGE_SIZE: Final = 100
OPERATION_POLL_S: Final = 1.0
OPERATION_POLLS: Final = 60
_log = logging.getLogger("embatch.client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vertex:
    """The operations, for one project and location, or for an express key without either."""

    calls: Calls
    places: Places
    open_storage: Callable[[], "ObjectStorage"] = field(repr=False)

    @property
    def account(self) -> str:
        """Project and location, or a mark of the express key."""
        places = self.places
        return f"{places.project or self.calls.authorization.mark}/{places.location or 'global'}"

    @property
    def ignores_dims(self) -> bool:
        """Full vectors may come though fewer values were asked for: they are cut here."""
        return True

    def trying_once(self) -> "Vertex":
        """The same operations, each call tried once: for a caller who tries again by itself."""
        return replace(self, calls=self.calls.trying_once())

    # Batches.

    def create(self, new: NewBatch) -> Flow[EmbedContentBatch]:
        """Stages the texts in Cloud Storage and creates the job."""
        label = new.label()
        self.places.require_project()
        folder = self.places.folder(label.text)
        lines = build_vertex_lines(new.texts, new.options, label)
        uri = f"{folder}/input.jsonl"
        with tempfile.TemporaryDirectory(prefix="embatch-") as place:
            path = Path(place) / "input.jsonl"
            yield from perform(Work(call=lambda: spool(lines, path)))
            yield from objects.put(self.open_storage(), uri, path)
        made = yield from created_or_undone(
            self._create(label.text, new.options.model.name, uri, folder, new.priority),
            lambda: self.delete_file(uri),
        )
        return replace(made, keys=new.keys)

    def create_from_file(self, new: NewFileBatch) -> Flow[EmbedContentBatch]:
        """Creates a job from a JSONL file, local or in Cloud Storage already."""
        self.places.require_project()
        folder = self.places.folder(new.label)
        if new.remote is not None:
            uri = object_name(new.remote)
            return (yield from self._create(new.label, new.model, uri, folder, new.priority))
        staged = f"{folder}/input.jsonl"
        yield from objects.put(self.open_storage(), staged, new.path)
        return (
            yield from created_or_undone(
                self._create(new.label, new.model, staged, folder, new.priority),
                lambda: self.delete_file(staged),
            )
        )

    def _create(
        self, label: str, model: str, uri: str, folder: str, priority: int
    ) -> Flow[EmbedContentBatch]:
        if priority:
            _log.warning(
                "Vertex AI has no priorities: priority=%d of %r is not sent", priority, label
            )
        body = {
            "displayName": label,
            "model": f"publishers/google/models/{model}",
            "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": [uri]}},
            "outputConfig": {
                "predictionsFormat": "jsonl",
                "gcsDestination": {"outputUriPrefix": f"{folder}/output"},
            },
        }
        path = f"{self.places.parent}/batchPredictionJobs"
        return (
            yield from create_once(
                self.calls,
                label=label,
                request=self.calls.request("POST", path, body=body),
                parse=parse_job,
                find=self.find,
            )
        )

    def find(self, label: str) -> Flow[EmbedContentBatch | None]:
        """The batch that bears `label`, whatever its model, after a complete look."""
        token = ""
        while True:
            jobs, token = yield from self._page(token)
            found = next((job for job in jobs if job.label == label), None)
            if found is not None or not token:
                return found

    def _page(self, token: str) -> Flow[tuple[list[EmbedContentBatch], str]]:
        request = self.calls.request(
            "GET",
            f"{self.places.parent}/batchPredictionJobs",
            query={"pageSize": PAGE_SIZE, "pageToken": token},
        )
        page = require_whole((yield from self.calls.json("listing batches", request)))
        jobs = [parse_job(document) for document in page.get("batchPredictionJobs") or ()]
        return jobs, str(page.get("nextPageToken") or "")

    def list_batches(self) -> Flow[None]:
        """Emits every embedding batch of the project and location."""
        token = ""
        while True:
            jobs, token = yield from self._page(token)
            for job in jobs:
                # The list holds jobs of all kinds of models; the tag tells ours.
                if "embedding" in job.model or Label.parse(job.label) is not None:
                    yield from perform(Emit(value=job))
            if not token:
                return

    def get(self, name: str) -> Flow[EmbedContentBatch]:
        """The batch as it is now."""
        name = self.places.job_name(name)
        request = self.calls.request("GET", f"/{self.places.version}/{name}")
        return parse_job((yield from self.calls.json(f"looking at {name}", request)))

    def rows(self, batch: EmbedContentBatch, take: TakeLines) -> Flow[None]:
        """Gives every result row of a finished batch to `take`."""
        directory = batch.output.directory if batch.output is not None else None
        if directory is None:
            raise NotFoundError(f"{batch.name} names no output directory")
        storage = self.open_storage()
        found = yield from perform(Work(call=lambda: storage.list(directory)))
        results = [entry.uri for entry in found if entry.uri.endswith(".jsonl")]
        if not results:
            raise ProviderUnavailableError(
                f"{batch.name} has ended, but there are no results under {directory} yet"
            )
        for uri in results:
            yield from objects.lines(storage, uri, take)

    def texts_of(self, batch: EmbedContentBatch, /) -> Flow[dict[str, list[int]]]:
        """Places by text, read from the staged input: older models give no keys back."""
        places: dict[str, list[int]] = {}
        numbers = itertools.count()

        def note(lines: Sequence[bytes]) -> Flow[None]:
            for line, place in zip(lines, numbers, strict=False):
                places.setdefault(text_key(_field(line, "content")), []).append(place)
            return
            yield  # a flow without effects

        if batch.input_config.file is not None:
            yield from objects.lines(self.open_storage(), batch.input_config.file, note)
        return places

    def sent_rows(self, batch: EmbedContentBatch, /) -> Flow[int | None]:
        """How many rows a caller sent under keys like ours, as the staged input tells."""
        own, last = label_hash(batch.label), -1

        def note(lines: Sequence[bytes]) -> Flow[None]:
            nonlocal last
            for line in lines:
                index = own_index(own, _field(line, "key"))
                last = last if index is None else max(last, index)
            return
            yield  # a flow without effects

        if batch.input_config.file is None:
            return None
        try:
            yield from objects.lines(self.open_storage(), batch.input_config.file, note)
        except NotFoundError:
            return None  # removed since, or a pattern of several objects
        return last + 1 if last >= 0 else None

    def cancel(self, name: str) -> Flow[None]:
        """Asks for the batch's end. It comes later, and the batch may still complete."""
        name = self.places.job_name(name)
        request = self.calls.request("POST", f"/{self.places.version}/{name}:cancel", body={})
        yield from self.calls.answer(f"cancelling {name}", request)

    def delete(self, name: str) -> Flow[None]:
        """Removes a job and what we staged for it; a running one is cancelled first."""
        name = self.places.job_name(name)
        batch = yield from wait_until_stopped(self, name)
        what = f"deleting {name}"
        request = self.calls.request("DELETE", f"/{self.places.version}/{name}")
        answer = yield from self.calls.json(what, request, gone=(NotFoundError,))
        yield from self._operation_done(what, answer)
        if Label.parse(batch.label):
            own = f"/{label_hash(batch.label)}/"
            output = batch.output.directory if batch.output is not None else None
            places = [place for place in (batch.input_config.file, output) if place]
            for folder in sorted({p.partition(own)[0] + own for p in places if own in p}):
                yield from objects.clear(self.open_storage(), folder)

    def _operation_done(self, what: str, operation: Mapping[str, Any]) -> Flow[None]:
        for _ in range(OPERATION_POLLS):
            name = str(operation.get("name") or "")
            if operation.get("done") is True or not name:
                return
            yield from perform(Sleep(seconds=OPERATION_POLL_S))
            request = self.calls.request("GET", f"/{self.places.version}/{name}")
            operation = yield from self.calls.json(what, request)
        raise ProviderUnavailableError(f"{what}: accepted, but not done after a minute")

    def update(self, name: str, *, priority: int) -> Flow[EmbedContentBatch]:
        """Vertex AI has no priorities."""
        raise InvalidRequestError(
            f"{name}: Vertex AI has no priorities, {priority} cannot be set; leave it out"
        )
        yield  # a flow without effects

    # Files.

    def upload_file(
        self, path: Path, *, display_name: str, mime_type: str = ""
    ) -> Flow[RemoteFile]:
        """Copies a local file into the staging folder."""
        return (
            yield from objects.upload(
                self.open_storage(),
                self.places,
                path,
                display_name=display_name,
                mime_type=mime_type,
            )
        )

    def get_file(self, name: str) -> Flow[RemoteFile]:
        """What Cloud Storage knows of an object."""
        return (yield from objects.get(self.open_storage(), object_name(name)))

    def delete_file(self, name: str) -> Flow[None]:
        """Removes an object."""
        yield from objects.delete(self.open_storage(), object_name(name))

    def list_files(self) -> Flow[None]:
        """Emits every object of the staging folder."""
        yield from objects.listed(self.open_storage(), self.places.root)

    def download_file(self, name: str, path: Path) -> Flow[Path]:
        """Copies an object to a local file, which appears when it is whole."""
        return (yield from objects.download_to(self.open_storage(), object_name(name), path))

    # Now.

    def embed(self, texts: Sequence[str], options: EmbedOptions) -> Flow[list[ContentEmbedding]]:
        """One vector for each text; the call depends on the model."""
        if options.model.flat_rows:
            group, most_bytes = self._predict, MOST_PREDICT_BYTES
        else:
            group, most_bytes = self._embed_contents, None
        return (
            yield from embed_in_groups(
                texts,
                options,
                lambda some: group(some, options),
                most=MOST_CONTENTS,
                most_bytes=most_bytes,
            )
        )

    def _predict(self, texts: Sequence[str], options: EmbedOptions) -> Flow[list[ContentEmbedding]]:
        what = f"embedding {len(texts)} texts"
        body: dict[str, Any] = {"instances": [options.instance(text) for text in texts]}
        if options.dims is not None:
            body["parameters"] = {"outputDimensionality": options.dims}
        request = self.calls.request(
            "POST", f"{self.places.publisher(options.model.name)}:predict", body=body
        )
        answer = yield from self.calls.json(what, request)
        found = [entry.get("embeddings") for entry in answer.get("predictions") or ()]
        return vectors_of(found, texts, options, what)

    def _embed_contents(
        self, texts: Sequence[str], options: EmbedOptions
    ) -> Flow[list[ContentEmbedding]]:
        what = f"embedding {len(texts)} texts"
        path = self.places.publisher(options.model.name)
        if len(texts) == 1:
            body = options.vertex_request(texts[0])
            request = self.calls.request("POST", f"{path}:embedContent", body=body)
            answer = yield from self.calls.json(what, request)
            return vectors_of([answer.get("embedding")], texts, options, what, answer)
        requests = {"requests": [options.vertex_request(text) for text in texts]}
        request = self.calls.request("POST", f"{path}:batchEmbedContents", body=requests)
        answer = yield from self.calls.json(what, request)
        return vectors_of(answer.get("embeddings"), texts, options, what, answer)

    def count_tokens(self, texts: Sequence[str], model: str) -> Flow[int]:
        """Tokens of the texts, together."""
        known = find_model(model)
        if known.flat_rows:
            body: dict[str, Any] = {"instances": [{"content": text} for text in texts]}
        else:
            contents = [{"role": "user", "parts": [{"text": text}]} for text in texts]
            body = {"contents": contents}
        path = f"{self.places.publisher(known.name)}:countTokens"
        request = self.calls.request("POST", path, body=body)
        answer = yield from self.calls.json("counting tokens", request)
        return integer(answer.get("totalTokens"))

    def list_models(self) -> Flow[None]:
        """Emits Google's models on Vertex AI."""
        token = ""
        while True:
            request = self.calls.request(
                "GET",
                f"/{self.places.version}/publishers/google/models",
                query={"pageSize": PAGE_SIZE, "pageToken": token},
            )
            page = yield from self.calls.json("listing models", request)
            for document in page.get("publisherModels") or page.get("models") or ():
                yield from perform(Emit(value=parse_model(document)))
            token = str(page.get("nextPageToken") or "")
            if not token:
                return


def _field(line: bytes, name: str) -> str:
    """A field of an input row as text, empty where there is none."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return ""
    value = row.get(name) if isinstance(row, dict) else None
    return value if isinstance(value, str) else ""
