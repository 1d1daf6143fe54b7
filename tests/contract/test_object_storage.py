"""One suite for every object store: what a run needs of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from embatch.config import StorageSettings
from embatch.errors import (
    AuthenticationError,
    ChangedMeanwhileError,
    EmbatchError,
    NotFoundError,
    PermissionDeniedError,
)
from embatch.storage.objects import PART_BYTES, ObjectStorage
from embatch.storage.stores import cloud_storage, google_storage
from embatch.testing.cloud import FakeCloud

SECRET = "a-secret-that-nobody-may-see"


class OneToken:
    """A token that never ends."""

    def __init__(self, token: str) -> None:
        self._token = token

    def token(self) -> tuple[str, None]:
        return self._token, None

    def renew(self) -> None:
        """There is no other."""


@contextmanager
def s3(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[tuple[ObjectStorage, str]]:
    """Amazon's protocol, spoken by moto."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        keys = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": SECRET}
        for name, value in (keys | {"AWS_DEFAULT_REGION": "us-east-1"}).items():
            patch.setenv(name, value)
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="lab")
        yield cloud_storage(StorageSettings(cache=folder, s3_endpoint=endpoint)), "s3://lab/a/run"
    finally:
        server.stop()


@contextmanager
def gs(_folder: Path, _patch: pytest.MonkeyPatch) -> Iterator[tuple[ObjectStorage, str]]:
    """Google's protocol, spoken by the fake cloud."""
    with FakeCloud() as cloud:
        tokens = OneToken(cloud.access_token)
        yield google_storage(base_url=cloud.storage_url, tokens=tokens), "gs://my-bucket/a/run"


@pytest.fixture(scope="module", params=[s3, gs], ids=["s3", "gs"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ObjectStorage, str]]:
    """A store, and a folder in it."""
    with (
        pytest.MonkeyPatch.context() as patch,
        request.param(tmp_path_factory.mktemp("cache"), patch) as found,
    ):
        yield found


@pytest.fixture
def storage(opened: tuple[ObjectStorage, str]) -> ObjectStorage:
    """The store."""
    return opened[0]


@pytest.fixture
def root(opened: tuple[ObjectStorage, str], request: pytest.FixtureRequest) -> str:
    """A folder that no other test writes to."""
    return f"{opened[1]}/{request.node.originalname}"


def test_a_file_of_several_parts_comes_back_byte_by_byte(
    storage: ObjectStorage, root: str, tmp_path: Path
) -> None:
    """Streamed both ways."""
    data = os.urandom(2 * PART_BYTES + 12345)
    (tmp_path / "file").write_bytes(data)
    storage.put(f"{root}/big", tmp_path / "file")
    assert storage.look_at(f"{root}/big").size_bytes == len(data)
    assert b"".join(storage.read(f"{root}/big")) == data


def test_of_two_that_create_one_alone_does(storage: ObjectStorage, root: str) -> None:
    """If none stands there."""
    storage.put_bytes(f"{root}/manifest", b"first", replacing="")
    with pytest.raises(ChangedMeanwhileError):
        storage.put_bytes(f"{root}/manifest", b"second", replacing="")
    assert storage.read_bytes(f"{root}/manifest")[0] == b"first"


def test_what_was_read_alone_is_replaced(storage: ObjectStorage, root: str) -> None:
    """A change between the reading and the writing is not lost."""
    storage.put_bytes(f"{root}/manifest", b"first")
    _, version = storage.read_bytes(f"{root}/manifest")
    storage.put_bytes(f"{root}/manifest", b"second", replacing=version)
    with pytest.raises(ChangedMeanwhileError):
        storage.put_bytes(f"{root}/manifest", b"third", replacing=version)
    assert storage.read_bytes(f"{root}/manifest")[0] == b"second"


def test_another_content_is_another_version(storage: ObjectStorage, root: str) -> None:
    """Of the same size, too: inputs are known by it."""
    storage.put_bytes(f"{root}/input", b"one")
    before = storage.look_at(f"{root}/input")
    storage.put_bytes(f"{root}/input", b"two")
    after = storage.look_at(f"{root}/input")
    assert before.size_bytes == after.size_bytes
    assert "" != before.version != after.version != ""


def test_names_stand_in_folders(storage: ObjectStorage, root: str) -> None:
    """Listed flat, and one folder alone; a folder whose name begins alike is another."""
    for name in ("b", "a", "deep/c", "deep/er/d"):
        storage.put_bytes(f"{root}/in/{name}", b"x")
    storage.put_bytes(f"{root}/in-other/e", b"x")
    assert storage.names(f"{root}/in") == (["a", "b"], ["deep"])
    found = [entry.uri.removeprefix(f"{root}/in/") for entry in storage.list(f"{root}/in")]
    assert found == ["a", "b", "deep/c", "deep/er/d"]
    assert storage.names(f"{root}/nothing") == ([], [])


def test_what_is_gone_is_not_found_and_may_be_removed_again(
    storage: ObjectStorage, root: str
) -> None:
    """By its URL."""
    storage.put_bytes(f"{root}/x", b"x")
    storage.delete([f"{root}/x", f"{root}/never"])
    for look in (storage.look_at, storage.read_bytes, lambda uri: list(storage.read(uri))):
        with pytest.raises(NotFoundError, match=f"{root}/x"):
            look(f"{root}/x")


def test_an_object_gets_another_name(storage: ObjectStorage, root: str) -> None:
    """Its content is the same, its first name is gone."""
    storage.put_bytes(f"{root}/part", b"rows")
    storage.move(f"{root}/part", f"{root}/.rejected-part")
    assert storage.names(root)[0] == [".rejected-part"]
    assert storage.read_bytes(f"{root}/.rejected-part")[0] == b"rows"


def test_a_bucket_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For writes and lists alike, with what to do."""
    with s3(tmp_path, monkeypatch) as (storage, _):
        for call in (
            lambda: storage.put_bytes("s3://no-such-bucket/x", b""),
            lambda: storage.list("s3://no-such-bucket/x"),
            lambda: storage.names("s3://no-such-bucket/x"),
        ):
            with pytest.raises(NotFoundError, match=r"no bucket s3://no-such-bucket.*create it"):
                call()


def test_refused_credentials_are_told_and_not_shown() -> None:
    """The token stands in no message."""
    with FakeCloud() as cloud:
        storage = google_storage(base_url=cloud.storage_url, tokens=OneToken("a-wrong-token"))
        with pytest.raises((AuthenticationError, PermissionDeniedError)) as caught:
            storage.look_at("gs://my-bucket/x")
    shown: EmbatchError = caught.value
    assert "gs://my-bucket/x" in str(shown)
    assert "a-wrong-token" not in str(shown)
