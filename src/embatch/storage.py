"""Objects in Cloud Storage: the only import of obstore.

Everything blocks; an event loop runs it in a thread. Reads go on where they broke off.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

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

Token = Callable[[], tuple[str, datetime | None]]
"""Gives a bearer token and when it ends."""


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


def _translated(error: BaseError, uri: str) -> EmbatchError:
    match error:
        case _Missing():
            return NotFoundError(f"there is no {uri}")
        case _Denied():
            return PermissionDeniedError(
                f"the credentials may not use {uri}: grant them Storage Object Admin on its bucket"
            )
        case _Unknown():
            return AuthenticationError(f"Cloud Storage does not accept the credentials for {uri}")
    return ProviderUnavailableError(f"Cloud Storage gave no answer for {uri}: try again later")


class ObjectStorage:
    """Cloud Storage with one set of credentials. Safe to use from several threads."""

    def __init__(self, *, base_url: str | None = None, token: Token | None = None) -> None:
        self._base_url = base_url
        self._token = token
        self._stores: dict[str, GCSStore] = {}

    def _store(self, bucket: str) -> GCSStore:
        if bucket not in self._stores:
            self._stores[bucket] = self._opened(bucket)
        return self._stores[bucket]

    def _opened(self, bucket: str) -> GCSStore:
        token, base_url = self._token, self._base_url
        options: dict[str, object] = {"bucket": bucket}
        if base_url is not None:
            options["base_url"] = base_url if "://" in base_url else f"http://{base_url}"
        if token is None:
            options["skip_signature"] = True
        plain = str(options.get("base_url", "")).startswith("http://")
        return GCSStore(
            config=options,  # type: ignore[arg-type]  # its stub wants a literal dict
            client_options={"timeout": WHOLE, "read_timeout": SILENCE, "allow_http": plain},
            retry_config={"max_retries": RETRIES, "retry_timeout": WHOLE},
            credential_provider=None if token is None else _Provider(token),
        )

    def put(self, uri: str, path: Path) -> None:
        """Copies the file at `path` to `uri`, in parts of 8 MiB."""
        bucket, key = split_uri(uri)
        try:
            obstore.put(
                self._store(bucket),
                key,
                path,
                chunk_size=PART_BYTES,
                max_concurrency=PARTS_AT_ONCE,
            )
        except BaseError as error:
            raise _translated(error, uri) from None

    def look_at(self, uri: str) -> StoredObject:
        """The object at `uri`; NotFoundError when there is none."""
        bucket, key = split_uri(uri)
        try:
            found = obstore.head(self._store(bucket), key)
        except BaseError as error:
            raise _translated(error, uri) from None
        return StoredObject(uri=uri, size_bytes=found["size"])

    def list(self, uri: str) -> Sequence[StoredObject]:
        """The objects under the folder `uri`, in the order of their names."""
        bucket, prefix = split_uri(uri)
        try:
            found = [
                StoredObject(uri=f"gs://{bucket}/{entry['path']}", size_bytes=entry["size"])
                for entries in obstore.list(self._store(bucket), prefix=prefix)
                for entry in entries
            ]
        except BaseError as error:
            raise _translated(error, uri) from None
        return sorted(found, key=lambda entry: entry.uri)

    def read(self, uri: str) -> Iterator[bytes]:
        """The object's bytes in stretches of about 1 MiB. A broken stream is taken up again."""
        bucket, key = split_uri(uri)
        store, start, left = self._store(bucket), 0, RETRIES
        while True:
            try:
                options = {"range": {"offset": start}} if start else {}
                answer = obstore.get(store, key, options=options)  # type: ignore[arg-type]
                for chunk in answer.stream(CHUNK_BYTES):
                    start, left = start + len(chunk), RETRIES
                    yield bytes(chunk)
                return
            except BaseError as error:
                if start and start == self._size(store, key):
                    return
                known = isinstance(error, (_Missing, _Denied, _Unknown))
                if known or left == 0:
                    raise _translated(error, uri) from None
                left -= 1

    def _size(self, store: GCSStore, key: str) -> int | None:
        try:
            return obstore.head(store, key)["size"]
        except BaseError:
            return None

    def delete(self, uris: Sequence[str]) -> None:
        """Removes the objects; one that is gone already is fine."""
        for uri in uris:
            bucket, key = split_uri(uri)
            try:
                obstore.delete(self._store(bucket), key)
            except _Missing:
                continue
            except BaseError as error:
                raise _translated(error, uri) from None


class _Provider:
    """Hands tokens to obstore, which asks again when one ends."""

    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self) -> "GCSCredential":
        value, expires = self._token()
        return {"token": value, "expires_at": expires}
