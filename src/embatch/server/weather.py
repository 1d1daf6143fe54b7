"""Where bad days could enter: a server asks its weather at these points. Here it is always fair."""

from collections.abc import Iterator
from typing import Protocol

from embatch.service.batch import StoredBatch


class Weather(Protocol):
    """What may happen to calls and results on purpose, to try a pipeline."""

    async def before(self, call: str) -> None:
        """Before a call has any effect; `call` is its name, such as "batches.create".

        May wait, and may raise `ApiError` in place of an answer.
        """
        ...

    async def after(self, call: str) -> None:
        """After its effect, before its answer. May wait or raise as `before` does."""
        ...

    def results(self, batch: StoredBatch, lines: Iterator[bytes]) -> Iterator[bytes]:
        """The result lines of a batch that has ended, on their way to its output."""
        ...


class FairWeather:
    """Changes nothing."""

    async def before(self, call: str) -> None:
        """Nothing happens."""

    async def after(self, call: str) -> None:
        """Nothing happens."""

    def results(self, batch: StoredBatch, lines: Iterator[bytes]) -> Iterator[bytes]:  # noqa: ARG002 - the port's
        """The lines as they are."""
        return lines
