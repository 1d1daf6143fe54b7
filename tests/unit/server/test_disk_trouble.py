"""What callers meet while the disk does not do its part."""

import errno
import logging
import os
from typing import Any

import pytest

from embatch.errors import ProviderUnavailableError
from embatch.server import writers

from .conftest import MODEL, Server, rows
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


def test_callers_hear_no_path(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stands in the log, for the operator."""
    folder = str(server.service.settings.folder)

    def create(*_: Any) -> None:
        raise ProviderUnavailableError(f"{folder}/x cannot be used")

    monkeypatch.setattr(server.service.batches, "create", create)
    monkeypatch.setattr(server.service, "trouble", lambda: f"{folder}/x cannot be used")
    body = {"batch": {"inputConfig": {"requests": {"requests": rows("a")}}}}
    with caplog.at_level(logging.ERROR, "embatch.server"):
        error = server.error("POST", f"/v1/models/{MODEL}:asyncBatchEmbedContent", body)
    assert (error["code"], error["status"]) == (503, "UNAVAILABLE")
    assert folder not in error["message"]
    assert f"{folder}/x cannot be used" in caplog.text
    health = server.http.get("/healthz")
    assert health.json()["reason"] == "the data folder/x cannot be used"
