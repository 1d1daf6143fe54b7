"""Answers whose way back is spoiled: they come slowly, or break off."""

import asyncio

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from embatch.server.simulation.connection import BreakableConnection
from embatch.testing.cloud.faults import Fault


class _CutError(Exception):
    """The answer ends here."""


class ShapedResponse(Response):
    """Sends another answer, in small pieces or not to its end."""

    def __init__(
        self,
        answer: Response,
        line: BreakableConnection,
        *,
        trickle: Fault | None,
        truncate: Fault | None,
    ) -> None:
        self.status_code = answer.status_code
        self.raw_headers = answer.raw_headers
        self.background = None
        self.body = b""
        self._answer = answer
        self._line = line
        self._trickle = trickle
        self._truncate = truncate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        left = int(self._truncate.arg("at_byte")) if self._truncate else 0

        async def shaped(message: Message) -> None:
            nonlocal left
            body = message.get("body", b"")
            if self._truncate is not None and len(body) > left:
                await send({**message, "body": body[:left], "more_body": True})
                raise _CutError
            left -= len(body)
            if self._trickle is None or not body:
                await send(message)
            else:
                await self._send_slowly(message, body, self._trickle, send)

        try:
            await self._answer(scope, receive, shaped)
        except _CutError:
            if self._truncate is not None and self._truncate.arg("reset"):
                await self._line.reset()
            else:
                await self._line.hang_up()

    async def _send_slowly(self, message: Message, body: bytes, fault: Fault, send: Send) -> None:
        size = max(1, int(fault.arg("bytes")))
        for at in range(0, len(body), size):
            if self._line.gone:
                raise _CutError
            await send({**message, "body": body[at : at + size], "more_body": True})
            await asyncio.sleep(fault.arg("pause_s"))
        if not message.get("more_body", False):
            await send({**message, "body": b""})
