"""AsyncClient: every operation, performed on an event loop."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from embatch.client.cloud import Cloud, emit_blocks, read_embeddings
from embatch.client.files import JSONL
from embatch.client.flow import Flow, Loop, adrive, astream
from embatch.client.open import DEFAULT_MODEL, DEFAULT_WAIT_S, build_access, opened
from embatch.client.requests import checked_model, checked_texts
from embatch.client.retry import RetryPolicy
from embatch.client.submissions import (
    batch_name_of,
    checked_priority,
    embed_options,
    listed_text,
    listed_texts,
    new_batch,
    new_file_batch,
)
from embatch.client.waiting import await_completion
from embatch.config import CloudSettings
from embatch.transport import DEFAULT_TIMEOUT_S, AsyncTransport
from embatch.types.batch import EmbedContentBatch
from embatch.types.embedding import BatchEmbeddings, ContentEmbedding
from embatch.types.files import ModelDescription, RemoteFile
from embatch.types.results import ResultBlock

if TYPE_CHECKING:
    import os

    from google.auth.credentials import Credentials

T = TypeVar("T")


class AsyncClient:
    """Asynchronous batch embeddings on the Gemini API and Vertex AI, on an event loop.

    `AsyncClient()` finds its way by the environment; `auth="gemini"` or `auth="vertex_ai"` says it
    outright, here or on a single call. The same names and
    arguments as Client. Close it, or use `async with`.

    Every call may raise AuthenticationError, PermissionDeniedError, NotFoundError, RateLimitError,
    ProviderUnavailableError (after its own tries) and InvalidRequestError.
    """

    def __init__(
        self,
        *,
        auth: str | None = None,
        api_key: str | None = None,
        project: str | None = None,
        location: str | None = None,
        staging: str | None = None,
        credentials: "Credentials | None" = None,
        base_url: str | None = None,
        api_version: str | None = None,
        storage_base_url: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        settings: CloudSettings | None = None,
    ) -> None:
        """Arguments outweigh the environment (config.CloudSettings names its variables).

        `staging`: `gs://bucket/prefix` for Vertex AI batches. `credentials`: google-auth's, in
        place of the application default ones. `timeout_s`: longest silence taken for life.
        Raises ConfigError, naming the variables, when nothing leads to a cloud.
        """
        self._access = build_access(
            auth=auth,
            api_key=api_key,
            project=project,
            location=location,
            staging=staging,
            credentials=credentials,
            base_url=base_url,
            api_version=api_version,
            storage_base_url=storage_base_url,
            retry=retry,
            settings=settings,
        )
        self._clouds = self._access.first()
        self._performer = Loop(AsyncTransport(timeout_s=timeout_s))

    def __repr__(self) -> str:
        return f"AsyncClient(auth={self._access.default_auth().value!r})"

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes every connection; later calls are InvalidRequestErrors. Safe to call twice."""
        await self._performer.transport.close()

    def _cloud(self, auth: str | None) -> Cloud:
        self._performer.transport.require_open()
        return opened(self._access, self._clouds, auth)

    async def _run(self, flow: Flow[T]) -> T:
        return await adrive(flow, self._performer)

    def _stream(self, flow: Flow[None]) -> AsyncIterator[Any]:
        return astream(flow, self._performer)

    # Batches.

    async def async_batch_embed_contents(
        self,
        texts: Sequence[str],
        *,
        display_name: str = "",
        model: str = DEFAULT_MODEL,
        task_type: str | None = None,
        output_dimensionality: int | None = None,
        title: str | None = None,
        priority: int = 0,
        keys: Sequence[str] | None = None,
        auth: str | None = None,
    ) -> EmbedContentBatch:
        """Submits texts as one asynchronous batch and gives it at once.

        `display_name` is required; it need not be unique. `output_dimensionality`: 128 to 3072 for
        Gemini models. `title` goes with `task_type="retrieval_document"` only. `priority`: higher
        is more urgent. `keys` name the texts for you: they stay in this process (in `.keys` of what
        is given) and never reach the service.

        Never creates twice: raises IndeterminateError, with the label to look for, when the batch
        may or may not exist.
        """
        new = new_batch(
            texts, display_name, model, task_type, output_dimensionality, title, priority, keys
        )
        return await self._run(self._cloud(auth).create(new))

    async def create_batch_from_file(
        self,
        path: "str | os.PathLike[str]",
        *,
        display_name: str = "",
        model: str = DEFAULT_MODEL,
        priority: int = 0,
        unique_name: bool = False,
        auth: str | None = None,
    ) -> EmbedContentBatch:
        """Submits a JSONL file of request rows: a local path, or `files/…` or `gs://…`.

        Rows are the service's own, `{"key": …, "request": {…}}`; keys should be unique.
        `unique_name` sends `display_name` as it is, for callers who make it unique themselves.
        Raises InputError for a file that cannot be read, and IndeterminateError as above.
        """
        new = new_file_batch(path, display_name, model, priority, unique=unique_name)
        return await self._run(self._cloud(auth).create_from_file(new))

    async def get_batch_status(
        self, name: EmbedContentBatch | str, *, auth: str | None = None
    ) -> EmbedContentBatch:
        """The batch as it is now."""
        return await self._run(self._cloud(auth).get(batch_name_of(name)))

    async def get_batch_embeddings(
        self,
        batch: EmbedContentBatch | str,
        *,
        keys: Sequence[str] | None = None,
        auth: str | None = None,
    ) -> BatchEmbeddings:
        """The results of a finished batch, aligned with its inputs, whichever process submitted it.

        A failed or missing row is a RowError in its place. `keys`: the keys given at submission,
        where another process reads; others are refused. Raises BatchNotCompleteError,
        BatchFailedError when it ended without results, and AlignmentError when the results hold a
        key that is unknown, foreign or there twice. A batch that others made comes in the order of
        its file, `.aligned` False, and takes no `keys`. Memory: the vectors, and a block of rows.
        """
        return await self._run(read_embeddings(self._cloud(auth), batch, keys))

    def read_batch_results(
        self, batch: EmbedContentBatch | str, *, auth: str | None = None
    ) -> AsyncIterator[ResultBlock]:
        """The results of a finished batch as they come: blocks of wire keys and float32 vectors.

        Constant memory, any order, not aligned. Errors as in `get_batch_embeddings`.
        """
        return self._stream(emit_blocks(self._cloud(auth), batch))

    async def await_batch_completion(
        self,
        name: EmbedContentBatch | str,
        *,
        poll_interval: float | None = None,
        timeout: float | None = DEFAULT_WAIT_S,
        on_progress: Callable[[EmbedContentBatch], object] | None = None,
        auth: str | None = None,
    ) -> EmbedContentBatch:
        """Waits for a batch to end and gives it, whatever its end is.

        Seconds. `poll_interval` None adapts to the batch's size and backs off while nothing moves;
        `timeout` None adapts too: a second a row and two minutes, at least ten minutes.
        `on_progress`, a function or coroutine function, is called with the batch at every look.
        Quotas and outages of the service do not end the wait. Raises BatchTimeoutError; the batch
        goes on, its name is on the error.
        """
        return await self._run(
            await_completion(
                self._cloud(auth),
                batch_name_of(name),
                poll_interval=poll_interval,
                timeout=timeout,
                on_progress=on_progress,
            )
        )

    def list_batches(self, *, auth: str | None = None) -> AsyncIterator[EmbedContentBatch]:
        """Every embedding batch, page by page behind the scenes. Counts in lists may be stale."""
        return self._stream(self._cloud(auth).list_batches())

    async def find_batch(self, label: str, *, auth: str | None = None) -> EmbedContentBatch | None:
        """The batch that bears this `.label`, after a look through the whole list; None without."""
        return await self._run(self._cloud(auth).find(label))

    async def cancel_batch(self, name: EmbedContentBatch | str, *, auth: str | None = None) -> None:
        """Asks for a batch's end. It comes later, and the batch may still complete."""
        await self._run(self._cloud(auth).cancel(batch_name_of(name)))

    async def delete_batch(self, name: EmbedContentBatch | str, *, auth: str | None = None) -> None:
        """Removes a batch, its results, and the input embatch uploaded for it.

        A running batch is cancelled first and waited for: deleting alone does not stop its bill.
        """
        await self._run(self._cloud(auth).delete(batch_name_of(name)))

    async def update_batch(
        self, name: EmbedContentBatch | str, *, priority: int, auth: str | None = None
    ) -> EmbedContentBatch:
        """Changes a batch's priority. InvalidRequestError on Vertex AI, which has none."""
        checked = checked_priority(priority)
        return await self._run(self._cloud(auth).update(batch_name_of(name), priority=checked))

    # Files.

    async def upload_file(
        self,
        path: "str | os.PathLike[str]",
        *,
        display_name: str = "",
        mime_type: str = JSONL,
        auth: str | None = None,
    ) -> RemoteFile:
        """Uploads a local file, streamed from disk and taken up again where it broke off.

        Gemini API: at most 2 GB, kept for 48 hours. Vertex AI: into the staging folder. Raises
        InputError for a file that cannot be read or that changed meanwhile.
        """
        local = Path(path)
        return await self._run(
            self._cloud(auth).upload_file(
                local, display_name=display_name or local.name, mime_type=mime_type
            )
        )

    async def get_file(self, name: str, *, auth: str | None = None) -> RemoteFile:
        """What the service knows of a file. The Gemini API answers 403 for one that is gone."""
        return await self._run(self._cloud(auth).get_file(name))

    def list_files(self, *, auth: str | None = None) -> AsyncIterator[RemoteFile]:
        """Every uploaded file; on Vertex AI every object of the staging folder."""
        return self._stream(self._cloud(auth).list_files())

    async def delete_file(self, name: str, *, auth: str | None = None) -> None:
        """Removes a file. A batch's result file goes with its batch."""
        await self._run(self._cloud(auth).delete_file(name))

    async def download_file(
        self, name: str, path: "str | os.PathLike[str]", *, auth: str | None = None
    ) -> Path:
        """Downloads a result file to `path`, which appears when it is whole.

        Streamed, and taken up again where it broke off. Raises InputError when `path` cannot be
        written.
        """
        return await self._run(self._cloud(auth).download_file(name, Path(path)))

    # Now.

    async def embed_content(
        self,
        text: str,
        *,
        model: str = DEFAULT_MODEL,
        task_type: str | None = None,
        output_dimensionality: int | None = None,
        title: str | None = None,
        auth: str | None = None,
    ) -> ContentEmbedding:
        """The vector of one text, now, at the interactive price. Not normalised: as it came."""
        options = embed_options(model, task_type, output_dimensionality, title)
        return (await self._run(self._cloud(auth).embed(listed_text(text), options)))[0]

    async def embed_contents(
        self,
        texts: Sequence[str],
        *,
        model: str = DEFAULT_MODEL,
        task_type: str | None = None,
        output_dimensionality: int | None = None,
        title: str | None = None,
        auth: str | None = None,
    ) -> list[ContentEmbedding]:
        """One vector for each text, in order, now; any number of texts, 100 a call.

        Not normalised: as they came. Raises AlignmentError when the service gives fewer.
        """
        options = embed_options(model, task_type, output_dimensionality, title)
        return await self._run(self._cloud(auth).embed(checked_texts(texts), options))

    async def count_tokens(
        self, texts: str | Sequence[str], *, model: str = DEFAULT_MODEL, auth: str | None = None
    ) -> int:
        """Tokens of one text, or of several together, as the service counts them."""
        return await self._run(
            self._cloud(auth).count_tokens(listed_texts(texts), checked_model(model))
        )

    def list_models(self, *, auth: str | None = None) -> AsyncIterator[ModelDescription]:
        """Every model that the service offers."""
        return self._stream(self._cloud(auth).list_models())
