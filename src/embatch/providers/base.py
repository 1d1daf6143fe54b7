"""The port: what a run needs of any service that embeds batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from embatch.types.batch import Limits
from embatch.types.embedding import Space
from embatch.types.label import label_hash as label_hash
from embatch.types.label import wire_key as wire_key
from embatch.types.results import BatchProgress, Embedded, ResultBlock
from embatch.types.state import JobState

if TYPE_CHECKING:  # what reads results alone needs none of it
    import pyarrow as pa


class StagedItems(Protocol):
    """The frozen items of one batch, as `datasets.stage` keeps them."""

    @property
    def path(self) -> Path:
        """The Arrow IPC file of this machine that holds them."""
        ...

    @property
    def scratch(self) -> Path:
        """A folder of this machine for what is made of them for a while."""
        ...

    @property
    def items(self) -> int:
        """How many there are."""
        ...

    def read(self) -> Iterator["pa.RecordBatch"]:
        """The items in order: columns `key`, `row`, `text`, `text_sha256` and the kept ones."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBatch:
    """A batch as the provider knows it."""

    name: str
    """The provider's name for it: what `poll`, `results`, `cancel` and `discard` take."""
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteJob:
    """A batch in the provider's own list, ours or another's."""

    name: str
    label: str
    """Its display name as it stands at the service."""
    state: JobState | str
    done: bool
    created_at: float | None = None
    """Seconds since 1970."""
    items: int | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteStatus:
    """One look at a remote batch."""

    state: JobState | str
    """An unknown word is kept as it came and is not terminal."""
    done: bool
    """The job has ended, whatever its state is called."""
    progress: BatchProgress
    has_results: bool
    """Results can be read now; a failed or cancelled job may have some too."""
    error: str | None = None
    """Why the job ended badly, without users' texts."""
    refused: bool = False
    """The job failed because of what is in it: smaller batches may find the row at fault."""
    quota: bool = False
    """The job failed because a quota was used up: nothing is wrong with it."""
    ended_at: float | None = None
    """Seconds since 1970, where the service says it."""
    label: str | None = None
    """Its display name, where the service says it."""
    poll_after_s: float | None = None
    """When the next look is worth it, in seconds from now; None when that cannot be foreseen."""


class Provider(Protocol):
    """A service that embeds batches. Every call may be repeated but `submit`.

    All calls may raise `ProviderUnavailableError` (try later) and `RateLimitError` (wait).
    """

    @property
    def space(self) -> Space:
        """The space of every vector that this provider will give."""
        ...

    @property
    def limits(self) -> Limits:
        """What a batch may hold, and how many may be in flight."""
        ...

    @property
    def scope(self) -> str:
        """What shares one quota: provider, project (or a mark of the key) and model."""
        ...

    @property
    def opener(self) -> "OpenProvider | None":
        """Opens the same provider in another process; None where only this process can.

        It can be pickled.
        """
        ...

    def upload(self, stage: StagedItems, label: str) -> str:
        """Brings the items to the service. Gives the reference that `submit` takes.

        The same items and label again leave one input there. Raises `InvalidRequestError` when
        they are more than the service takes.
        """
        ...

    def submit(self, input_ref: str, label: str, *, items: int, priority: int) -> RemoteBatch:
        """Creates the remote batch. Called once a label, never repeated blindly.

        Raises `IndeterminateError` when the batch may or may not exist now. After any other error
        it surely does not: `InvalidRequestError` blames what is in it, `NotFoundError` says that
        the service has the input no longer, `ProviderUnavailableError` and `RateLimitError` pass,
        and the rest (`AuthenticationError`, `PermissionDeniedError`, `ConfigError`) is for a
        person to mend.
        """
        ...

    def find(self, label: str) -> RemoteBatch | None:
        """The remote batch that bears `label`; None after a complete look without it.

        Any trouble on the way is an error: a look that was cut short says nothing.
        """
        ...

    def listed(self) -> Iterator[RemoteJob]:
        """Every batch in the service's list, those of others too, as a complete walk."""
        ...

    def poll(self, name: str) -> RemoteStatus:
        """The batch's state now. Raises `NotFoundError` when the service no longer knows it."""
        ...

    def results(self, name: str) -> Iterator[ResultBlock]:
        """The results as a stream of blocks, in constant memory, in any order.

        Vectors of another length, with values that are not finite, or missing are row errors.
        Raises `ProviderUnavailableError` while results that are there cannot be read.
        """
        ...

    def cancel(self, name: str) -> None:
        """Asks the service to stop the batch. It may still complete."""
        ...

    def discard(self, name: str | None, input_ref: str | None) -> None:
        """Removes the remote batch, its input and its results; what is gone already is fine."""
        ...

    def embed(self, texts: Sequence[str], *, query: bool = False) -> Embedded:
        """Embeds a few texts now, in the provider's space; `query` uses the query side's task."""
        ...

    def close(self) -> None:
        """Frees what the provider holds. Safe to call twice."""
        ...


OpenProvider = Callable[[], Provider]
"""Opens a provider."""
