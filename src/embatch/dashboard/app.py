"""The application: routes over one journal."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import parse_qsl, urlsplit

from anyio import CapacityLimiter, to_thread
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from embatch.dashboard.actions import BATCH_ACTIONS, RUN_ACTIONS, Actor, confirmation
from embatch.dashboard.facts import ActionName
from embatch.dashboard.live import Live
from embatch.dashboard.pages import Pages, set_session, wants_json
from embatch.dashboard.rows import need_run
from embatch.dashboard.security import Gate, Refusals, Sessions, is_own_form
from embatch.dashboard.settings import DashboardSettings
from embatch.dashboard.views import LoginPage
from embatch.errors import EmbatchError, InvalidRequestError, JournalError, NotFoundError
from embatch.hooks import Hooks
from embatch.journal.records import BatchRecord, RunRecord
from embatch.journal.store import Journal
from embatch.runs.measures import read_figures

log = logging.getLogger("embatch.dashboard")

Endpoint = Callable[[Request], Awaitable[Response]]
MOST_FORM_BYTES: Final = 16_384
SEND_S: Final = 20.0
"""A browser that takes nothing of its stream for so many seconds is dropped."""
STATIC_S: Final = 300
_WORDS: Final = {
    405: "This address takes no such call.",
    413: f"A form of this dashboard has no more than {MOST_FORM_BYTES:,} bytes. Nothing was done.",
}
_TITLES: Final[Mapping[int, str]] = {
    400: "That is not a page",
    401: "Sign in",
    403: "Not from here",
    404: "There is nothing here",
    405: "Not like that",
    409: "That could not be done",
    413: "Too much",
    429: "Too many tries",
    500: "Something broke",
    503: "Not now",
}


class Dashboard:
    """One dashboard. `app` is what a server runs; `live.stop()` ends its streams."""

    def __init__(
        self, settings: DashboardSettings, journal: Journal, hooks: Hooks | None = None
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._hooks = hooks or Hooks()
        self._sessions = Sessions(settings.token, cookie=f"embatch_dashboard_{settings.port}")
        self.live = Live(journal)
        self._pages = Pages(settings, journal, self._hooks, self._sessions, self.live)
        self._actor = Actor(settings.base, journal, self._hooks)
        self._acting = CapacityLimiter(4)
        refusals = Refusals(
            host=_asgi(self._refuse_host),
            token=_asgi(self._refuse_token),
            too_often=_asgi(self._refuse_often),
        )
        self.app: ASGIApp = Gate(self._routes(), self._sessions, refusals)

    def _routes(self) -> Starlette:
        pages = self._pages
        twins: list[tuple[str, Endpoint]] = [
            ("/runs/{run}/batches/{number:int}", pages.batch),
            ("/runs/{run}", pages.run),
            ("/runs", pages.runs),
            ("/workers", pages.workers),
            ("/provider", pages.provider),
        ]
        routes: list[Route | Mount] = [Route("/", self._told(pages.runs), methods=["GET"])]
        for path, endpoint in twins:
            routes.append(Route(f"{path}.json", self._told(endpoint), methods=["GET"]))
            routes.append(Route(path, self._told(endpoint), methods=["GET"]))
        act = self._told(self._act)
        routes += [
            Route("/runs/{run}/do/{action}", act, methods=["GET", "POST"]),
            Route("/runs/{run}/batches/{number:int}/do/{action}", act, methods=["GET", "POST"]),
            Route("/live", self._told(self._live), methods=["GET"]),
            Route("/metrics", self._told(self._metrics), methods=["GET"]),
            Route("/login", self._told(self._login), methods=["GET", "POST"]),
            Route("/logout", self._told(self._logout), methods=["POST"]),
            Route("/healthz", self._health, methods=["GET"]),
            Mount("/static", _Static(directory=Path(__file__).with_name("static"))),
        ]
        handlers = {HTTPException: self._unrouted}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.router.redirect_slashes = False
        return app

    def _told(self, endpoint: Endpoint) -> Endpoint:
        """Every failure of a page is an answer."""

        async def told(request: Request) -> Response:
            try:
                return await endpoint(request)
            except (ClientDisconnect, HTTPException):
                raise
            except Exception as error:  # noqa: BLE001 - the outer edge of a request: told and logged
                return await self._failed(request, error)

        return told

    async def _failed(self, request: Request, error: Exception) -> Response:
        match error:
            case NotFoundError():
                status = 404
            case InvalidRequestError():
                status = 400
            case JournalError():
                status = 503
                log.warning("the journal cannot be read: %s", error)
            case _:
                # What foreign errors say may hold anything: their names and frames are logged.
                log.error("a page broke", exc_info=error)
                said = "The page could not be made; the dashboard's log says where it broke."
                return await self._pages.error(request, 500, _TITLES[500], said)
        return await self._pages.error(request, status, _TITLES[status], str(error))

    async def _unrouted(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        title = _TITLES.get(status, _TITLES[404])
        words = _WORDS.get(status, "There is no page at this address.")
        answer = await self._pages.error(request, status, title, words)
        answer.headers.update(headers)
        return answer

    # Looking

    async def _live(self, request: Request) -> Response:
        if not self.live.enter():
            words = "Too many pages are open: this one shows no news until others are closed."
            return await self._pages.error(request, 503, _TITLES[503], words)
        return _Stream(
            self.live.stream(
                run=request.query_params.get("run") or None,
                last_id=request.headers.get("last-event-id") or request.query_params.get("since"),
            ),
            ping=0,
            send_timeout=SEND_S,
            leave=self.live.leave,
        )

    async def _metrics(self, request: Request) -> Response:  # noqa: ARG002 - every endpoint's form
        from embatch.observe.metrics import render

        def page() -> tuple[bytes, str]:
            return render(lambda: read_figures(self._journal, now=time.time()))

        body, media_type = await to_thread.run_sync(page)
        return Response(body, headers={"Content-Type": media_type})

    async def _health(self, _: Request) -> Response:
        return Response("ok\n", media_type="text/plain")

    # Acting

    async def _act(self, request: Request) -> Response:
        name = request.path_params["action"]
        if name not in (*RUN_ACTIONS, *BATCH_ACTIONS):
            raise NotFoundError(f"no action {name!r}")
        action = cast(ActionName, name)
        if self._settings.read_only:
            words = "This dashboard is read-only: it was started with --read-only."
            return await self._pages.error(request, 403, "Read-only", words)
        run, batch = await to_thread.run_sync(lambda: self._subject(request))
        if request.method != "POST":
            return await self._confirm(request, action, run, batch)
        form = await _form(request)
        if not is_own_form(request, self._sessions, form.get("csrf", "")):
            words = (
                "This form was not posted by a page of this dashboard, or the dashboard was "
                "started again since: open the page again and repeat it. Nothing was done."
            )
            return await self._pages.error(request, 403, _TITLES[403], words)
        try:
            said = await to_thread.run_sync(
                lambda: self._actor.act(action, run, batch, form), limiter=self._acting
            )
        except EmbatchError as error:
            return await self._confirm(request, action, run, batch, refused=error)
        log.info("asked for by the dashboard: %s of run %s", action, run.id)
        self.live.announce(run.id)
        if wants_json(request):
            return Response(status_code=204)
        back = f"/runs/{run.id}" + ("" if batch is None else f"/batches/{batch.number}")
        ticket = self._settings.notices.leave(self._sessions.of(request) or "", said)
        return RedirectResponse(f"{back}?done={ticket}", 303)

    def _subject(self, request: Request) -> tuple[RunRecord, BatchRecord | None]:
        run = need_run(self._journal, request.path_params["run"])
        number = request.path_params.get("number")
        return run, None if number is None else self._journal.batches.numbered(run.id, number)

    async def _confirm(
        self,
        request: Request,
        action: ActionName,
        run: RunRecord,
        batch: BatchRecord | None,
        *,
        refused: EmbatchError | None = None,
    ) -> Response:
        ask = partial(
            confirmation,
            self._journal,
            action,
            run,
            batch,
            now=self._hooks.clock(),
            error=None if refused is None else str(refused),
        )
        try:
            page = await to_thread.run_sync(ask)
        except InvalidRequestError as error:
            return await self._pages.error(request, 409, _TITLES[409], str(error))
        status = 200 if refused is None else 409
        return await self._pages.show(request, "confirm", page, status=status)

    # Coming in

    async def _login(self, request: Request) -> Response:
        if self._settings.token is None:
            return RedirectResponse("/", 303)
        if request.method != "POST":
            page = LoginPage(next=_inside(request.query_params.get("next")))
            return await self._pages.show(request, "login", page)
        form = await _form(request)
        address = request.client.host if request.client else ""
        onward = _inside(form.get("next"))
        verdict = await self._sessions.accepts(form.get("token", ""), address)
        if verdict:
            answer = RedirectResponse(onward, 303)
            session = self._sessions.begin(signed_in=True)
            set_session(answer, request, self._sessions, session)
            return answer
        log.warning("a wrong token was shown by %s", address)
        if verdict is None:
            return await self._refuse_often(request)
        page = LoginPage(next=onward, error="That is not the token.")
        return await self._pages.show(request, "login", page, status=401)

    async def _logout(self, request: Request) -> Response:
        form = await _form(request)
        if not is_own_form(request, self._sessions, form.get("csrf", "")):
            return await self._pages.error(request, 403, _TITLES[403], "Open the page again.")
        self._sessions.end(self._sessions.of(request))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self._sessions.cookie, path="/")
        return answer

    async def _refuse_host(self, request: Request) -> Response:
        words = (
            "This dashboard asks for no token, so it answers to 127.0.0.1, [::1] and localhost "
            "only, and the Host header names another. Start it with --token to reach it by a name."
        )
        return await self._pages.error(request, 403, _TITLES[403], words)

    async def _refuse_token(self, request: Request) -> Response:
        path = request.url.path
        page_like = request.method == "GET" and "text/html" in request.headers.get("accept", "")
        if wants_json(request) or not page_like or path in ("/live", "/metrics"):
            words = "show the dashboard's token: Authorization: Bearer TOKEN"
            answer = await self._pages.error(request, 401, _TITLES[401], words)
        else:
            onward = path + (f"?{request.url.query}" if request.url.query else "")
            page = LoginPage(next=_inside(onward))
            answer = await self._pages.show(request, "login", page, status=401)
        answer.headers["WWW-Authenticate"] = 'Bearer realm="embatch"'
        return answer

    async def _refuse_often(self, request: Request) -> Response:
        words = "Too many wrong tokens came from this address: wait some minutes."
        answer = await self._pages.error(request, 429, _TITLES[429], words)
        answer.headers["Retry-After"] = "300"
        return answer


class _Stream(EventSourceResponse):
    """The stream of one browser, counted from its request to its end."""

    def __init__(
        self, content: AsyncIterator[ServerSentEvent], *, leave: Callable[[], None], **how: Any
    ) -> None:
        super().__init__(content, **how)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the browser goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


class _Static(StaticFiles):
    """The page's own files: no secret, and the same for everybody."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = f"max-age={STATIC_S}"
        return answer


def _asgi(endpoint: Endpoint) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = await endpoint(Request(scope, receive))
        await answer(scope, receive, send)

    return app


async def _form(request: Request) -> dict[str, str]:
    """The fields that a form posted; 413 for more than a form of ours holds."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_FORM_BYTES:
            raise HTTPException(413)
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=20)
    except ValueError:
        raise InvalidRequestError("the form cannot be read") from None
    return dict(fields)


def _inside(path: str | None) -> str:
    """A path of this dashboard to go on to; the first page for anything else."""
    if not path or not path.startswith("/") or path.startswith(("//", "/\\", "/login", "/logout")):
        return "/"
    parts = urlsplit(path)
    return path if not (parts.scheme or parts.netloc) and path.isprintable() else "/"
