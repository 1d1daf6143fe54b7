"""`embatch serve` as a process: its line, its ends, and what it refuses."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from embatch.cli import main
from embatch.listening import bind
from embatch.server.connection import RESERVED_FILES

FAKE = ["serve", "--engine", "fake", "--port", "0"]


FEW_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv.pop(1)), int(sys.argv.pop(1))))
runpy.run_module("embatch", run_name="__main__", alter_sys=True)
"""
"""A server in a process of so many descriptors, soft and hard."""


def launched(*words: str, **environ: str) -> subprocess.Popen[str]:
    """A server of its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", "embatch", *FAKE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_tells_where_it_is_and_ends_with_a_signal(tmp_path: Path, number: int) -> None:
    """One line of JSON once it accepts connections; exit 0 after a signal."""
    with launched("--data", str(tmp_path / "d"), "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["pid"] == process.pid
        assert (told["model"], told["dims"], told["data"]) == ("fake", 384, str(tmp_path / "d"))
        assert httpx2.get(told["url"] + "/healthz").status_code == 200
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
    assert (tmp_path / "d").stat().st_mode & 0o077 == 0


def test_texts_can_be_read_by_nobody_else(tmp_path: Path) -> None:
    """Also in a folder that was there before and is open to all."""
    data = tmp_path / "d"
    before = os.umask(0o022)
    try:
        data.mkdir(mode=0o755)
        with launched("--data", str(data), "--json") as process:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            row = {"request": {"content": {"parts": [{"text": "a secret"}]}}}
            made = httpx2.post(
                url + "/v1/models/fake:asyncBatchEmbedContent",
                json={"batch": {"inputConfig": {"requests": {"requests": [row]}}}},
            )
            assert made.status_code == 200
            process.terminate()
            assert process.wait(30) == 0
    finally:
        os.umask(before)
    made_there = list(data.rglob("*"))
    assert any(path.name == "requests.arrow" for path in made_there)
    assert [path.name for path in made_there if path.stat().st_mode & 0o077] == []


def test_the_key_may_come_from_the_environment(tmp_path: Path) -> None:
    """Then other addresses than loopback are allowed, and calls need the key."""
    words = ("--data", str(tmp_path), "--host", "0.0.0.0")
    with launched(*words, EMBATCH_SERVE_API_KEY=" the-key \n") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("embatch serve: http://0.0.0.0:")
        url = line.split()[2].replace("0.0.0.0", "127.0.0.1")
        assert httpx2.get(url + "/v1/models").status_code == 403
        shown = httpx2.get(url + "/v1/models", headers={"x-goog-api-key": "the-key"})
        assert shown.status_code == 200
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "the-key" not in line + process.stderr.read()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--host", "0.0.0.0"], "EMBATCH_SERVE_API_KEY"),
        (["--host", "::"], "EMBATCH_SERVE_API_KEY"),
        (["--host", "example.com"], "EMBATCH_SERVE_API_KEY"),
        (["--api-key", " "], "key is empty"),
        (["--alias", "x"], "NAME=MODEL"),
        (["--alias", "a b=fake"], "letters"),
        (["--port", "70000"], "--port"),
        (["--max-batches", "0"], "max-batches"),
        (["--file-lifetime-s", "1e12"], "file-lifetime-s"),
        (["--file-lifetime-s", "inf"], "file-lifetime-s"),
        (["--file-lifetime-s", "nan"], "file-lifetime-s"),
        (["--api-key", "schlüssel"], "ASCII"),
        (["--api-key", "a\nb"], "ASCII"),
        (["--allow-host", "foo:8080"], "without http:// and port"),
        (["--allow-host", "http://foo"], "without http:// and port"),
        (["--data", __file__], "give another --data"),
        (["--data", "/dev/null/x"], "give another --data"),
        (["--engine", "other"], "engine"),
    ],
)
def test_bad_flags_are_usage_errors(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    """Exit 2, with what to do."""
    assert main([*FAKE, "--data", str(tmp_path), *words]) == 2
    assert told in capfd.readouterr().err


def test_a_taken_port_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit 2."""
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--engine", "fake", "--port", port, "--data", str(tmp_path)]) == 2
    assert f"port {port}" in capfd.readouterr().err


def test_a_folder_has_one_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second one is refused while the first lives."""
    with launched("--data", str(tmp_path)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert main([*FAKE, "--data", str(tmp_path)]) == 2
        assert "another embatch serve" in capfd.readouterr().err
        process.kill()


def test_a_request_in_flight_is_answered_at_the_end(tmp_path: Path) -> None:
    """The signal comes inside a request: it is answered, then the process ends."""
    with launched("--data", str(tmp_path), "--json") as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"content": {"parts": [{"text": "a"}]}}).encode()
        with socket.create_connection((host, int(port)), timeout=10) as made:
            made.sendall(
                b"POST /v1/models/fake:embedContent HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body[:5]
            )
            while httpx2.get(url + "/metrics").status_code != 200:
                pass
            process.terminate()
            made.sendall(body[5:])
            answer = b""
            while piece := made.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0


def test_connections_leave_descriptors_for_files(tmp_path: Path) -> None:
    """The soft limit is raised to the hard one, and half of it is for files."""
    command = [sys.executable, "-c", FEW_FILES, "100", "320", *FAKE, "--data", str(tmp_path)]
    with (
        subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as process,
        ExitStack() as held,
    ):
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (320, 320)
        host, port = url.removeprefix("http://").split(":")
        for _ in range((320 - RESERVED_FILES) // 2):
            held.enter_context(socket.create_connection((host, int(port)), timeout=10))
        with socket.create_connection((host, int(port)), timeout=10) as one_more:
            assert one_more.recv(100).startswith(b"HTTP/1.1 503")
        held.close()
        process.terminate()
        assert process.wait(30) == 0
