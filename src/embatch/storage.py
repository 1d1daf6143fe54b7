"""Objects in Cloud Storage: the only import of obstore.

Everything blocks; an event loop runs it in a thread. Reads go on where they broke off.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import obstore
from obstore.exceptions import (
    BaseError,
)
from obstore.exceptions import (
    NotFoundError as _Missing,
)
from obstore.exceptions import (
    PermissionDeniedError as _Denied,
)
from obstore.exceptions import (
    UnauthenticatedError as _Unknown,
)
from obstore.store import GCSStore

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import GCSCredential

from embatch.errors import (
    AuthenticationError,
    EmbatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
)

CHUNK_BYTES: Final = 1 << 20
"""Bytes a read gives at once."""
PART_BYTES: Final = 8 << 20
"""Bytes of one part of a large upload."""
PARTS_AT_ONCE: Final = 2
"""Parts under way at once: with PART_BYTES it bounds an upload's memory."""
SILENCE: Final = timedelta(seconds=120)
"""Longest silence of the store that is taken for life."""
WHOLE: Final = timedelta(hours=6)
"""Longest single request, body included."""
RETRIES: Final = 6

_FAILURES: Final = (BaseError, OSError)
"""obstore raises Python's own FileNotFoundError and PermissionError beside its errors."""

T = TypeVar("T")


class TokenSource(Protocol):
    """Gives bearer tokens."""

    def token(self) -> tuple[str, datetime | None]:
        """A token and when it ends."""
        ...

    def renew(self) -> object:
        """Gets another token, after this one was refused."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One object."""

    uri: str
    """`gs://bucket/path`."""
    size_bytes: int


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and path of `gs://bucket/path`; InvalidRequestError for anything else."""
    bucket, _, path = uri.removeprefix("gs://").partition("/")
    if not uri.startswith("gs://") or not bucket:
        raise InvalidRequestError(f"{uri} is not a Cloud Storage place: write gs://bucket/path")
    return bucket, path.strip("/")


def _translated(error: Exception, uri: str) -> EmbatchError:
    match error:
        case _Missing() | FileNotFoundError():
            return NotFoundError(f"there is no {uri}")
        case _Denied() | PermissionError():
            return PermissionDeniedError(
                f"the credentials may not use {uri}: grant them Storage Object Admin on its bucket"
            )
        case _Unknown():
            return AuthenticationError(f"Cloud Storage does not accept the credentials for {uri}")
    return ProviderUnavailableError(f"Cloud Storage gave no answer for {uri}: try again later")


class ObjectStorage:
    """Cloud Storage with one set of credentials. Safe to use from several threads."""

    def __init__(self, *, base_url: str | None = None, tokens: TokenSource | None = None) -> None:
        self._base_url = base_url
        self._tokens = tokens
        self._stores: dict[str, GCSStore] = {}

    def _store(self, bucket: str) -> GCSStore:
        if bucket not in self._stores:
            self._stores[bucket] = self._opened(bucket)
        return self._stores[bucket]

    def _opened(self, bucket: str) -> GCSStore:
        tokens, base_url = self._tokens, self._base_url
        options: dict[str, object] = {"bucket": bucket}
        if base_url is not None:
            options["base_url"] = base_url if "://" in base_url else f"http://{base_url}"
        if tokens is None:
            options["skip_signature"] = True
        plain = str(options.get("base_url", "")).startswith("http://")
        return GCSStore(
            config=options,  # type: ignore[arg-type]  # its stub wants a literal dict
            client_options={"timeout": WHOLE, "read_timeout": SILENCE, "allow_http": plain},
            retry_config={"max_retries": RETRIES, "retry_timeout": WHOLE},
            credential_provider=None if tokens is None else _Provider(tokens),
        )

    def _tried(self, uri: str, call: Callable[[GCSStore, str], T]) -> T:
        """What `call` gives for a store and a path; a token that is refused is renewed once."""
        bucket, path = split_uri(uri)
        try:
            return call(self._store(bucket), path)
        except _Unknown as error:
            if self._tokens is None:
                raise _translated(error, uri) from None
        except _FAILURES as error:
            raise _translated(error, uri) from None
        self._tokens.renew()
        self._stores.clear()
        try:
            return call(self._store(bucket), path)
        except _FAILURES as error:
            raise _translated(error, uri) from None

    def put(self, uri: str, path: Path) -> None:
        """Copies the file at `path` to `uri`, in parts of 8 MiB."""

        def put(store: GCSStore, key: str) -> None:
            obstore.put(store, key, path, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

        self._tried(uri, put)

    def look_at(self, uri: str) -> StoredObject:
        """The object at `uri`; NotFoundError when there is none."""
        size_bytes = self._tried(uri, lambda store, key: obstore.head(store, key)["size"])
        return StoredObject(uri=uri, size_bytes=size_bytes)

    def list(self, uri: str) -> Sequence[StoredObject]:
        """The objects under the folder `uri`, in the order of their names."""
        bucket, _ = split_uri(uri)

        def found(store: GCSStore, prefix: str) -> Sequence[StoredObject]:
            return [
                StoredObject(uri=f"gs://{bucket}/{entry['path']}", size_bytes=entry["size"])
                for entries in obstore.list(store, prefix=prefix)
                for entry in entries
            ]

        return sorted(self._tried(uri, found), key=lambda entry: entry.uri)

    def read(self, uri: str) -> Iterator[bytes]:
        """The object's bytes in stretches of about 1 MiB. A broken stream is taken up again."""
        start, left = 0, RETRIES
        while True:
            try:
                for chunk in self._tried(uri, partial(_opened, start)):
                    start, left = start + len(chunk), RETRIES
                    yield bytes(chunk)
                return
            except _FAILURES as error:
                if start == self.look_at(uri).size_bytes:
                    return
                if left == 0:
                    raise _translated(error, uri) from None
                left -= 1

    def delete(self, uris: Sequence[str]) -> None:
        """Removes the objects; one that is gone already is fine."""
        for uri in uris:
            with contextlib.suppress(NotFoundError):
                self._tried(uri, lambda store, key: obstore.delete(store, key))


def _opened(start: int, store: GCSStore, key: str) -> Iterator[bytes]:
    options: GetOptions = {"range": {"offset": start}} if start else {}
    return obstore.get(store, key, options=options).stream(CHUNK_BYTES)


class _Provider:
    """Hands tokens to obstore, which asks again when one ends."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    def __call__(self) -> "GCSCredential":
        value, expires = self._tokens.token()
        return {"token": value, "expires_at": expires}
