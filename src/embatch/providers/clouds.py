"""What the providers of the two clouds share: one client, one space, jobs found and read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from embatch import vectors
from embatch.client.cloud import Cloud, NewFileBatch, checked_label, finished
from embatch.client.embeds import Answered
from embatch.client.flow import Emit, Flow, Thread, drive, perform, stream
from embatch.client.open import Auth, build_access
from embatch.client.requests import EmbedOptions
from embatch.client.results import TEXT_KEY, BlockBuilder
from embatch.client.retry import RetryPolicy
from embatch.config import CloudSettings
from embatch.errors import (
    BatchFailedError,
    BatchNotCompleteError,
    ConfigError,
    EmbatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
)
from embatch.providers.base import OpenProvider, RemoteBatch, RemoteJob, RemoteStatus, wire_key
from embatch.providers.limits import batch_limits, service_limits
from embatch.transport import Transport
from embatch.types.batch import EmbedContentBatch, Limits
from embatch.types.embedding import RowError, Space
from embatch.types.results import BatchProgress, Embedded, Matrix, ResultBlock
from embatch.types.state import JobState
from embatch.types.task import TaskType

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

POLICY: Final = RetryPolicy(attempts=4, first_wait_s=0.5, longest_wait_s=8.0, patience_s=8.0)
"""Of calls that may be repeated: what lasts longer is the run's to wait for, without a thread."""
QUERY_TASKS: Final = {TaskType.RETRIEVAL_DOCUMENT: TaskType.RETRIEVAL_QUERY}
"""The task of a query against vectors of a task; any other task is its own."""
BLAMED_ON_ROWS: Final = frozenset({"invalid_argument", "out_of_range"})
"""Codes of a failed job whose rows are at fault; any other may pass by itself."""
QUOTA_USED_UP: Final = "resource_exhausted"
"""Code of a failed job that the service had no room for."""
FAILED_PRECONDITION: Final = "FAILED_PRECONDITION"
"""A 400 that no change of the rows can mend: billing is off, or the country is not served."""
UNIT_TOLERANCE: Final = 1e-5
"""Vectors so near to length 1 stay as they came, to the bit."""
_BAD_ENDS: Final = frozenset({JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run asks of a cloud."""

    options: EmbedOptions
    dims: int
    """Length of every vector, asked for or the model's own."""
    settle_s: float | None = None

    @classmethod
    def of(
        cls, model: str, *, dims: int | None, task_type: str | None, settle_s: float | None
    ) -> "Asked":
        """Checked; InvalidRequestError says what to mend."""
        options = EmbedOptions.of(model, task_type, dims, None)
        known = options.expected_dims
        if known is None:
            raise InvalidRequestError(
                f"embatch does not know how many values the vectors of {options.model.name} have: "
                "say it with --dims (dims=)"
            )
        return cls(options=options, dims=known, settle_s=settle_s)


def open_cloud(
    auth: Auth,
    *,
    staging: str | None = None,
    settings: CloudSettings | None = None,
    credentials: "Credentials | None" = None,
) -> Cloud:
    """The client's side of a cloud; ConfigError, naming the variables, when something is missing.

    `settings` None takes the environment's; `staging` outweighs them.
    """
    access = build_access(
        auth=auth,
        api_key=None,
        project=None,
        location=None,
        staging=staging,
        credentials=credentials,
        base_url=None,
        api_version=None,
        storage_base_url=None,
        retry=POLICY,
        settings=settings,
    )
    return access.open(auth)


class CloudProvider:
    """A cloud behind the port; what differs from cloud to cloud is in the subclasses.

    Calls that may be repeated are tried again a few times; create is tried once.
    """

    name: ClassVar[str]
    unreadable: ClassVar[tuple[type[EmbatchError], ...]]
    """What reading results of a job that is there raises while they are not."""

    def __init__(
        self,
        cloud: Cloud,
        asked: Asked,
        transport: Transport,
        opener: OpenProvider | None = None,
    ) -> None:
        self._cloud = cloud
        self._once = cloud.trying_once()
        self._options = asked.options
        self._dims = asked.dims
        self._settle_s = asked.settle_s
        self._performer = Thread(transport)
        self._opener = opener
        self._created: dict[str, RemoteBatch] = {}
        """Batches that this process made, by label: known before the list shows them."""
        self._items: dict[str, int] = {}
        """Their rows by name, for services that count only at the end."""

    @property
    def space(self) -> Space:
        """The model's space. Vectors are brought to length 1 where the service does not do it."""
        options = self._options
        return Space(
            provider=self.name,
            model=options.model.name,
            dims=self._dims,
            task_type=None if options.task is None else options.task.value,
            prompt_template=options.template,
            normalized=True,
        )

    @property
    def limits(self) -> Limits:
        """As the table in providers.limits has them."""
        model = self._options.model
        return batch_limits(service_limits(self.name, model), model, settle_s=self._settle_s)

    @property
    def scope(self) -> str:
        """Service, project (or the key's mark) and model."""
        return f"{self.name}/{self._cloud.account}/{self._options.model.name}"

    @property
    def opener(self) -> OpenProvider | None:
        """None where credentials were handed in: they are this process's."""
        return self._opener

    def submit(self, input_ref: str, label: str, *, items: int, priority: int) -> RemoteBatch:
        """Creates the batch by one request, sent again only where a token was refused."""
        new = NewFileBatch(
            path=Path(),
            remote=input_ref,
            label=checked_label(label),
            model=self._options.model.name,
            priority=priority,
        )
        try:
            made = drive(self._once.create_from_file(new), self._performer)
        except (InvalidRequestError, PermissionDeniedError) as error:
            raise self.refusal(error, input_ref) from None
        except NotFoundError as error:
            raise ConfigError(
                f"{error} The model {new.model} may have no batches here, or not in this location."
            ) from None
        batch = RemoteBatch(name=made.name, label=label)
        self._created[label] = batch
        self._items[made.name] = items
        return batch

    def refusal(self, error: EmbatchError, input_ref: str) -> EmbatchError:  # noqa: ARG002 - for subclasses
        """What a refused create means. Nothing was created."""
        if error.service_status == FAILED_PRECONDITION:
            return PermissionDeniedError(
                f"{error} Look at the project's billing, and whether its country is served."
            )
        return error

    def find(self, label: str) -> RemoteBatch | None:
        """The batch that bears `label`: by the name that create gave, else in the whole list."""
        trouble: ProviderUnavailableError | None = None
        known = self._created.get(label)
        if known is not None:
            try:
                if drive(self._cloud.get(known.name), self._performer).label == label:
                    return known
            except NotFoundError:
                self._created.pop(label, None)
            except ProviderUnavailableError as error:
                trouble = error  # the list may still show it
        found = drive(self._cloud.find(label), self._performer)
        if found is None and trouble is not None:
            raise trouble
        return None if found is None else RemoteBatch(name=found.name, label=label)

    def listed(self) -> Iterator[RemoteJob]:
        """Every embedding batch that the service lists."""
        for batch in stream(self._cloud.list_batches(), self._performer):
            yield RemoteJob(
                name=batch.name,
                label=batch.label,
                state=batch.state,
                done=batch.is_terminal,
                created_at=None if batch.create_time is None else batch.create_time.timestamp(),
                items=batch.batch_stats.request_count or None,
                model=batch.model,
            )

    def poll(self, name: str) -> RemoteStatus:
        """The batch's state. One that completed but shows no results raises
        ProviderUnavailableError: they are paid for, and may turn up."""
        batch = drive(self._once.get(name), self._performer)
        done, ended_badly = batch.is_terminal, batch.state in _BAD_ENDS or batch.error is not None
        if done and not batch.has_results and not ended_badly:
            raise ProviderUnavailableError(
                f"{name} ended {batch.state}, but names no results yet: looked at again later"
            )
        stats = batch.batch_stats
        return RemoteStatus(
            state=batch.state,
            done=done,
            progress=BatchProgress(
                total=stats.request_count or self._items.get(name, 0),
                succeeded=stats.successful_request_count,
                failed=stats.failed_request_count,
            ),
            has_results=batch.has_results,
            error=None if batch.error is None else batch.error.message,
            refused=batch.error is not None and batch.error.code in BLAMED_ON_ROWS,
            quota=batch.error is not None and batch.error.code == QUOTA_USED_UP,
            ended_at=None if batch.end_time is None else batch.end_time.timestamp(),
            label=batch.label,
        )

    def results(self, name: str) -> Iterator[ResultBlock]:
        """Blocks of unit vectors and row errors under their wire keys, as the service has them.

        Rows that cannot be read and bear no key are left out: they turn up as missing.
        """
        return stream(self._emitted(name), self._performer)

    def _emitted(self, name: str) -> Flow[None]:
        try:
            batch = yield from finished(self._cloud, name)
        except (BatchNotCompleteError, BatchFailedError) as error:
            raise ProviderUnavailableError(
                f"{name} shows no results now, though it did: {error}"
            ) from None
        builder = BlockBuilder(dims=self._dims, cut=True)
        keys = _Keys(self._cloud, batch)

        def take(lines: Sequence[bytes]) -> Flow[None]:
            for full in builder.add(lines):
                yield from self._emit(full.block, keys)

        try:
            yield from self._cloud.rows(batch, take)
        except self.unreadable as error:
            raise ProviderUnavailableError(
                f"{name} ended {batch.state}, but its results cannot be read: {error}"
            ) from None
        for last in builder.finish():
            yield from self._emit(last.block, keys)

    def _emit(self, block: ResultBlock, keys: "_Keys") -> Flow[None]:
        block = yield from keys.of_block(block)
        limit = self._options.model.max_tokens
        block = replace(
            block,
            vectors=at_unit_length(block.vectors),
            truncated=None if block.tokens is None else block.tokens >= limit,
        )
        yield from perform(Emit(value=block))

    def cancel(self, name: str) -> None:
        """Asks for the batch's end; one that has ended stays as it is."""
        try:
            drive(self._cloud.cancel(name), self._performer)
        except InvalidRequestError:
            # Services may refuse to cancel what has ended.
            if not drive(self._cloud.get(name), self._performer).is_terminal:
                raise

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        """Vectors of a few texts now, at the interactive price. Tokens are -1 where unknown.

        A query is asked again when the service fails; other calls are tried once, since each try
        may be billed: the caller knows what it has paid for.
        """
        options, cloud = self._options, self._cloud if query else self._once
        if query and options.task is not None:
            options = replace(options, task=QUERY_TASKS.get(options.task, options.task))
        found = drive(cloud.embed(list(texts), options), self._performer)
        matrix = np.empty((len(found), self._dims), dtype=np.float32)
        for place, embedding in enumerate(found):
            matrix[place] = embedding.values
        counts = [-1 if embedding.tokens is None else embedding.tokens for embedding in found]
        tokens = np.array(counts, dtype=np.int32)
        return Embedded(
            vectors=at_unit_length(matrix),
            tokens=tokens,
            truncated=tokens >= options.model.max_tokens,
            billed=found.tokens if isinstance(found, Answered) else None,
        )

    def forget(self, name: str) -> None:
        """Drops what this process remembers of a batch."""
        self._items.pop(name, None)
        for label, batch in list(self._created.items()):
            if batch.name == name:
                self._created.pop(label, None)

    def close(self) -> None:
        """Closes every connection. Safe to call twice."""
        self._performer.transport.close()


class _Keys:
    """Wire keys of a batch's rows, where the service gives texts back in place of keys too."""

    def __init__(self, cloud: Cloud, batch: EmbedContentBatch) -> None:
        self._cloud = cloud
        self._batch = batch
        self._by_text: dict[str, list[int]] | None = None

    def of_block(self, block: ResultBlock) -> Flow[ResultBlock]:
        """The block under wire keys. Errors without a key are left out: their rows are missing."""
        errors = [(key, error) for key, error in block.errors if key]
        if not any(key.startswith(TEXT_KEY) for key in self._all_of(block.keys, errors)):
            return replace(block, errors=errors)
        if self._by_text is None:
            self._by_text = yield from self._cloud.texts_of(self._batch)
        return replace(
            block,
            keys=[self._wire(key) for key in block.keys],
            errors=[(self._wire(key), error) for key, error in errors],
        )

    @staticmethod
    def _all_of(keys: Sequence[str], errors: Sequence[tuple[str, RowError]]) -> Iterator[str]:
        yield from keys
        yield from (key for key, _ in errors)

    def _wire(self, key: str) -> str:
        """Equal texts have equal vectors: their places are given out in order."""
        places = (self._by_text or {}).get(key)
        return wire_key(self._batch.label, places.pop(0)) if places else key


def at_unit_length(matrix: Matrix) -> Matrix:
    """The same matrix, its rows at length 1; those that are so already, or have no direction, as
    they came."""
    lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    off = np.isfinite(lengths) & (lengths > 0.0) & (np.abs(lengths - 1.0) > UNIT_TOLERANCE)
    if off.all():
        # As `vectors.normalize` does it, in place.
        np.divide(matrix, lengths[:, None].astype(np.float32), out=matrix)
    elif off.any():
        matrix[off] = vectors.normalize(matrix[off])
    return matrix
