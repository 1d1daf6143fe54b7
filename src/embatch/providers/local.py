"""The local provider: the engine in this process, behind the same port as the clouds."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from embatch.errors import InvalidRequestError, NotFoundError, ProviderUnavailableError
from embatch.providers.base import RemoteBatch, RemoteJob, RemoteStatus, StagedItems, label_hash
from embatch.service.batch import StoredBatch
from embatch.service.scheduler import Scheduler
from embatch.service.store import BatchStore
from embatch.types.batch import Limits
from embatch.types.embedding import Space
from embatch.types.results import Embedded, ResultBlock, TextEngine

MAX_BATCH_ITEMS: Final = 4096
"""About 20 s of work for two cores on texts of usual length: progress shows, overhead does not."""
MAX_BATCH_TOKENS: Final = 600_000
"""About 20 s of work for two cores on long texts."""
MAX_BATCH_BYTES: Final = 64 * 2**20
MAX_IN_FLIGHT_BATCHES: Final = 4
"""Enough to keep the engine busy while others are staged and collected."""
POLL_INTERVAL_S: Final = 0.2
"""Before the first look, which foresees the next one."""
SOONEST_POLL_S: Final = 0.05
LATEST_POLL_S: Final = 1.0
"""A batch is looked at as often at least, so that progress shows."""
CLOSE_TIMEOUT_S: Final = 60.0
"""Longer than any slice takes."""

QUERY_TASKS: Final = {"retrieval_document": "retrieval_query"}
"""The task of a query against vectors of a task; any other task is its own."""


class LocalProvider:
    """Batches on this machine. Nothing is sent anywhere, nothing is billed.

    Batches live in a folder, so they survive the process. Any process that opens the same folder
    with the same model goes on with what is unfinished, once it submits, finds or polls.
    """

    def __init__(
        self,
        open_engine: Callable[[], TextEngine],
        *,
        folder: Path,
        dims: int | None = None,
        task_type: str | None = None,
        checkpoint: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Opens nothing yet: the engine comes with the first need, the folder with a batch."""
        self._open_engine = open_engine
        self._folder = folder
        self._dims = dims
        self._task_type = task_type
        self._checkpoint = checkpoint
        self._opening = threading.RLock()
        self._engine: TextEngine | None = None
        self._store: BatchStore | None = None
        self._scheduler: Scheduler | None = None

    @property
    def space(self) -> Space:
        """The engine's space. Raises `InvalidRequestError` when the model has fewer dims."""
        engine = self._opened_engine()
        prompt = self._prompt(self._task_type)
        return Space(
            provider="local",
            model=engine.model,
            dims=self._dims or engine.dims,
            task_type=self._task_type,
            prompt_template=prompt + "{text}" if prompt else None,
            normalized=True,
            weights_sha256=engine.weights_sha256,
            precision=engine.precision,
        )

    @property
    def limits(self) -> Limits:
        """Sized so that progress shows every few seconds; nothing is billed."""
        return Limits(
            max_batch_items=MAX_BATCH_ITEMS,
            max_batch_tokens=MAX_BATCH_TOKENS,
            max_batch_bytes=MAX_BATCH_BYTES,
            max_in_flight_batches=MAX_IN_FLIGHT_BATCHES,
            max_item_tokens=self._opened_engine().max_tokens,
            poll_interval_s=POLL_INTERVAL_S,
            settle_s=0.0,
            billed=False,
        )

    @property
    def scope(self) -> str:
        """This machine: nothing is rationed here."""
        return "local"

    @property
    def opener(self) -> None:
        """The service is in this process."""
        return None

    def upload(self, stage: StagedItems, label: str) -> str:  # noqa: ARG002 - the port's signature
        """The stage's own path: there is nothing to send."""
        return str(stage.path)

    def submit(self, input_ref: str, label: str, *, items: int, priority: int) -> RemoteBatch:
        """Creates the batch; the same label and items again give the batch that exists."""
        store, scheduler = self._service()
        space = self.space
        if store.find(label) is None and not Path(input_ref).exists():
            raise NotFoundError(f"the items of {label} are not on this machine: {input_ref}")
        batch = store.create(
            label=label,
            requests=Path(input_ref),
            items=items,
            model=self._model_key(),
            dims=space.dims,
            prompt=self._prompt(space.task_type),
            priority=priority,
        )
        scheduler.wake()
        return RemoteBatch(name=batch.id, label=label)

    def find(self, label: str) -> RemoteBatch | None:
        """The batch that bears `label`, at once and surely."""
        batch = self._service()[0].find(label)
        return RemoteBatch(name=batch.id, label=label) if batch else None

    def listed(self) -> Iterator[RemoteJob]:
        """Every batch in the folder."""
        store, before = self._service()[0], None
        while page := store.page(before_seq=before):
            for batch in page:
                yield RemoteJob(
                    name=batch.id,
                    label=batch.label,
                    state=batch.state,
                    done=batch.done,
                    created_at=batch.created_at.timestamp(),
                    items=batch.items,
                    model=batch.model,
                )
            before = page[-1].seq

    def poll(self, name: str) -> RemoteStatus:
        """The batch's state. Raises `ProviderUnavailableError` while a full disk holds all up."""
        store, scheduler = self._service()
        batch = store.get(name)
        reason = scheduler.health().paused_reason
        if reason is not None and not batch.done:
            raise ProviderUnavailableError(reason)
        return RemoteStatus(
            state=batch.state,
            done=batch.done,
            progress=batch.progress,
            has_results=batch.done and batch.rows_done > 0,
            error=batch.error,
            poll_after_s=_poll_after_s(batch, scheduler.remaining_s(batch)),
        )

    def results(self, name: str) -> Iterator[ResultBlock]:
        """The rows that are done, in order, block after block."""
        store, _ = self._service()
        prefix = label_hash(store.get(name).label)
        for block in store.results(name):
            yield ResultBlock(
                keys=[f"{prefix}:{row}" for row in block.rows.tolist()],
                vectors=block.vectors,
                errors=[(f"{prefix}:{row}", error) for row, error in block.errors],
                tokens=block.tokens,
                truncated=block.truncated,
            )

    def cancel(self, name: str) -> None:
        """Stops the batch at once; rows that are done stay readable."""
        self._service()[0].cancel(name)

    def discard(self, name: str | None, input_ref: str | None) -> None:  # noqa: ARG002 - the port's
        """Deletes the batch; the stage's file is not the provider's and stays."""
        if name is not None:
            with suppress(NotFoundError):
                self._service()[0].delete(name)

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        """Vectors of a few texts, ahead of the batches that wait."""
        space = self.space
        task = QUERY_TASKS.get(space.task_type or "", space.task_type) if query else space.task_type
        prompt = self._prompt(task)
        if self._scheduler is None:
            return self._opened_engine().embed(texts, prompt=prompt, dims=space.dims)
        return self._scheduler.embed_now(self._model_key(), texts, prompt=prompt, dims=space.dims)

    def close(self) -> None:
        """Ends the work after the slice in hand and frees the model. Safe to call twice."""
        scheduler = self._scheduler
        if scheduler is not None and not scheduler.stop(CLOSE_TIMEOUT_S):
            return  # the slice in hand still needs the engine and the store
        with self._opening:
            if self._store is not None:
                self._store.close()
            if self._engine is not None:
                self._engine.close()

    def _opened_engine(self) -> TextEngine:
        with self._opening:
            if self._engine is None:
                engine = self._open_engine()
                if self._dims is not None and not 1 <= self._dims <= engine.dims:
                    engine.close()
                    raise InvalidRequestError(
                        f"model {engine.model} gives 1..{engine.dims} dims, not {self._dims}: "
                        "ask for fewer, or for another model"
                    )
                self._engine = engine
            return self._engine

    def _prompt(self, task_type: str | None) -> str:
        return self._opened_engine().prompts.get(task_type, "") if task_type else ""

    def _model_key(self) -> str:
        """Names the very weights and arithmetic: no other engine may go on with a batch."""
        engine = self._opened_engine()
        return f"{engine.model}:{engine.precision}:{engine.weights_sha256}"

    def _service(self) -> tuple[BatchStore, Scheduler]:
        """The store, with a scheduler at work on it."""
        with self._opening:
            if self._store is None or self._scheduler is None:
                self._store = BatchStore(self._folder, checkpoint=self._checkpoint)
                self._scheduler = Scheduler(
                    self._store, lambda _: self._opened_engine(), models=[self._model_key()]
                )
                self._scheduler.start()
            return self._store, self._scheduler


def _poll_after_s(batch: StoredBatch, remaining_s: float | None) -> float:
    """When to look again: at the foreseen end, and ever later at what waits or is overdue."""
    if remaining_s is None:
        age_s = (datetime.now(UTC) - batch.created_at).total_seconds()
        return min(LATEST_POLL_S, max(POLL_INTERVAL_S, age_s / 4))
    wait_s = remaining_s if remaining_s > 0 else -remaining_s / 4
    return min(LATEST_POLL_S, max(SOONEST_POLL_S, wait_s))


def open_local(
    *,
    model: str | None,
    folder: Path,
    precision: str = "auto",
    dims: int | None = None,
    task_type: str | None = None,
    open_engine: Callable[..., TextEngine] | None = None,
    checkpoint: Callable[[str], None] = lambda _: None,
) -> LocalProvider:
    """The local provider over the batches in `folder`. Nothing is loaded until it is needed.

    `open_engine(model, precision=...)` gives the engine; the default is `local.engine.Engine.open`.
    """

    def opened() -> TextEngine:
        if open_engine is not None:
            return open_engine(model, precision=precision)
        from embatch.local.engine import Engine

        return Engine.open(model, precision=precision)

    return LocalProvider(
        opened, folder=folder, dims=dims, task_type=task_type, checkpoint=checkpoint
    )
