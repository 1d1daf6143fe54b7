"""Bytes of an upload on their way to the disk."""

from types import TracebackType
from typing import BinaryIO, Final

import anyio
from anyio import to_thread

from embatch.server.wire import ApiError

UPLOAD_STATUS: Final = "x-goog-upload-status"
_WRITE_BYTES: Final = 1 << 20


class Sink:
    """Gathers pieces and writes them in a thread, so that few hops are made."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._gathered = bytearray()

    async def write(self, piece: bytes) -> None:
        """Takes a piece; it may be on the disk later."""
        self._gathered += piece
        if len(self._gathered) >= _WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Writes what is gathered."""
        if self._gathered:
            data, self._gathered = bytes(self._gathered), bytearray()
            await to_thread.run_sync(_write_all, self._file, data)


def _write_all(file: BinaryIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


class SoleWriter:
    """Holds an upload for one request at a time; the newest one stops the one before.

    A client whose connection broke comes back on a new one while the server still waits for more
    on the old one: the old request ends with 409.
    """

    def __init__(self, writers: "dict[str, SoleWriter]", upload_id: str) -> None:
        self._writers = writers
        self._upload_id = upload_id
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()

    async def take_away(self) -> None:
        """Stops the request and waits until it has ended."""
        self._scope.cancel()
        await self._ended.wait()

    async def __aenter__(self) -> None:
        while (former := self._writers.get(self._upload_id)) is not None:
            await former.take_away()
        self._writers[self._upload_id] = self
        self._scope.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        stopped = False
        try:
            stopped = bool(self._scope.__exit__(kind, error, trace))
        finally:
            del self._writers[self._upload_id]
            self._ended.set()
        if stopped:
            raise ApiError(
                409,
                "Another request goes on with this upload.",
                status="ABORTED",
                headers={UPLOAD_STATUS: "active", "Connection": "close"},
            )
