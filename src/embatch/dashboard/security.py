"""Who may look and who may act: hosts, the token, sessions, forms of one's own, and headers.

Without a token the dashboard listens on loopback alone and answers only to names of loopback, so
that no page of another site reaches it through a name that leads here. With one, every answer but
the login page and its files asks for it: a cookie made by the login, or a bearer token.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embatch.config import Secret
from embatch.errors import ConfigError

LEAST_TOKEN: Final = 16
"""Characters of a token: it is all that keeps others out."""
SESSION_S: Final = 7 * 24 * 3600.0
MOST_SESSIONS: Final = 1_000
GUESSES: Final = 10
"""Wrong tokens of one address, after which further ones are not told to be wrong …"""
GUESSES_S: Final = 300.0
"""… until the first of them is so many seconds old, but refused."""
WRONG_S: Final = 0.5
"""Seconds that a wrong token waits for its answer."""
MOST_ADDRESSES: Final = 10_000
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; font-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every answer. With `no-referrer` browsers would hide the origin of forms, which is checked."""


def check_token(token: Secret | None) -> None:
    """ConfigError for a token that is too short, or that no header can carry."""
    if token is None:
        return
    word = token.reveal()
    if len(word) < LEAST_TOKEN:
        raise ConfigError(
            f"the dashboard's token has {len(word)} characters: give {LEAST_TOKEN} or more, like "
            "those of: python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    if not (word.isascii() and word.isprintable()) or " " in word:
        raise ConfigError("the dashboard's token may hold letters, digits and signs of ASCII only")


def is_loopback(host: str | None) -> bool:
    """The name or address leads to this machine and is reached from it alone."""
    if host is None:
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Sessions:
    """Who has shown the token, and what their forms must bear."""

    def __init__(self, token: Secret | None, *, cookie: str) -> None:
        self.token = token
        self.cookie = cookie
        """Name of the cookie: of its port, as browsers tell ports not apart."""
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[str, float] = OrderedDict()
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()

    def of(self, request: Request) -> str | None:
        """The id of the browser's session, signed in or not."""
        return request.cookies.get(self.cookie) or None

    def is_open(self, session: str | None) -> bool:
        """The session's browser has shown the token."""
        until = self._known.get(session or "")
        return until is not None and until > time.monotonic()

    def begin(self, *, signed_in: bool) -> str:
        """A new session's id."""
        session = secrets.token_urlsafe(24)
        if signed_in:
            self._known[session] = time.monotonic() + SESSION_S
            while len(self._known) > MOST_SESSIONS:
                self._known.popitem(last=False)
        return session

    def end(self, session: str | None) -> None:
        """Signs a browser out."""
        self._known.pop(session or "", None)

    def csrf(self, session: str) -> str:
        """What the forms of a session bear, and no other site knows."""
        return hmac.new(self._key, session.encode(), hashlib.sha256).hexdigest()

    async def accepts(self, shown: str, address: str) -> bool | None:
        """The word is the token; None where it is not and this address has guessed too often.

        The token itself always opens: others behind the same address keep nobody out. Slow where
        it does not.
        """
        if self.token is None or _same(shown, self.token.reveal()):
            return True
        often = self._guessed(address) >= GUESSES
        if not often:
            self._wrong.setdefault(address, []).append(time.monotonic())
            while len(self._wrong) > MOST_ADDRESSES:
                self._wrong.popitem(last=False)
        await asyncio.sleep(WRONG_S)
        return None if often else False

    def _guessed(self, address: str) -> int:
        since = time.monotonic() - GUESSES_S
        late = [moment for moment in self._wrong.get(address, ()) if moment > since]
        if late:
            self._wrong[address] = late
        else:
            self._wrong.pop(address, None)
        return len(late)


def is_own_form(request: Request, sessions: Sessions, posted: str) -> bool:
    """A form was posted by a page of this dashboard, in the session that it was drawn for.

    A call that bears the token itself is no browser's doing, and needs no form.
    """
    if request.scope.get(BEARER):
        return True
    site = request.headers.get("sec-fetch-site")
    if site is not None and site != "same-origin":
        return False
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return False
    session = sessions.of(request)
    return session is not None and _same(posted, sessions.csrf(session))


BEARER: Final = "embatch.bearer"
"""In the scope: the call bears the token in its header."""
TOO_OFTEN: Final = "embatch.too_often"
_OPEN: Final = ("/login", "/healthz")


class Gate:
    """The outermost layer. `refuse` makes the answers for those who may not come in."""

    def __init__(self, app: ASGIApp, sessions: Sessions, refuse: "Refusals") -> None:
        self._app = app
        self._sessions = sessions
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request, or the lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    if name != "Cache-Control" or name not in headers:
                        headers[name] = value
            await send(message)

        app = await self._admitted(scope)
        await app(scope, receive, guarded)

    async def _admitted(self, scope: Scope) -> ASGIApp:
        headers = Headers(scope=scope)
        if self._sessions.token is None:
            return self._app if is_loopback(_host(headers)) else self._refuse.host
        path = str(scope["path"])
        if path in _OPEN or path.startswith("/static/"):
            return self._app
        kind, _, shown = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            client = scope.get("client")
            verdict = await self._sessions.accepts(shown.strip(), client[0] if client else "")
            if verdict is None:
                return self._refuse.too_often
            scope[BEARER] = verdict
            return self._app if verdict else self._refuse.token
        session = self._sessions.of(Request(scope))
        return self._app if self._sessions.is_open(session) else self._refuse.token


class Refusals:
    """Answers for those who may not come in."""

    def __init__(self, *, host: ASGIApp, token: ASGIApp, too_often: ASGIApp) -> None:
        self.host, self.token, self.too_often = host, token, too_often


def is_https(request: Request) -> bool:
    """The browser came by TLS: to here, or to a proxy on this machine, which says so."""
    near = is_loopback(request.client.host if request.client else None)
    said = request.headers.get("x-forwarded-proto") if near else None
    return "https" in (request.url.scheme, said)


def _host(headers: Headers) -> str | None:
    try:
        return urlsplit(f"//{headers.get('host', '')}").hostname
    except ValueError:
        return None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))
