"""The dashboard's pages: each reads the journal in a thread and is drawn as HTML or as JSON."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import anyio
import orjson
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response

from embatch import __version__
from embatch.dashboard.batch_page import read_batch
from embatch.dashboard.live import Live
from embatch.dashboard.machines import ask_provider, read_workers, unasked
from embatch.dashboard.rendering import render
from embatch.dashboard.rows import read_runs
from embatch.dashboard.run_page import read_run
from embatch.dashboard.security import Sessions, is_https
from embatch.dashboard.settings import DashboardSettings
from embatch.dashboard.views import ErrorPage, Frame, View
from embatch.errors import InvalidRequestError
from embatch.hooks import Hooks
from embatch.journal.store import Journal
from embatch.types.state import RunState

FRESH_S: Final = 0.3
"""A page that was read so lately is given to the next browser as it is, while nothing that it
shows was announced since, …"""
FRESH_FACTOR: Final = 3.0
"""… or for so many times longer than its reading took: a page that nothing changes takes no more
than a quarter of a core, however many look at it."""
ASKED_FRESH_S: Final = 5.0
"""The same for a provider's list."""
KEPT_PAGES: Final = 64
READERS: Final = 6
"""Threads that read the journal."""
ASKERS: Final = 2
"""Threads that ask a provider."""
ASK_MOST_S: Final = 30.0
"""A provider that has not answered by then is said not to."""
_LONGEST_SEARCH: Final = 200
_NO_STORE: Final = {"Cache-Control": "no-store", "Vary": "Accept, Cookie"}


class Pages:
    """Reads and draws pages. Every call of a page may be repeated."""

    def __init__(
        self,
        settings: DashboardSettings,
        journal: Journal,
        hooks: Hooks,
        sessions: Sessions,
        live: Live,
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._hooks = hooks
        self._sessions = sessions
        self._live = live
        self._memo = Memo()
        self._readers = CapacityLimiter(READERS)
        self._askers = CapacityLimiter(ASKERS)

    async def runs(self, request: Request) -> Response:
        """Every run: `/`."""
        query = request.query_params
        state = query.get("state") or None
        if state is not None and state not in set(RunState):
            raise InvalidRequestError(f"no state {state!r}: there are {', '.join(RunState)}")
        tag, search = query.get("tag") or None, (query.get("q") or "").strip() or None
        if tag is not None and not all(tag.partition("=")):
            raise InvalidRequestError(f"{tag!r} is no tag: write it as key=value")
        if search is not None and len(search) > _LONGEST_SEARCH:
            raise InvalidRequestError(f"search for no more than {_LONGEST_SEARCH} characters")
        number = _whole(query.get("page"), "page") or 1
        key = ("runs", state, tag, search, number)
        read = partial(read_runs, self._journal, state=state, tag=tag, search=search, page=number)
        page, seq = await self._read(key, read)
        return await self._answer(request, "runs", page, seq=seq)

    async def run(self, request: Request) -> Response:
        """One run: `/runs/ID`."""
        run_id, before = request.path_params["run"], self._before(request)
        read = partial(read_run, self._journal, run_id, before=before)
        page, seq = await self._read(("run", run_id, before), read, run=run_id)
        return await self._answer(request, "run", page, seq=seq)

    async def batch(self, request: Request) -> Response:
        """One batch: `/runs/ID/batches/NUMBER`."""
        run_id, number = request.path_params["run"], request.path_params["number"]
        before = self._before(request)
        read = partial(read_batch, self._journal, run_id, number, before=before)
        key = ("batch", run_id, number, before)
        page, seq = await self._read(key, read, run=run_id)
        return await self._answer(request, "batch", page, seq=seq)

    async def workers(self, request: Request) -> Response:
        """Who takes steps: `/workers`."""
        read = partial(read_workers, self._journal)
        page, seq = await self._read(("workers",), read)
        return await self._answer(request, "workers", page, seq=seq)

    async def provider(self, request: Request) -> Response:
        """What lies at a provider: `/provider?provider=NAME`, asked only where one is named."""
        name, now = request.query_params.get("provider") or None, self._hooks.clock()
        if name is None:
            return await self._answer(request, "provider", unasked(now=now))
        ask = partial(ask_provider, self._settings.base, self._journal, self._hooks, name)
        page: View | None = None
        with anyio.move_on_after(ASK_MOST_S):
            page, _ = await to_thread.run_sync(
                partial(self._memo.get, ("provider", name), ask, ASKED_FRESH_S),
                abandon_on_cancel=True,
                limiter=self._askers,
            )
        if page is None:
            late = f"{name} has not answered within {ASK_MOST_S:.0f} s: try again later"
            page = unasked(late, name, now=now)
        return await self._answer(request, "provider", page)

    async def show(self, request: Request, here: str, page: View, *, status: int = 200) -> Response:
        """Draws a page, as HTML or as JSON, whatever it is about."""
        return await self._answer(request, here, page, status=status)

    async def error(self, request: Request, status: int, title: str, words: str) -> Response:
        """An answer that is no page."""
        page = ErrorPage(status=status, title=title, words=words)
        return await self._answer(request, "error", page, status=status)

    async def _read(
        self, key: Hashable, read: Callable[..., View], *, run: str | None = None
    ) -> tuple[View, int]:
        """The page, and the number of the last change that was announced before it was read."""
        live = self._live

        def fresh() -> View:
            return read(now=self._hooks.clock())

        get = partial(
            self._memo.get,
            key,
            fresh,
            FRESH_S,
            seq=lambda: live.seq,
            is_new=lambda seq: live.is_new(seq, run),
        )
        return await to_thread.run_sync(get, limiter=self._readers)

    async def _answer(
        self, request: Request, here: str, page: View, *, status: int = 200, seq: int | None = None
    ) -> Response:
        if wants_json(request):
            values = (
                {"error": page.words, "status": status} if isinstance(page, ErrorPage) else None
            )
            body = orjson.dumps(values or page.to_json(), default=str)
            return Response(body, status, _NO_STORE, media_type="application/json")
        session = self._sessions.of(request)
        fresh = session is None
        session = session or self._sessions.begin(signed_in=False)
        since = self._live.id_of(self._live.seq if seq is None else seq)
        frame = self._frame(request, here, page, session, since)
        text = await to_thread.run_sync(partial(render, page, frame), limiter=self._readers)
        answer = Response(text, status, _NO_STORE, media_type="text/html")
        if fresh:
            set_session(answer, request, self._sessions, session)
        return answer

    def _frame(self, request: Request, here: str, page: View, session: str, since: str) -> Frame:
        path = request.url.path
        if request.url.query:
            path += f"?{request.url.query}"
        return Frame(
            now=getattr(page, "now", None) or self._hooks.clock(),
            version=__version__,
            journal=safe_address(self._settings.base.journal),
            read_only=self._settings.read_only,
            csrf=self._sessions.csrf(session),
            path=path,
            here=here,
            since=since,
            fragment=request.headers.get("x-fragment") == "1",
            signed_in=self._sessions.is_open(session),
            notice=self._settings.notices.take(session, request.query_params.get("done")),
        )

    @staticmethod
    def _before(request: Request) -> int | None:
        return _whole(request.query_params.get("before"), "before")


class Memo:
    """Pages that were read a moment ago. One reading serves all who ask for it meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()

    def get(
        self,
        key: Hashable,
        read: Callable[[], View],
        fresh_s: float,
        *,
        seq: Callable[[], int] = lambda: 0,
        is_new: Callable[[int], bool] = lambda _: True,
    ) -> tuple[View, int]:
        """The page under `key`, and what `seq` gave before it was read.

        It is read anew where it is older than `fresh_s` seconds, or no longer `is_new`.
        """
        with self._lock:
            slot = self._slots.get(key)
            if slot is None:
                slot = self._slots[key] = _Slot()
            self._slots.move_to_end(key)
            while len(self._slots) > KEPT_PAGES:
                self._slots.popitem(last=False)
        with slot.lock:
            begun = time.monotonic()
            if slot.page is None or begun > slot.fresh_until or not is_new(slot.seq):
                number = seq()
                slot.page = read()
                slot.seq = number
                read_at = time.monotonic()
                slot.fresh_until = read_at + max(fresh_s, FRESH_FACTOR * (read_at - begun))
            return slot.page, slot.seq


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.page: View | None = None
        self.seq = 0
        self.fresh_until = 0.0


def wants_json(request: Request) -> bool:
    """The page's JSON twin is asked for: by its name, or by the header."""
    if request.url.path.endswith(".json"):
        return True
    accept = request.headers.get("accept", "")
    return "application/json" in accept and "text/html" not in accept


def set_session(answer: Response, request: Request, sessions: Sessions, session: str) -> None:
    """Gives the browser its session. No script can read it, no other site can use it."""
    answer.set_cookie(
        sessions.cookie,
        session,
        httponly=True,
        samesite="strict",
        secure=is_https(request),
        path="/",
    )


def safe_address(url: str) -> str:
    """Where a journal is: a file, or server and database, without user, password and options."""
    if url.startswith("sqlite"):
        return url.partition("///")[2] or url
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme.partition('+')[0]}://{parts.hostname or ''}{port}{parts.path}"


def _whole(value: str | None, name: str) -> int | None:
    """A positive number of the query; InvalidRequestError for anything else."""
    if value is None or value == "":
        return None
    if not (value.isascii() and value.isdecimal() and len(value) < 16 and int(value) > 0):
        raise InvalidRequestError(f"{name}={value[:40]!r}: give a whole number from 1 on")
    return int(value)
