"""What may happen on purpose, to try a pipeline: the server asks at these points. Here it is fair.

`embatch.server.simulation` has the bad days; a server without them loads nothing of it.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from embatch.server.connection import Connection
from embatch.server.details import shown_batch
from embatch.server.outputs import result_lines
from embatch.server.wire_shapes import ShownBatch, ShownFile
from embatch.service.batch import StoredBatch
from embatch.service.store import BatchStore

if TYPE_CHECKING:
    from embatch.server.service import Service

Endpoint = Callable[[Request], Awaitable[Response]]
Plan = Mapping[str, Any]
"""What was decided for a batch, as plain JSON: it is kept with it and survives any end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch that is about to be made."""

    id: str
    model: str
    """As it was called."""
    display_name: str
    rows: int
    count_tokens: Callable[[], int]
    """Counts the tokens of all rows, which takes a while."""


class Results:
    """A batch's output on its way to the disk."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self.lines = lines

    def plan(self) -> Plan | None:
        """The batch's plan with what came of its rows, once all lines are taken."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Strikes:
    """How often a fault of the day struck."""

    fault: str
    kind: str
    count: int


class Weather:
    """A fair day: nothing is changed."""

    connection: type[Connection] = Connection
    """What serves a client's connection."""

    def attach(self, service: "Service") -> None:
        """Told once, before anything else."""

    def strikes(self) -> Sequence[Strikes]:
        """What struck so far."""
        return ()

    # Calls

    async def serve(self, call: str, request: Request, endpoint: Endpoint) -> Response:
        """The answer to a call, which has a name such as "batches.create"."""
        del call
        return await endpoint(request)

    async def creating(self, *, display_name: str, file_name: str) -> None:
        """Inside a create whose body is read; nothing has happened yet. May raise `ApiError`."""

    def length(self, wanted: int, full: int) -> int:
        """How many dimensions a text that is embedded at once gets."""
        del full
        return wanted

    def embedded(
        self, values: list[bytes], tokens: int, *, truncated: bool
    ) -> tuple[list[bytes], int | None]:
        """Vectors and tokens of texts embedded at once. May raise `ApiError`."""
        del truncated
        return values, tokens

    # Batches

    def deal(self, new: NewBatch) -> Plan | None:
        """The plan of a batch that is about to be made. May raise `ApiError`."""
        del new
        return None

    def length_of(self, plan: Plan | None, wanted: int, full: int) -> int:
        """Dimensions to compute a batch at."""
        del plan, full
        return wanted

    def forget(self, batch_id: str) -> None:
        """A batch has ended, was deleted, or was not made after all."""

    def cancel(self, store: BatchStore, batch: StoredBatch) -> None:
        """Does what a cancel asks for."""
        store.cancel(batch.id)

    def suffices(self, batch: StoredBatch) -> bool:
        """A batch need not be computed any further."""
        del batch
        return False

    def holds(self, batch: StoredBatch) -> bool:
        """A batch that is computed must not end yet."""
        del batch
        return False

    def results(
        self, store: BatchStore, batch: StoredBatch, stopping: Callable[[], bool]
    ) -> Results | None:
        """The output of a batch that was computed; None when there is nothing to fetch."""
        if batch.rows_done == 0:
            return None
        return Results(result_lines(store, batch, stopping))

    # What is shown

    def shown(self, batch: StoredBatch) -> ShownBatch:
        """A batch as callers see it."""
        return shown_batch(batch)

    def hides(self, batch: StoredBatch) -> bool:
        """The list leaves a batch out."""
        del batch
        return False

    def operation(
        self, batch: ShownBatch, shown: dict[str, Any], *, listed: bool
    ) -> dict[str, Any]:
        """The Operation of a batch."""
        del batch, listed
        return shown

    def metadata(self, batch: ShownBatch, shown: dict[str, Any], *, listed: bool) -> dict[str, Any]:
        """The EmbedContentBatch of a batch, without its output."""
        del batch, listed
        return shown

    def batch_page(self, shown: dict[str, Any], size: int) -> dict[str, Any]:
        """A page of the list of batches, of `size` at most."""
        del size
        return shown

    # Files

    def uploaded(self, file: ShownFile) -> None:
        """A file is there."""

    def file(self, file: ShownFile, shown: dict[str, Any]) -> dict[str, Any]:
        """The File of an uploaded file."""
        del file
        return shown

    def result_file(self, batch: ShownBatch) -> None:
        """A result file is asked for. May raise `ApiError`."""

    def wanted_range(self, batch: ShownBatch, wanted: str | None) -> str | None:
        """The Range that a download of results follows."""
        del batch
        return wanted
