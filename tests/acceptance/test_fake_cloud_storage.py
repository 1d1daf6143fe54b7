"""obstore's GCSStore against the fake Cloud Storage."""

import os

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, UnauthenticatedError
from obstore.store import GCSStore

from embatch.testing.cloud import FakeCloud, Fault


@pytest.fixture
def cloud():
    with FakeCloud() as running:
        yield running


def open_store(cloud, token=None):
    return GCSStore(
        "my-bucket",
        base_url=cloud.storage_url,
        bearer_token=token or cloud.access_token,
        client_options={"allow_http": True},
    )


@pytest.fixture
def store(cloud):
    return open_store(cloud)


def names(blocks):
    return [entry["path"] for block in blocks for entry in block]


def test_put_get_head_delete(store):
    """Bytes, size, ETag and generation; a strange key; gone is not found."""
    told = obstore.put(store, "a dir/ü%.txt", b"hello")
    assert bytes(obstore.get(store, "a dir/ü%.txt").bytes()) == b"hello"
    head = obstore.head(store, "a dir/ü%.txt")
    assert (head["size"], head["e_tag"], head["version"]) == (5, told["e_tag"], told["version"])
    assert bytes(obstore.get_range(store, "a dir/ü%.txt", start=1, end=3)) == b"el"
    obstore.delete(store, "a dir/ü%.txt")
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "a dir/ü%.txt")


def test_create_does_not_overwrite(store):
    """The generation precondition holds."""
    obstore.put(store, "x", b"1", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, "x", b"2", mode="create")
    assert bytes(obstore.get(store, "x").bytes()) == b"1"


def test_multipart(store):
    """Parts come in any order and are joined in theirs."""
    body = os.urandom(17_000_000)
    obstore.put(store, "big", body)
    with obstore.open_writer(store, "written", buffer_size=5_242_880) as file:
        for at in range(0, len(body), 4_000_000):
            file.write(body[at : at + 4_000_000])
    assert bytes(obstore.get(store, "big").bytes()) == body
    assert bytes(obstore.get(store, "written").bytes()) == body


def test_list_in_pages_and_by_folder(store):
    """More keys than a page holds; common prefixes; an offset."""
    for n in range(1005):
        obstore.put(store, f"many/{n:04d}", b"")
    obstore.put(store, "other/deep/x", b"")
    assert names(obstore.list(store, "many")) == [f"many/{n:04d}" for n in range(1005)]
    assert names(obstore.list(store, "many", offset="many/1002")) == ["many/1003", "many/1004"]
    told = obstore.list_with_delimiter(store, "other")
    assert (told["common_prefixes"], told["objects"]) == (["other/deep"], [])


def test_copy_and_rename(store):
    """Server side."""
    obstore.put(store, "a", b"1")
    obstore.copy(store, "a", "b")
    obstore.rename(store, "a", "c")
    assert names(obstore.list(store)) == ["b", "c"]
    with pytest.raises(AlreadyExistsError):
        obstore.copy(store, "b", "c", overwrite=False)


def test_a_wrong_token_is_refused(cloud):
    """401."""
    with pytest.raises(UnauthenticatedError):
        obstore.put(open_store(cloud, "wrong"), "a", b"1")


def test_a_broken_read_is_taken_up_again(cloud, store):
    """obstore resumes a truncated download by range; the bytes are whole."""
    body = os.urandom(3_000_000)
    obstore.put(store, "x", body)
    cloud.add_fault(
        Fault("truncate", {"route": "storage.get"}, times=2, args={"at_byte": 1_000_000})
    )
    assert bytes(obstore.get(store, "x").bytes()) == body
    assert cloud.bill().requests["storage.get"] == 3
