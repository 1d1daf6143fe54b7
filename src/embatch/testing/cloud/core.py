"""What the routes of the fake cloud share: settings, state, access, and faults at the door."""

import hmac
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embatch.testing.cloud.answers import Answer, ApiError, Request
from embatch.testing.cloud.bill import Ledger
from embatch.testing.cloud.board import FaultBoard
from embatch.testing.cloud.clock import CloudClock
from embatch.testing.cloud.doors import server_error, strike_door
from embatch.testing.cloud.faults import Facts, Fault, FaultKind
from embatch.testing.cloud.models import CHARS_PER_TOKEN
from embatch.testing.cloud.store import Doc, Store
from embatch.testing.cloud.web import BreakConnectionError, Reshaped

if TYPE_CHECKING:
    from embatch.testing.cloud.jobs import Jobs

DEFAULT_API_KEY: Final = "fake-cloud-api-key"
DEFAULT_TOKEN: Final = "fake-cloud-access-token"  # noqa: S105 # opens nothing but the fake
VERSION: Final = r"/(?P<version>v1|v1beta|v1alpha|v1beta1)"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """How a fake cloud is set up."""

    api_key: str = DEFAULT_API_KEY
    access_token: str = DEFAULT_TOKEN
    """A bearer token that never runs out; `/token` issues others."""
    seed: int = 0
    job_duration_s: float = 0.05
    """Seconds of the clock from a job's creation to its end."""
    token_lifetime_s: int = 3600
    """Seconds of the clock for which `/token` issues access tokens."""
    manual_clock: bool = False
    """The clock stands until it is moved."""
    bytes_per_token: int = CHARS_PER_TOKEN
    """UTF-8 bytes that the tokenizer makes one token of; 1 is the densest."""


Endpoint = Callable[["Core", Request], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the cloud's surface."""

    method: str
    pattern: re.Pattern[str]
    label: str
    """What the bill and the faults call it: "batches.create"."""
    endpoint: Endpoint
    api: str
    """ "gemini", "vertex", "storage", "oauth" or "control"."""
    keyless: bool = False
    """Open without credentials (an upload's own URL, the token and control routes)."""
    reads_first: bool = False
    """The endpoint itself calls `strike_before`, once it knows the body."""


def route(method: str, path: str, label: str, endpoint: Endpoint, api: str, **more: bool) -> Route:
    """A route for a path in which `{name}` catches a segment and `{name*}` the rest."""
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", path)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/:]+)", pattern)
    return Route(method, re.compile(pattern + "$"), label, endpoint, api, **more)


@dataclass(slots=True)
class Door:
    """What is known of a request while it is served."""

    facts: Facts = field(default_factory=dict)
    late: list[Fault] = field(default_factory=list)
    """Faults that strike after the effect."""


class Core:
    """The cloud without its socket: every request comes to `answer`."""

    jobs: "Jobs"
    publish: Callable[[Doc], None]
    """Called with each job whose results are written, before it is seen to have ended."""

    def __init__(self, folder: Path, settings: CloudSettings, routes: Sequence[Route]) -> None:
        self.settings = settings
        self.store = Store(folder)
        saved = self.store.get("clock", "clock") or {}
        self.clock = CloudClock(
            manual=settings.manual_clock, offset_s=float(saved.get("offset_s", 0.0))
        )
        self.board = FaultBoard(self.store, self.clock, settings.seed)
        self.ledger = Ledger(self.store)
        self.stopping = threading.Event()
        self.lock = threading.RLock()
        self._routes = routes
        self._doors = threading.local()
        self._locks: dict[str, threading.Lock] = {}
        self.url = ""

    @property
    def door(self) -> Door:
        """The door of the request that this thread serves."""
        door: Door = self._doors.door
        return door

    def answer(self, request: Request, spoiled: Reshaped) -> Answer:
        """Serves one request."""
        found = self._find(request)
        self._doors.door = Door(
            {
                "route": found.label,
                "api": found.api,
                "method": request.method,
                "path": request.path,
                **request.names,
            }
        )
        if found.api == "control":
            return found.endpoint(self, request)
        try:
            if not found.reads_first:
                self.strike_before()
            if not found.keyless:
                self.authorise(request)
            answer = found.endpoint(self, request)
            self._strike_after(spoiled)
        except ApiError:
            self.store.count("refused", self.door.facts["route"])
            raise
        finally:
            self.store.count("request", self.door.facts["route"])
        if answer.status >= 400:
            self.store.count("refused", self.door.facts["route"])
        return answer

    def _find(self, request: Request) -> Route:
        for candidate in self._routes:
            if candidate.method != request.method:
                continue
            caught = candidate.pattern.match(request.path)
            if caught:
                request.names = {k: v for k, v in caught.groupdict().items() if v is not None}
                return candidate
        self.store.count("request", "unknown")
        raise ApiError(404, f"No method {request.method} at this path.")

    def lock_of(self, name: str) -> threading.Lock:
        """The one lock for a named thing, such as an upload."""
        with self.lock:
            return self._locks.setdefault(name, threading.Lock())

    def relabel(self, label: str) -> None:
        """Names the route anew, where the headers decide what it is."""
        self.door.facts["route"] = label

    def strike_before(self) -> None:
        """Lets faults strike that stand between the request and its effect."""
        struck = strike_door(self.board, self.door.facts)
        self.door.late += struck.late
        if struck.wait_s:
            self.stopping.wait(struck.wait_s)
        if struck.reset:
            raise BreakConnectionError
        if struck.error is not None:
            raise struck.error

    def _strike_after(self, spoiled: Reshaped) -> None:
        door = self.door
        for fault in door.late:
            if fault.kind == FaultKind.DELAY:
                self.stopping.wait(fault.arg("seconds"))
            else:
                raise server_error(fault)
        if self.board.strike(FaultKind.RESET_AFTER, door.facts):
            raise BreakConnectionError
        spoiled.trickle = self.board.strike(FaultKind.TRICKLE, door.facts)
        spoiled.truncate = self.board.strike(FaultKind.TRUNCATE, door.facts)

    def authorise(self, request: Request) -> None:
        """Lets the request in, or raises the ApiError for its credentials."""
        api = self.door.facts["api"]
        bearer = request.headers.get("Authorization", "")
        if bearer.startswith("Bearer "):
            if not self.knows_token(bearer[7:].strip()):
                raise ApiError(
                    401,
                    "Request had invalid authentication credentials. Expected OAuth 2 access"
                    " token, login cookie or other valid authentication credential.",
                )
            return
        key = request.headers.get("x-goog-api-key") or request.query.get("key")
        # Keys open the Gemini API and Vertex's express mode, which names no project.
        if key is None or api == "storage" or "project" in request.names:
            code = 403 if api == "gemini" else 401
            raise ApiError(code, "Method doesn't allow unregistered callers.")
        if not hmac.compare_digest(key.encode(), self.settings.api_key.encode()):
            raise _invalid_key()

    def knows_token(self, token: str) -> bool:
        """The bearer token is the fixed one, or was issued and has not run out."""
        if hmac.compare_digest(token.encode(), self.settings.access_token.encode()):
            return True
        issued = self.store.get("token", token)
        return issued is not None and issued["expires_s"] > self.clock.now()

    def issue_token(self, lifetime_s: int) -> str:
        """A fresh bearer token."""
        token = "fake." + secrets.token_hex(16)
        self.store.put("token", token, {"expires_s": self.clock.now() + lifetime_s})
        return token

    def advance(self, seconds: float) -> None:
        """Moves the clock and brings every job that is due to its end."""
        self.clock.advance(seconds)
        self.store.put("clock", "clock", {"offset_s": self.clock.offset_s})
        self.jobs.settle_due()


def _invalid_key() -> ApiError:
    details: list[dict[str, Any]] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
            "domain": "googleapis.com",
            "metadata": {"service": "generativelanguage.googleapis.com"},
        },
        {
            "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
            "locale": "en-US",
            "message": "API key not valid. Please pass a valid API key.",
        },
    ]
    return ApiError(400, "API key not valid. Please pass a valid API key.", details=details)
