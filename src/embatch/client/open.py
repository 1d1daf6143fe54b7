"""From settings and arguments to the clouds that a client talks to."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from embatch.client.auth import (
    Authorization,
    GoogleAuthorization,
    KeyAuthorization,
    NoAuthorization,
)
from embatch.client.calls import Calls
from embatch.client.cloud import Cloud
from embatch.client.gemini import Gemini
from embatch.client.retry import RetryPolicy
from embatch.client.vertex import Vertex
from embatch.client.vertex_places import Places, vertex_base_url
from embatch.config import CloudSettings, Secret
from embatch.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

    from embatch.storage.objects import ObjectStorage

GEMINI_URL: Final = "https://generativelanguage.googleapis.com"
GEMINI_VERSION: Final = "v1beta"
VERTEX_VERSION: Final = "v1beta1"
DEFAULT_MODEL: Final = "gemini-embedding-001"
DEFAULT_WAIT_S: Final = 600.0
"""Seconds that await_batch_completion waits when nothing else is asked."""
VERTEX_LOCATION: Final = "us-central1"
_NO_CREDENTIALS: Final = (
    "no credentials: set GOOGLE_API_KEY (or GEMINI_API_KEY) for the Gemini API; or "
    "GOOGLE_GENAI_USE_VERTEXAI=true, GOOGLE_CLOUD_PROJECT and GOOGLE_CLOUD_LOCATION for Vertex AI; "
    "or GOOGLE_GEMINI_BASE_URL for a server of your own"
)


class Auth(StrEnum):
    """The two clouds, by how they ask who is calling."""

    GEMINI = "gemini"
    VERTEX_AI = "vertex_ai"


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """All that a client was told, arguments before environment."""

    settings: CloudSettings
    auth: Auth | None = None
    credentials: "Credentials | None" = field(default=None, repr=False)
    base_url: str | None = None
    api_version: str | None = None
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def default_auth(self) -> Auth:
        """The cloud that calls go to; ConfigError when nothing leads to one."""
        settings = self.settings
        if self.auth is not None:
            return self.auth
        if settings.use_vertex:
            return Auth.VERTEX_AI
        if settings.api_key is not None or self.base_url or settings.gemini_base_url:
            return Auth.GEMINI
        if self.credentials is not None or settings.project is not None:
            return Auth.VERTEX_AI
        raise ConfigError(_NO_CREDENTIALS)

    def first(self) -> dict[Auth, Cloud]:
        """The cloud that calls go to, opened; ConfigError when nothing leads to one."""
        wanted = self.default_auth()
        return {wanted: self.open(wanted)}

    def open(self, auth: Auth) -> Cloud:
        """One of the two clouds; ConfigError when something it needs is not set."""
        return self._gemini() if auth is Auth.GEMINI else self._vertex()

    def _base_url(self, auth: Auth, from_environment: str | None, default: str) -> str:
        # An argument belongs to the cloud that the client was opened for.
        own = self.base_url if auth is self.default_auth() else None
        return (own or from_environment or default).rstrip("/")

    def _gemini(self) -> Gemini:
        settings = self.settings
        base_url = self._base_url(Auth.GEMINI, settings.gemini_base_url, GEMINI_URL)
        authorization: Authorization
        if settings.api_key is not None:
            authorization = KeyAuthorization(settings.api_key)
        elif self.credentials is not None:
            authorization = GoogleAuthorization(self.credentials)
        elif base_url != GEMINI_URL:
            authorization = NoAuthorization()
        else:
            raise ConfigError(_NO_CREDENTIALS)
        return Gemini(
            calls=self._calls(base_url, authorization),
            version=self.api_version or settings.api_version or GEMINI_VERSION,
        )

    def _vertex(self) -> Vertex:
        settings = self.settings
        authorization, project = self._vertex_authorization()
        location = settings.location or (VERTEX_LOCATION if project else None)
        default = vertex_base_url(location or "global")
        base_url = self._base_url(Auth.VERTEX_AI, settings.vertex_base_url, default)
        return Vertex(
            calls=self._calls(base_url, authorization),
            places=Places(
                version=self.api_version or settings.api_version or VERTEX_VERSION,
                project=project,
                location=location,
                staging=settings.staging,
            ),
            open_storage=_StorageOnce(settings.storage_base_url, authorization),
        )

    def _vertex_authorization(self) -> tuple[Authorization, str | None]:
        """Given credentials, else a key where no project is named (express), else ADC."""
        settings = self.settings
        if self.credentials is not None:
            return GoogleAuthorization(self.credentials), settings.project
        if settings.api_key is not None and settings.project is None:
            return KeyAuthorization(settings.api_key), None
        found, project = GoogleAuthorization.default()
        if settings.project is None and project is None:
            raise ConfigError(
                "Vertex AI needs a project: set GOOGLE_CLOUD_PROJECT or give project="
            )
        return found, settings.project or project

    def _calls(self, base_url: str, authorization: Authorization) -> Calls:
        return Calls(
            base_url=base_url,
            authorization=authorization,
            policy=self.policy,
            jitter=self.jitter,
            clock=self.clock,
        )


class _StorageOnce:
    """Opens Cloud Storage when it is first needed."""

    def __init__(self, base_url: str | None, authorization: Authorization) -> None:
        self._base_url = base_url
        self._authorization = authorization
        self._storage: ObjectStorage | None = None

    def __call__(self) -> "ObjectStorage":
        if self._storage is None:
            try:
                from embatch.storage.stores import google_storage
            except ImportError:
                raise ConfigError(
                    "Cloud Storage needs obstore: pip install 'embatch[vertex]'"
                ) from None
            known = self._authorization
            tokens = known if isinstance(known, GoogleAuthorization) else None
            self._storage = google_storage(base_url=self._base_url, tokens=tokens)
        return self._storage


def opened(access: Access, clouds: dict[Auth, Cloud], auth: str | None) -> Cloud:
    """The cloud that a call goes to, opened once."""
    wanted = parse_auth(auth) or access.default_auth()
    if wanted not in clouds:
        clouds[wanted] = access.open(wanted)
    return clouds[wanted]


def parse_auth(auth: str | None) -> Auth | None:
    """The cloud that a word names."""
    if auth is None:
        return None
    try:
        return Auth(auth)
    except ValueError:
        raise InvalidRequestError("auth must be 'gemini' or 'vertex_ai'") from None


def build_access(
    *,
    auth: str | None,
    api_key: str | None,
    project: str | None,
    location: str | None,
    staging: str | None,
    credentials: "Credentials | None",
    base_url: str | None,
    api_version: str | None,
    storage_base_url: str | None,
    retry: RetryPolicy | None,
    settings: CloudSettings | None,
) -> Access:
    """What a client was told; what was not given comes from the environment."""
    known = settings if settings is not None else CloudSettings.from_environment()
    return Access(
        settings=replace(
            known,
            api_key=_checked_key(api_key) if api_key else known.api_key,
            project=project or known.project,
            location=location or known.location,
            staging=staging or known.staging,
            storage_base_url=storage_base_url or known.storage_base_url,
        ),
        auth=parse_auth(auth),
        credentials=credentials,
        base_url=base_url,
        api_version=api_version,
        policy=retry or RetryPolicy(),
    )


def _checked_key(key: str) -> Secret:
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError("the API key holds white space or characters that no key has: check it")
    return Secret(key)
