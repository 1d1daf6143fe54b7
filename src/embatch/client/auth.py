"""Who is calling: an API key, or Google credentials and the tokens they give."""

import hashlib
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from embatch.config import Secret
from embatch.errors import AuthenticationError, ConfigError, ProviderUnavailableError

if TYPE_CHECKING:
    from google.auth.credentials import Credentials

SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"


class NoAuthorization:
    """Nothing to prove: a server of one's own."""

    blocks = False
    mark = "open"

    def headers(self) -> Mapping[str, str]:
        """No headers."""
        return {}

    def prepare(self) -> None:
        """Nothing to get."""

    def renew(self) -> bool:
        """There is nothing newer."""
        return False


class KeyAuthorization:
    """An API key."""

    blocks = False

    def __init__(self, key: Secret) -> None:
        self._key = key

    @property
    def mark(self) -> str:
        """Eight hex characters that tell two keys apart and lead back to neither."""
        return hashlib.sha256(b"embatch" + self._key.reveal().encode()).hexdigest()[:8]

    def headers(self) -> Mapping[str, str]:
        """The key's header."""
        return {"x-goog-api-key": self._key.reveal()}

    def prepare(self) -> None:
        """A key is always there."""

    def renew(self) -> bool:
        """There is no newer key."""
        return False


class GoogleAuthorization:
    """Google credentials: application default ones, a service account, a user's login.

    `prepare` and `renew` may call a token service and block. Safe to use from several threads.
    """

    blocks = True
    mark = "google"

    def __init__(self, credentials: "Credentials", *, quota_project: str | None = None) -> None:
        self._credentials = _scoped(credentials)
        self._quota_project = quota_project or getattr(credentials, "quota_project_id", None)
        self._lock = threading.Lock()

    @classmethod
    def default(cls) -> tuple["GoogleAuthorization", str | None]:
        """The application default credentials and the project they name."""
        try:
            import google.auth
            from google.auth.exceptions import DefaultCredentialsError
        except ImportError:
            raise ConfigError(
                "Vertex AI needs google-auth: pip install 'embatch[vertex]'"
            ) from None
        try:
            credentials, project = google.auth.default(scopes=[SCOPE])
        except DefaultCredentialsError:
            raise ConfigError(
                "no Google credentials: run `gcloud auth application-default login`, or set "
                "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
            ) from None
        return cls(credentials), project

    def headers(self) -> Mapping[str, str]:
        """The token's header, and the project that pays where it is known."""
        headers = {"authorization": f"Bearer {self._credentials.token or ''}"}
        if self._quota_project:
            headers["x-goog-user-project"] = self._quota_project
        return headers

    def prepare(self) -> None:
        """Gets a token if there is none or it is about to end."""
        with self._lock:
            if not self._credentials.valid:
                self._refresh()

    def renew(self) -> bool:
        """Gets another token, after the service refused this one."""
        with self._lock:
            self._refresh()
        return True

    def token(self) -> tuple[str, datetime | None]:
        """The token and when it ends, for object storage."""
        self.prepare()
        expiry = self._credentials.expiry
        ends = expiry.replace(tzinfo=UTC) if expiry is not None else None
        return str(self._credentials.token), ends

    def _refresh(self) -> None:
        from google.auth import exceptions
        from google.auth.transport.requests import Request

        try:
            self._credentials.refresh(Request())  # type: ignore[no-untyped-call]
        except exceptions.TransportError:
            raise ProviderUnavailableError(
                "Google's token service gave no answer: try again later"
            ) from None
        except exceptions.GoogleAuthError:
            raise AuthenticationError(
                "the Google credentials give no token: log in again, or check the service "
                "account's key file"
            ) from None


def _scoped(credentials: "Credentials") -> "Credentials":
    """The credentials with the scope of the clouds, where they ask for one and have none.

    Service accounts get no token without: Google's token service answers "invalid_scope".
    """
    from google.auth.credentials import with_scopes_if_required

    return with_scopes_if_required(credentials, [SCOPE])  # type: ignore[no-any-return, no-untyped-call]


Authorization = NoAuthorization | KeyAuthorization | GoogleAuthorization
