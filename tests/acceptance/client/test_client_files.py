"""Files of any size, over connections that break, in constant memory."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embatch.client import files
from embatch.errors import InputError, InvalidRequestError, NotFoundError, PermissionDeniedError
from embatch.testing.cloud import CloudProcess, Fault

MIB = 1 << 20


def _write_rows(path: Path, size_bytes: int) -> str:
    """Fills a file with request rows; gives its SHA-256."""
    digest = hashlib.sha256()
    written = 0
    number = 0
    with path.open("wb") as file:
        while written < size_bytes:
            rows = b"".join(
                b'{"key":"%d","request":{"content":{"parts":[{"text":"%s"}]}}}\n'
                % (n, b"word " * 400)
                for n in range(number, number + 512)
            )
            number += 512
            written += file.write(rows)
            digest.update(rows)
    return digest.hexdigest()


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "forgotten"])
def test_uploads_go_on_where_they_broke(gemini: Any, tmp_path: Path, keep: bool) -> None:
    """Connections dropped every 9 MB: the server is asked what it has, the file is whole."""
    path = tmp_path / "rows.jsonl"
    sha256 = _write_rows(path, 33 * MIB)
    gemini.fault("upload_drop", every_bytes=9_000_000, keep=keep, times=3)
    file = gemini.client.upload_file(path, display_name="rows")
    assert file.sha256 == sha256
    assert file.size_bytes == path.stat().st_size
    assert file.display_name == "rows"
    assert gemini.asked("files.query") == 3
    assert gemini.client.get_file(file.name) == file


@pytest.mark.parametrize("after", [0, 1], ids=["middle", "last"])
def test_lost_answers_of_chunks(gemini: Any, tmp_path: Path, after: int) -> None:
    """The chunk arrived, its answer did not: nothing is sent twice, the last chunk included."""
    path = tmp_path / "rows.jsonl"
    sha256 = _write_rows(path, 12 * MIB)
    gemini.fault("upload_answer_lost", times=1, after_matches=after)
    assert gemini.client.upload_file(path).sha256 == sha256
    assert gemini.asked("files.upload") == 2


@pytest.mark.parametrize("fault", ["server_error", "reset_before", "reset_after"])
def test_uploads_start_again(gemini: Any, tmp_path: Path, fault: str) -> None:
    """A start that fails is repeated: it costs nothing."""
    path = tmp_path / "rows.jsonl"
    sha256 = _write_rows(path, 1000)
    gemini.fault(fault, times=1, match={"route": "files.start"})
    assert gemini.client.upload_file(path).sha256 == sha256


def test_files_are_listed_and_deleted(case: Any, tmp_path: Path) -> None:
    """What was uploaded is listed across pages, told, and gone once deleted."""
    case.fault("small_pages", size=1)
    names = set()
    for number in range(3):
        path = tmp_path / f"{number}.jsonl"
        _write_rows(path, 100)
        names.add(case.client.upload_file(path).name)
    assert {file.name for file in case.client.list_files()} == names
    for name in names:
        assert case.client.get_file(name).size_bytes > 0
        case.client.delete_file(name)
    assert list(case.client.list_files()) == []


def test_files_that_cannot_be_read(case: Any, tmp_path: Path) -> None:
    """A missing or an empty file is an InputError that names it."""
    with pytest.raises(InputError, match="gone"):
        case.client.upload_file(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InputError, match="empty"):
        case.client.upload_file(tmp_path / "empty.jsonl")


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no-ranges"])
def test_downloads_go_on_where_they_broke(gemini: Any, tmp_path: Path, ranges: bool) -> None:
    """A stream that breaks is resumed by range, or read over where ranges are ignored."""
    batch = gemini.finished([f"text {i}" for i in range(1_500)])
    whole = gemini.client.download_file(batch.output.file, tmp_path / "whole.jsonl").read_bytes()
    route = {"route": "files.download"}
    if not ranges:
        gemini.fault("range_ignored")
    for at_byte in (1_000, 900_000, 3_000_000):
        gemini.fault("truncate", times=1, at_byte=at_byte, match=route)
    broken = gemini.client.download_file(batch.output.file, tmp_path / "broken.jsonl")
    assert broken.read_bytes() == whole
    gemini.fault("truncate", times=1, at_byte=2_000_000, match=route)
    blocks = list(gemini.client.read_batch_results(batch))
    assert sum(len(block.keys) for block in blocks) == 1_500


def test_ranges_that_are_answered_in_part(gemini: Any, tmp_path: Path) -> None:
    """A range of which less comes than was asked for is gone on with: the file is whole."""
    batch = gemini.finished(["a"] * 1_000, output_dimensionality=128)
    whole = gemini.client.download_file(batch.output.file, tmp_path / "whole.jsonl").read_bytes()
    gemini.fault("truncate", times=1, at_byte=100_000, match={"route": "files.download"})
    gemini.fault("range_short", times=3, bytes=50_000)
    parts = gemini.client.download_file(batch.output.file, tmp_path / "parts.jsonl")
    assert parts.read_bytes() == whole
    assert gemini.asked("files.download") == 1 + 1 + 3 + 1


def test_downloads_appear_when_they_are_whole(case: Any, tmp_path: Path) -> None:
    """A download that fails leaves nothing behind; one without a place to go says so."""
    name = "files/batch-none" if case.on == "gemini" else "gs://bucket/none"
    with pytest.raises((NotFoundError, PermissionDeniedError)):
        case.client.download_file(name, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["folder", "", "folder/missing/x"])
def test_downloads_need_a_place(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A folder, nothing, or a folder that is not there: an InputError, and nothing is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    batch = case.finished(["a"] * 1_000, output_dimensionality=128)
    name = batch.output.file or case.client.upload_file(__file__).name
    with pytest.raises(InputError):
        case.client.download_file(name, place)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


def test_downloads_on_a_full_disk(
    gemini: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes no more is an InputError that names the path; no part stays behind."""
    batch = gemini.finished(["a"] * 1_000, output_dimensionality=128)
    monkeypatch.setattr(files, "part_beside", lambda path: _Full(tmp_path / "part"))
    with pytest.raises(InputError, match=r"rows\.jsonl cannot be written: No space left"):
        gemini.client.download_file(batch.output.file, tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []


class _Full(type(Path())):  # type: ignore[misc]
    """A path on a disk that is full."""

    def open(self, *_: Any, **__: Any) -> Any:
        return Path("/dev/full").open("wb", buffering=0)


def test_objects_are_files_on_vertex(vertex: Any, tmp_path: Path) -> None:
    """Cloud Storage objects are uploaded, downloaded and named as files."""
    path = tmp_path / "rows.jsonl"
    sha256 = _write_rows(path, 20 * MIB)
    file = vertex.client.upload_file(path)
    copy = vertex.client.download_file(file.name, tmp_path / "copy.jsonl")
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == sha256
    with pytest.raises(InvalidRequestError, match="gs://"):
        vertex.client.get_file("files/abc")


_MEASURED = """
import hashlib, json, sys
from embatch import Client
what, url, key, name, path = sys.argv[1:]
out = {}
with Client(api_key=key, base_url=url) as client:
    client.embed_content("warm")
    if what == "upload":
        file = client.upload_file(path)
        out = {"sha256": file.sha256, "name": file.name}
    elif what == "download":
        with open(client.download_file(name, path), "rb") as file:
            out = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": file.tell()}
    else:
        out = {"rows": sum(len(block.keys) for block in client.read_batch_results(name))}
status = open("/proc/self/status").read()
out["peak_mb"] = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps(out))
"""


def _measured(cloud: CloudProcess, what: str, name: str, path: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, what, cloud.url, cloud.api_key, name, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    said: dict[str, Any] = json.loads(done.stdout)
    print(what, said)
    return said


def _write_results(path: Path, rows: int) -> str:
    """Fills a file with result rows of 3072 values; gives its SHA-256."""
    values = np.random.default_rng(0).normal(scale=0.02, size=(64, 3072)).astype(np.float32)
    arrays = [json.dumps([float(str(value)) for value in row]).encode() for row in values]
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for row in range(rows):
            line = b'{"key":"r%d","response":{"embedding":{"values":%b}}}\n' % (
                row,
                arrays[row % 64],
            )
            file.write(line)
            digest.update(line)
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("upload_bytes", "rows"),
    [
        pytest.param(64 * MIB, 2_000, id="short"),
        pytest.param(
            1024 * MIB, 50_000, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(1800)]
        ),
    ],
)
def test_memory_does_not_grow_with_files(tmp_path: Path, upload_bytes: int, rows: int) -> None:
    """1 GB up with drops every 100 MB, 2 GB down with breaks: intact, under 100 MB of memory."""
    path = tmp_path / "rows.jsonl"
    sha256 = _write_rows(path, upload_bytes)
    every = 100_000_000 if upload_bytes > 1e9 else 20_000_000
    with CloudProcess(faults=[Fault("upload_drop", args={"every_bytes": every})]) as cloud:
        up = _measured(cloud, "upload", "", path)
        assert up["sha256"] == sha256
        assert up["peak_mb"] < 100
        path.unlink()
        results = tmp_path / "results.jsonl"
        sha256 = _write_results(results, rows)
        made = cloud.prepare_batch(str(results), rows=rows)
        size = results.stat().st_size
        for share in (0.1, 0.3, 0.2):
            cloud.add_fault(
                Fault(
                    "truncate",
                    {"route": "files.download"},
                    times=1,
                    args={"at_byte": int(size * share)},
                )
            )
        down = _measured(cloud, "download", f"files/batch-{made.removeprefix('batches/')}", path)
        assert down["sha256"] == sha256
        assert down["bytes"] == size
        assert down["peak_mb"] < 100
        read = _measured(cloud, "read", made, path)
        assert read["rows"] == rows
        assert read["peak_mb"] < 100


def test_numpy_is_what_users_get(gemini: Any) -> None:
    """Blocks are float32 and C-contiguous."""
    batch = gemini.finished(["a"] * 1_000, output_dimensionality=128)
    for block in gemini.client.read_batch_results(batch.name):
        assert block.vectors.flags["C_CONTIGUOUS"]
        assert block.vectors.dtype == np.float32
