"""Uploads while the disk is full."""

import errno
import os
from typing import Any

import pytest

from embatch.server import writers

from .conftest import Server
from .test_files_http import CHUNK, RECEIVED, STATUS, begin, send


def test_a_full_disk_loses_one_chunk_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was received before stays, and the client hears how to go on."""
    content = os.urandom(CHUNK + 1000)
    url = begin(server)
    assert send(server, url, "upload", 0, content[:CHUNK]).status_code == 200
    with monkeypatch.context() as full:

        def write(file: Any, data: bytes) -> None:
            file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(writers, "_write_all", write)
        answer = send(server, url, "upload, finalize", CHUNK, content[CHUNK:])
        assert answer.status_code == 503
        assert answer.json()["error"]["message"].startswith("The server's disk is full")
        assert (answer.headers[STATUS], answer.headers[RECEIVED]) == ("active", str(CHUNK))
    done = send(server, url, "upload, finalize", CHUNK, content[CHUNK:])
    assert done.json()["file"]["sizeBytes"] == str(len(content))
