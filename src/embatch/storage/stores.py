"""Opens the buckets of S3, Cloud Storage and Azure, with the credentials their own tools find."""

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from obstore.store import AzureStore, GCSStore, S3Store

if TYPE_CHECKING:
    from botocore.credentials import Credentials as AwsCredentials
    from google.auth.credentials import Credentials as GoogleCredentials
    from obstore.store import GCSCredential, S3Credential

    from embatch.storage.objects import Store

from embatch.config import StorageSettings
from embatch.errors import AuthenticationError, ConfigError, ProviderUnavailableError
from embatch.storage.objects import ObjectStorage

SILENCE: Final = timedelta(seconds=120)
"""Longest silence of the store that is taken for life."""
WHOLE: Final = timedelta(hours=6)
"""Longest single request, body included."""
RETRIES: Final = 6
AWS_TOKEN_LIFE: Final = timedelta(minutes=5)
"""After so long botocore is asked again; it renews what is about to end."""
_GOOGLE_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_INSTALL: Final = "pip install 'embatch[storage]'"


class TokenSource(Protocol):
    """Gives bearer tokens."""

    def token(self) -> tuple[str, datetime | None]:
        """A token and when it ends."""
        ...

    def renew(self) -> object:
        """Gets another token, after this one was refused."""
        ...


def google_storage(*, base_url: str | None, tokens: TokenSource | None) -> ObjectStorage:
    """Cloud Storage alone, with a token source of the caller's; None: nothing is signed."""
    return ObjectStorage(_GoogleStores(base_url, tokens))


def cloud_storage(settings: StorageSettings) -> ObjectStorage:
    """The stores of all clouds. Each cloud's credentials are looked for when it is first met."""
    return ObjectStorage(_CloudStores(settings))


def _retry() -> Any:
    return {"max_retries": RETRIES, "retry_timeout": WHOLE}


def _client(*, allow_http: bool) -> Any:
    return {"timeout": WHOLE, "read_timeout": SILENCE, "allow_http": allow_http}


class _GoogleStores:
    """Buckets of Cloud Storage."""

    def __init__(self, base_url: str | None, tokens: TokenSource | None) -> None:
        self._base_url = base_url
        self._tokens = tokens
        self._opened: dict[str, GCSStore] = {}

    def open(self, scheme: str, bucket: str) -> "Store":  # noqa: ARG002 - all are gs
        if bucket not in self._opened:
            self._opened[bucket] = self._open(bucket)
        return self._opened[bucket]

    def renew(self) -> bool:
        if self._tokens is None:
            return False
        self._tokens.renew()
        self._opened.clear()
        return True

    def _open(self, bucket: str) -> GCSStore:
        tokens, base_url = self._tokens, self._base_url
        options: dict[str, object] = {"bucket": bucket}
        if base_url is not None:
            options["base_url"] = base_url if "://" in base_url else f"http://{base_url}"
        if tokens is None:
            options["skip_signature"] = True
        return GCSStore(
            config=options,  # type: ignore[arg-type]  # its stub wants a literal dict
            client_options=_client(
                allow_http=str(options.get("base_url", "")).startswith("http://")
            ),
            retry_config=_retry(),
            credential_provider=None if tokens is None else _Tokens(tokens),
        )


class _Tokens:
    """Hands tokens to obstore, which asks again when one ends."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    def __call__(self) -> "GCSCredential":
        value, expires = self._tokens.token()
        return {"token": value, "expires_at": expires}


class _CloudStores:
    """Buckets of every cloud, each opened when it is first met."""

    def __init__(self, settings: StorageSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, str], Store] = {}
        self._google: _GoogleStores | None = None

    def open(self, scheme: str, bucket: str) -> "Store":
        with self._lock:
            if (scheme, bucket) not in self._opened:
                self._opened[scheme, bucket] = self._open(scheme, bucket)
            return self._opened[scheme, bucket]

    def renew(self) -> bool:
        """Other Google tokens. AWS and Azure keys are renewed before they end, or not at all."""
        with self._lock:
            renewed = self._google is not None and self._google.renew()
            self._opened.clear()
            return renewed

    def _open(self, scheme: str, bucket: str) -> "Store":
        match scheme:
            case "s3":
                return _open_s3(bucket, self._settings)
            case "az":
                return _open_azure(bucket, self._settings)
        if self._google is None:
            base_url = self._settings.google_endpoint
            # A server of one's own is asked for no credentials, as Google's own clients do.
            tokens = None if base_url is not None else _GoogleTokens.default()
            self._google = _GoogleStores(base_url, tokens)
        return self._google.open(scheme, bucket)


class _GoogleTokens:
    """Tokens of the application default credentials."""

    def __init__(self, credentials: "GoogleCredentials") -> None:
        self._credentials = credentials
        self._lock = threading.Lock()

    @classmethod
    def default(cls) -> "_GoogleTokens":
        try:
            import google.auth
            from google.auth.exceptions import DefaultCredentialsError
        except ImportError:
            raise ConfigError(f"gs:// needs google-auth: {_INSTALL}") from None
        try:
            credentials, _ = google.auth.default(scopes=[_GOOGLE_SCOPE])
        except DefaultCredentialsError:
            raise ConfigError(
                "no Google credentials for gs://: run `gcloud auth application-default login`, or "
                "set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
            ) from None
        return cls(credentials)

    def token(self) -> tuple[str, datetime | None]:
        with self._lock:
            if not self._credentials.valid:
                self._refresh()
            expiry = self._credentials.expiry
        ends = expiry.replace(tzinfo=UTC) if expiry is not None else None
        return str(self._credentials.token), ends

    def renew(self) -> bool:
        with self._lock:
            self._refresh()
        return True

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
                "the Google credentials give no token for gs://: log in again, or check the "
                "service account's key file"
            ) from None


def _open_s3(bucket: str, settings: StorageSettings) -> S3Store:
    """A bucket of S3, or of a server that speaks its protocol; those are asked by path."""
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise ConfigError(
            f"s3:// needs botocore, which finds its credentials: {_INSTALL}"
        ) from None
    try:
        session = botocore.session.get_session()
        profile = session.get_scoped_config()
        endpoint = settings.s3_endpoint or profile.get("endpoint_url")
        region = settings.s3_region or profile.get("region") or "us-east-1"
        credentials = None if settings.s3_unsigned else session.get_credentials()
    except BotoCoreError as error:
        raise ConfigError(f"the AWS settings cannot be used for s3://{bucket}: {error}") from None
    if credentials is None and not settings.s3_unsigned:
        raise ConfigError(
            f"no AWS credentials for s3://{bucket}: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (aws configure, aws sso login); for a public "
            "bucket set AWS_SKIP_SIGNATURE=true"
        )
    options: dict[str, object] = {"region": region, "virtual_hosted_style_request": False}
    if endpoint is not None:
        options["endpoint"] = endpoint
    if settings.s3_unsigned:
        options["skip_signature"] = True
    return S3Store(
        bucket,
        config=options,  # type: ignore[arg-type]  # its stub wants a literal dict
        client_options=_client(
            allow_http=_http_allowed(endpoint, "AWS_ALLOW_HTTP", asked=settings.s3_http)
        ),
        retry_config=_retry(),
        credential_provider=None if credentials is None else _AwsKeys(credentials),
    )


class _AwsKeys:
    """Hands AWS keys to obstore, which asks again after `AWS_TOKEN_LIFE`."""

    def __init__(self, credentials: "AwsCredentials") -> None:
        self._credentials = credentials

    def __call__(self) -> "S3Credential":
        from botocore.exceptions import BotoCoreError

        try:
            keys = self._credentials.get_frozen_credentials()
        except BotoCoreError:
            raise AuthenticationError(
                "the AWS credentials have ended and cannot be renewed: aws sso login, or new keys"
            ) from None
        return {
            "access_key_id": str(keys.access_key),
            "secret_access_key": str(keys.secret_key),
            "token": keys.token,
            "expires_at": datetime.now(UTC) + AWS_TOKEN_LIFE,
        }


def _open_azure(container: str, settings: StorageSettings) -> AzureStore:
    """A container; obstore reads the AZURE_* variables as Azure's own tools name them."""
    if settings.azure_account is None:
        raise ConfigError(
            f"no storage account for az://{container}: set AZURE_STORAGE_ACCOUNT_NAME, and "
            "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_ID with "
            "AZURE_CLIENT_SECRET and AZURE_TENANT_ID, or AZURE_USE_AZURE_CLI=true after az login"
        )
    options: dict[str, object] = {"account_name": settings.azure_account}
    if settings.azure_endpoint is not None:
        options["endpoint"] = settings.azure_endpoint
    return AzureStore(
        container,
        config=options,  # type: ignore[arg-type]  # its stub wants a literal dict
        client_options=_client(
            allow_http=_http_allowed(
                settings.azure_endpoint, "AZURE_ALLOW_HTTP", asked=settings.azure_http
            )
        ),
        retry_config=_retry(),
    )


def _http_allowed(endpoint: str | None, variable: str, *, asked: bool) -> bool:
    """Whether to speak plain HTTP: to this machine alone, unless `variable` asks for it.

    ConfigError for an endpoint that would be spoken to without being asked.
    """
    if endpoint is None:
        return False
    parts = urlsplit(endpoint)
    if parts.scheme == "https":
        return False
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{_bare(endpoint)} is no endpoint: write https://host:port")
    if parts.hostname in _LOOPBACK or asked:
        return True
    raise ConfigError(
        f"{_bare(endpoint)} would be spoken to without encryption: use https://, or set "
        f"{variable}=true"
    )


def _bare(endpoint: str) -> str:
    """The endpoint without what may be a secret in it."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.hostname}" if parts.hostname else "the endpoint"
