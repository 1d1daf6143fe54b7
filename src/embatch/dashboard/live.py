"""News of the journal for all open pages: one look at it for every browser, small messages.

A message is `event: changed` with `{"runs": […], "workers": …, "all": …, "seq": …}`: what to read
again, never what it says now. A browser that falls behind gets one message for all that it missed.
Its id holds the process and the number of the change, so that a browser that comes back is told
what it missed, or, where that is not known, that anything may have changed.
"""

import asyncio
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Final

from anyio import to_thread
from sse_starlette import ServerSentEvent

from embatch.errors import EmbatchError
from embatch.journal.store import Journal

log = logging.getLogger("embatch.dashboard")

LOOK_S: Final = 0.4
"""Seconds between two looks at the journal, while a page is open."""
TROUBLED_LOOK_S: Final = 5.0
"""The same while the journal cannot be read."""
BEAT_S: Final = 15.0
"""A stream says at least every so many seconds that it lives."""
APART_S: Final = 0.25
"""Seconds between two messages to one browser."""
AGES_S: Final = 10.0
"""Runs that have not ended are announced so often, in seconds: that nobody works on one any more
is written nowhere."""
MOST_CLIENTS: Final = 500
KEPT: Final = 2_000
"""Changed runs that are remembered for browsers that come back."""
NAMED: Final = 100
"""Runs that a message names; when there are more it says `all`."""
_WORKERS: Final = ""
_ALL: Final = "*"


class Live:
    """The news of one journal. For one event loop."""

    def __init__(self, journal: Journal) -> None:
        self._watch = journal.watch()
        self._boot = secrets.token_hex(4)
        self._seq = 0
        self._latest: OrderedDict[str, int] = OrderedDict()
        """What changed, the latest last: each once, with the number of its last change."""
        self._floor = 0
        """Changes up to this number are forgotten."""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self.clients = 0
        self._looked = self._begin()

    @property
    def seq(self) -> int:
        """The number of the latest change that was announced. Safe to read from any thread."""
        return self._seq

    def id_of(self, seq: int) -> str:
        """The id of a message that told of all changes up to a number: a stream begins after it."""
        return f"{self._boot}-{seq}"

    def is_new(self, seq: int, name: str | None) -> bool:
        """What was read after change `seq` is not outdated by an announcement; where a run is
        named, by one of that run. Safe from any thread."""
        if name is None:
            return seq == self._seq
        if seq < self._floor:
            return False
        return all(self._latest.get(one, 0) <= seq for one in (name, _ALL))

    @property
    def full(self) -> bool:
        """No further stream is given."""
        return self.clients >= MOST_CLIENTS

    def enter(self) -> bool:
        """Counts one more browser, at once; False where there are as many as may be. `leave` it."""
        if self.full:
            return False
        self.clients += 1
        return True

    def leave(self) -> None:
        """Counts one browser less."""
        self.clients -= 1

    def stop(self) -> None:
        """Ends every stream."""
        self._stopped = True
        self._news.set()

    async def stream(
        self, *, run: str | None, last_id: str | None
    ) -> AsyncIterator[ServerSentEvent]:
        """The messages for one browser, which has entered; those about `run` alone, where given."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look_on())
        mine = self._resumed(last_id)
        yield ServerSentEvent(event="beat", data="{}", retry=2000)
        while not self._stopped:
            await self._wait(run, mine)
            message, mine = self._message(run, mine)
            yield message or ServerSentEvent(event="beat", data="{}")
            if message is not None:
                await asyncio.sleep(APART_S)

    def announce(self, *names: str) -> None:
        """Has the pages of these runs read again."""
        self._seq += 1
        for name in names:
            self._latest[name] = self._seq
            self._latest.move_to_end(name)
        while len(self._latest) > KEPT:
            oldest = next(iter(self._latest))
            self._floor = self._latest[oldest]
            del self._latest[oldest]
        self._news.set()
        self._news = asyncio.Event()

    def _resumed(self, last_id: str | None) -> int:
        """The number of the last change that the browser knows of; -1: it knows of none."""
        if not last_id:
            return self._seq
        boot, _, number = last_id.partition("-")
        if boot != self._boot or not number.isdecimal() or int(number) < self._floor:
            return -1
        return min(int(number), self._seq)

    def _changed(self, run: str | None, mine: int) -> list[str]:
        if mine < 0:
            return [_ALL]
        if run is not None:
            return [name for name in (run, _ALL) if self._latest.get(name, 0) > mine]
        found = []
        for name in reversed(self._latest):
            if self._latest[name] <= mine:
                break
            found.append(name)
        return found

    def _message(self, run: str | None, mine: int) -> tuple[ServerSentEvent | None, int]:
        changed = self._changed(run, mine)
        if not changed:
            return None, self._seq
        runs = [name for name in changed if name not in (_WORKERS, _ALL)]
        every = _ALL in changed or len(runs) > NAMED
        data = {
            "runs": [] if every else runs,
            "workers": _WORKERS in changed,
            "all": every,
            "seq": self._seq,
        }
        said = json.dumps(data, separators=(",", ":"))
        return ServerSentEvent(event="changed", data=said, id=self.id_of(self._seq)), self._seq

    async def _wait(self, run: str | None, mine: int) -> None:
        """Until there is something to say, or a beat is due."""
        loop = asyncio.get_running_loop()
        until = loop.time() + BEAT_S
        while not (self._stopped or self._changed(run, mine)):
            left = until - loop.time()
            if left <= 0:
                return
            try:
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                return

    def _begin(self) -> bool:
        """The first look, which tells nothing: pages are read after it."""
        try:
            self._watch.look()
        except EmbatchError:  # told when somebody listens
            return False
        return True

    async def _look_on(self) -> None:
        """Looks at the journal for as long as somebody listens."""
        loop = asyncio.get_running_loop()
        announced = loop.time()
        while self.clients and not self._stopped:
            wait_s = LOOK_S
            try:
                runs, overflow, workers = await to_thread.run_sync(self._watch.look)
            except EmbatchError as error:
                log.warning("the journal cannot be read now: %s", error)
                wait_s = TROUBLED_LOOK_S
            else:
                # What changed between the reading of a page and a late first look is not known.
                overflow |= not self._looked
                self._looked = True
                if loop.time() - announced > AGES_S:
                    announced = loop.time()
                    runs = runs.union(self._watch.open_runs)
                    workers = True
                names = [*runs, *([_ALL] if overflow else []), *([_WORKERS] if workers else [])]
                if names:
                    self.announce(*names)
            await asyncio.sleep(wait_s)
