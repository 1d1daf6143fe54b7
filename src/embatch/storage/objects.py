"""Objects in a store, by their URL: put, looked at, listed, read and removed.

Everything blocks; an event loop runs it in a thread. Reads go on where they broke off.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError as _Exists,
)
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
    PreconditionError as _Changed,
)
from obstore.exceptions import (
    UnauthenticatedError as _Unknown,
)

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode, UpdateVersion
    from obstore.store import AzureStore, GCSStore, S3Store

    Store = S3Store | GCSStore | AzureStore

from embatch.errors import (
    AuthenticationError,
    ChangedMeanwhileError,
    EmbatchError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
)
from embatch.storage.urls import split_url

CHUNK_BYTES: Final = 1 << 20
"""Bytes a read gives at once."""
PART_BYTES: Final = 8 << 20
"""Bytes of one part of a large upload."""
PARTS_AT_ONCE: Final = 2
"""Parts under way at once: with PART_BYTES it bounds an upload's memory."""
RESUMPTIONS: Final = 6
"""How often a stream that breaks at one place is taken up again."""
LISTED_AT_ONCE: Final = 1000

_FAILURES: Final = (BaseError, OSError)
"""obstore raises Python's own FileNotFoundError and PermissionError beside its errors."""
_SERVICES: Final = {"gs": "Cloud Storage", "s3": "S3", "az": "Azure Blob Storage"}
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
"""What the stores say of a list in a bucket that is not there."""
_RIGHTS: Final = {
    "gs": "grant them Storage Object Admin on its bucket",
    "s3": "grant them s3:ListBucket on its bucket, and s3:GetObject, s3:PutObject and "
    "s3:DeleteObject on what lies there",
    "az": "grant them Storage Blob Data Contributor on its container",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One object."""

    uri: str
    """`gs://bucket/path`."""
    size_bytes: int
    version: str = ""
    """Its etag: another one is another content."""


class Stores(Protocol):
    """Opens the buckets that a process uses, with its credentials."""

    def open(self, scheme: str, bucket: str) -> "Store":
        """A bucket (a container, on Azure); opened once and kept."""
        ...

    def renew(self) -> bool:
        """Gets other credentials after these were refused; False when there are none to get."""
        ...


def _translated(error: Exception, uri: str) -> EmbatchError:
    scheme = uri.partition(":")[0]
    service = _SERVICES.get(scheme, scheme)
    match error:
        case _Missing() | FileNotFoundError():
            return NotFoundError(f"there is no {uri}")
        case _Denied() | PermissionError():
            return PermissionDeniedError(
                f"the credentials may not use {uri}: {_RIGHTS.get(scheme, 'ask for the right')}"
            )
        case _Unknown():
            return AuthenticationError(f"{service} does not accept the credentials for {uri}")
        case _Exists() | _Changed():
            return ChangedMeanwhileError(f"{uri} was changed by another process meanwhile")
    if any(word in str(error) for word in _NO_BUCKET):
        return _no_bucket(uri)
    return ProviderUnavailableError(f"{service} gave no answer for {uri}: try again later")


def _no_bucket(uri: str) -> NotFoundError:
    scheme, bucket, _ = split_url(uri)
    return NotFoundError(
        f"there is no bucket {scheme}://{bucket}, which {uri} would lie in: create it, or check "
        "its name, region and endpoint"
    )


class ObjectStorage:
    """Object stores with one set of credentials each. Safe to use from several threads."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def _tried(self, uri: str, call: Callable[["Store", str], T]) -> T:
        """What `call` gives for a store and a path; a token that is refused is renewed once."""
        scheme, bucket, path = split_url(uri)
        try:
            return call(self._stores.open(scheme, bucket), path)
        except _Unknown as error:
            if not self._stores.renew():
                raise _translated(error, uri) from None
        except _FAILURES as error:
            raise _translated(error, uri) from None
        try:
            return call(self._stores.open(scheme, bucket), path)
        except _FAILURES as error:
            raise _translated(error, uri) from None

    def put(self, uri: str, path: Path) -> None:
        """Copies the file at `path` to `uri`, in parts of 8 MiB; readers see all of it or none."""

        def put(store: "Store", key: str) -> None:
            obstore.put(store, key, path, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

        self._written(uri, put)

    def put_bytes(self, uri: str, data: bytes, *, replacing: str | None = None) -> None:
        """Writes a small object.

        `replacing` is the version that stands there, as `read_bytes` gave it, "" for none:
        ChangedMeanwhileError when another does. None writes whatever stands there.
        """
        mode: PutMode = "overwrite"
        if replacing is not None:
            mode = _version(replacing) if replacing else "create"

        def put(store: "Store", key: str) -> None:
            obstore.put(store, key, data, mode=mode, use_multipart=False)

        self._written(uri, put)

    def _written(self, uri: str, put: Callable[["Store", str], None]) -> None:
        try:
            self._tried(uri, put)
        except NotFoundError:
            raise _no_bucket(uri) from None

    def look_at(self, uri: str) -> StoredObject:
        """The object at `uri`; NotFoundError when there is none."""
        return _stored(uri, self._tried(uri, obstore.head))

    def list(self, uri: str) -> Sequence[StoredObject]:
        """The objects under the folder `uri`, in the order of their names."""
        scheme, bucket, _ = split_url(uri)

        def found(store: "Store", prefix: str) -> Sequence[StoredObject]:
            return [
                _stored(f"{scheme}://{bucket}/{entry['path']}", entry)
                for entries in obstore.list(store, prefix=prefix, chunk_size=LISTED_AT_ONCE)
                for entry in entries
            ]

        return sorted(self._tried(uri, found), key=lambda entry: entry.uri)

    def names(self, uri: str) -> tuple[Sequence[str], Sequence[str]]:
        """Names of the objects right in the folder `uri`, and of the folders in it, sorted."""

        def found(store: "Store", prefix: str) -> tuple[Sequence[str], Sequence[str]]:
            listed = obstore.list_with_delimiter(store, prefix=prefix)
            objects = [entry["path"].rpartition("/")[2] for entry in listed["objects"]]
            folders = [path.rpartition("/")[2] for path in listed["common_prefixes"]]
            return sorted(objects), sorted(folders)

        return self._tried(uri, found)

    def read(self, uri: str) -> Iterator[bytes]:
        """The object's bytes in stretches of about 1 MiB. A broken stream is taken up again."""
        start, left = 0, RESUMPTIONS
        while True:
            try:
                for chunk in self._tried(uri, partial(_opened, start)):
                    start, left = start + len(chunk), RESUMPTIONS
                    yield bytes(chunk)
                return
            except _FAILURES as error:
                if start == self.look_at(uri).size_bytes:
                    return
                if left == 0:
                    raise _translated(error, uri) from None
                left -= 1

    def read_bytes(self, uri: str) -> tuple[bytes, str]:
        """A small object whole, and its version; NotFoundError when there is none."""

        def got(store: "Store", key: str) -> tuple[bytes, str]:
            answer = obstore.get(store, key)
            return bytes(answer.bytes()), _named_version(answer.meta)

        return self._tried(uri, got)

    def move(self, uri: str, to: str) -> None:
        """Gives an object another name in its bucket: a copy, then the removal of the first."""
        _, _, target = split_url(to)
        self._tried(uri, lambda store, key: obstore.rename(store, key, target))

    def delete(self, uris: Sequence[str]) -> None:
        """Removes the objects; one that is gone already is fine."""
        for uri in uris:
            with contextlib.suppress(NotFoundError):
                self._tried(uri, lambda store, key: obstore.delete(store, key))


def _stored(uri: str, meta: "ObjectMeta") -> StoredObject:
    return StoredObject(uri=uri, size_bytes=meta["size"], version=meta["e_tag"] or "")


def _named_version(meta: "ObjectMeta") -> str:
    """Etag and generation in one word: some stores compare one, some the other."""
    return f"{meta['e_tag'] or ''}\n{meta['version'] or ''}"


def _version(named: str) -> "UpdateVersion":
    e_tag, _, generation = named.partition("\n")
    version = {"e_tag": e_tag, "version": generation}
    return {name: value for name, value in version.items() if value}  # type: ignore[return-value]


def _opened(start: int, store: "Store", key: str) -> Iterator[bytes]:
    options: GetOptions = {"range": {"offset": start}} if start else {}
    return obstore.get(store, key, options=options).stream(CHUNK_BYTES)
