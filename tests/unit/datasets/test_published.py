"""Parts in an object store: which count, and what a writer that gives up leaves."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from embatch.datasets.parts import PartWriter, check_part, part_rows
from embatch.datasets.published import (
    forget_part,
    list_parts,
    part_number,
    publish_part,
    published_parts,
    reject_part,
    remove_part,
)
from embatch.datasets.stage import StageFile, write_stage
from embatch.errors import NotFoundError, StorageError
from embatch.storage.places import ObjectPlace

DIMS = 4


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server on this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def out(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectPlace:
    """The folder of an output in a bucket of its own."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "an-id",
        "AWS_SECRET_ACCESS_KEY": "a-secret",
        "AWS_REGION": "us-east-1",
        "EMBATCH_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-")[:60]
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    return ObjectPlace(f"s3://{bucket}/out")


def rows(numbers: list[int]) -> pa.Table:
    """A piece of a stage."""
    digests = pa.array([bytes(32)] * len(numbers), pa.binary(32))
    keys = [f"key-{number}" for number in numbers]
    return pa.table({"key": keys, "row": pa.array(numbers, pa.int64()), "text_sha256": digests})


def written(out: ObjectPlace, token: str, numbers: list[int], number: int = 7) -> str:
    """A finished part that does not count yet."""
    with PartWriter(out, number=number, token=token, dims=DIMS) as writer:
        writer.write(rows(numbers), np.eye(DIMS, dtype=np.float32)[: len(numbers)])
        return writer.finish().temp_name


def test_a_part_counts_once_it_is_published(out: ObjectPlace) -> None:
    """Under the name that holds its writer's token; publishing may be redone."""
    name = written(out, "one", [1, 2])
    assert [place.name for place in list_parts(out)] == [name]
    assert published_parts(out) == []
    assert publish_part(out, name, 7) == publish_part(out, name, 7) == name
    assert published_parts(out) == [out / name]
    assert part_number(out / name) == 7
    assert part_rows(out / name).tolist() == [1, 2]


def test_of_two_writers_of_a_part_the_published_one_counts(out: ObjectPlace) -> None:
    """The other's file is no part, and one published before it counts no more."""
    late, early = written(out, "late", [1, 2]), written(out, "early", [1])
    publish_part(out, early, 7)
    publish_part(out, late, 7)
    other = publish_part(out, written(out, "one", [5], number=77), 77)
    assert published_parts(out) == [out / late, out / other]
    remove_part(out, 7)
    assert published_parts(out) == [out / other]
    assert list_parts(out) == [out / early, out / other]
    forget_part(out / other)
    forget_part(out / early)
    assert list_parts(out) == published_parts(out) == []


def test_a_part_that_is_lost_cannot_be_published(out: ObjectPlace) -> None:
    """Whoever redoes it learns so."""
    name = written(out, "one", [1])
    (out / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        publish_part(out, name, 7)
    with pytest.raises(StorageError, match="gone"):
        part_rows(out / name)


def test_a_writer_that_gives_up_leaves_nothing(out: ObjectPlace, tmp_path: Path) -> None:
    """Neither in the bucket nor on this machine."""
    with PartWriter(out, number=6, token="t", dims=DIMS) as writer:
        writer.write(rows([1]), np.ones((1, DIMS), dtype=np.float32))
    with PartWriter(out, number=7, token="u", dims=DIMS):
        pass
    assert list_parts(out) == []
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_an_unsound_part_is_set_aside(out: ObjectPlace) -> None:
    """It is told, counts no more, and is not lost."""
    name = publish_part(out, written(out, "one", [1, 2]), 7)
    data = bytearray((out / name).read_bytes())
    (out / name).unlink()
    data[100:120] = bytes(20)
    (out / name).write_bytes(bytes(data))
    assert check_part(out / name, dims=DIMS, normalized=True).problems
    reject_part(out / name)
    assert published_parts(out) == list_parts(out) == []
    assert (out / f".rejected-{name}").read_bytes() == bytes(data)


def test_a_stage_is_read_back_where_it_was_not_written(
    out: ObjectPlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another machine has no copy; a stage that is removed is gone for all."""
    stage = write_stage(out / "stage.arrow", rows([3, 1, 2]))
    assert (tmp_path / "cache").exists()
    monkeypatch.setenv("EMBATCH_CACHE", str(tmp_path / "other"))
    there = StageFile(out / "stage.arrow")
    assert there.take([2, 0])["row"].to_pylist() == [2, 3]
    assert there.path.parent.parent == tmp_path / "other"
    stage.remove()
    assert not there.exists()
    with pytest.raises(StorageError, match="are gone"):
        StageFile(out / "stage.arrow").items  # noqa: B018 - it must raise
