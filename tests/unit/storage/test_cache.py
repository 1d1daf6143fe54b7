"""Copies of objects stay within their bound, and what is used stays."""

import os
from pathlib import Path

import pytest

from embatch.errors import StorageError
from embatch.storage.cache import Cache, sweep

SIZE = 1000


def filled(cache: Cache, number: int) -> Path:
    """A copy, older the smaller its number."""
    path = cache.path_of(f"object {number}")
    cache.fill(path, [b"x" * SIZE])
    os.utime(path, (number, number))
    return path


def test_the_longest_unused_go_when_the_bound_is_passed(tmp_path: Path) -> None:
    """And never more than need to."""
    cache = Cache(tmp_path, 10 * SIZE)
    paths = [filled(cache, number) for number in range(1, 31)]
    there = [path.exists() for path in paths]
    assert there == sorted(there)  # the old ones are gone, the new ones are not
    assert 9 <= sum(there) <= 11


def test_what_is_held_stays_and_comes_back_as_it_was(tmp_path: Path) -> None:
    """However much is added beside it."""
    cache = Cache(tmp_path, 3 * SIZE)
    oldest = filled(cache, 1)
    with cache.held(oldest) as found:
        assert found
        os.utime(oldest, (1, 1))
        for number in range(2, 12):
            filled(cache, number)
        assert oldest.read_bytes() == b"x" * SIZE
    filled(cache, 12)
    with cache.held(oldest) as found:
        assert not found


def test_a_disk_that_refuses_is_told_with_what_to_do(tmp_path: Path) -> None:
    """And what the store says passes as it is."""
    (tmp_path / "file").touch()
    cache = Cache(tmp_path / "file", 3 * SIZE)
    with pytest.raises(StorageError, match="EMBATCH_CACHE"):
        cache.fill(cache.path_of("object"), [b"x"])


def test_what_a_dead_process_left_half_written_is_removed(tmp_path: Path) -> None:
    """No copy is ever half: a name appears when it is whole."""
    cache = Cache(tmp_path, 3 * SIZE)
    left = tmp_path / ".dead.tmp"
    left.write_bytes(b"half")
    path = cache.path_of("object")

    def chunks():
        yield b"first"
        assert not path.exists()
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cache.fill(path, chunks())
    assert not path.exists()
    filled(cache, 1)
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_what_runs_left_goes_when_it_is_old(tmp_path: Path) -> None:
    """Folder by folder: one with a new file stays whole."""
    old, new, bare = (tmp_path / "s3" / name / "digest" for name in ("old", "new", "bare"))
    for folder in (old, new, bare):
        folder.mkdir(parents=True)
    for folder in (old, new):
        for name in ("copies.bin", "digest.json"):
            (folder / name).touch()
            os.utime(folder / name, (1000, 1000))
        os.utime(folder, (1000, 1000))
    (new / "digest.json").touch()
    sweep(tmp_path, 3600)
    assert not old.exists()
    assert sorted(path.name for path in new.iterdir()) == ["copies.bin", "digest.json"]
    assert bare.exists(), "made just now: somebody is about to write to it"
    sweep(tmp_path / "nothing", 3600)
