"""Files appear whole or not at all, and leave nothing beside them."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest

from embatch.datasets.durable import hidden_file, write_bytes_whole, write_whole
from embatch.errors import StorageError


def test_a_file_is_replaced_whole(tmp_path):
    """Until the end the old content stands."""
    path = tmp_path / "x"
    write_bytes_whole(path, b"old")
    with write_whole(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.name.startswith(".x.")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_an_exception_leaves_the_old_file(tmp_path):
    """And removes the hidden one."""
    path = tmp_path / "x"
    write_bytes_whole(path, b"old")
    with suppress(RuntimeError), write_whole(path) as temporary:
        temporary.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_storage_error(tmp_path):
    """The file that could not be written is named."""
    with (
        pytest.raises(StorageError, match=r"the disk is full while writing .*x"),
        write_whole(tmp_path / "x"),
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123 - a device, not a path of ours
    ):
        full.write(b"1")


def test_what_a_killed_process_left_is_removed(tmp_path):
    """By the next writer of the same file; that of a living writer stays."""
    code = (
        "import os, signal, sys, pathlib\n"
        "from embatch.datasets.durable import hidden_file\n"
        "with hidden_file(pathlib.Path(sys.argv[1])) as path:\n"
        "    path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "x"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with hidden_file(path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
        with hidden_file(path) as other:
            assert sorted(tmp_path.iterdir()) == sorted([mine, other])
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_an_output_is_not_made_by_who_writes_in_it(tmp_path):
    """A share that is not mounted looks like one: what is written there would be lost."""
    out = tmp_path / "out"
    for path in (out / "failures.jsonl", out / ".work" / "stage" / "0.arrow"):
        with pytest.raises(StorageError, match="out"):
            write_bytes_whole(path, b"lost")
        assert not out.exists()
    out.mkdir()
    write_bytes_whole(out / ".work" / "stage" / "0.arrow", b"kept")
