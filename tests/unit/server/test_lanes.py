"""Which work waits for which: each kind has threads of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from embatch.server.lanes import CHANGE_THREADS, INTAKE_THREADS, SMALL_BYTES

from .conftest import MODEL, Server, keyed


def test_polls_do_not_wait_for_slow_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many uploads, deletes and cancels wait for the disk."""
    name = server.inline("a")
    server.ended(name)
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def slow(_: str) -> None:
        waiting.release()
        assert go_on.wait(20)

    monkeypatch.setattr(server.service.batches, "cancel", slow)
    monkeypatch.setattr(server.service.shelf, "delete", slow)
    with ThreadPoolExecutor(60) as pool:
        try:
            for _ in range(30):
                pool.submit(server.http.post, f"/v1/{name}:cancel")
                pool.submit(server.http.delete, "/v1/files/x")
            for _ in range(CHANGE_THREADS):
                assert waiting.acquire(timeout=20)
            assert server.http.get(f"/v1/{name}", timeout=10).status_code == 200
            assert server.http.get("/v1/batches", timeout=10).status_code == 200
            assert not waiting.acquire(timeout=0.2)
        finally:
            go_on.set()


def test_small_creates_do_not_wait_for_large_ones(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their bodies and by their files."""
    small, large = server.upload(keyed("a")), server.upload(keyed(*["a" * 1000] * 1200))
    assert server.service.shelf.size_of(large) > SMALL_BYTES
    waiting, go_on = threading.Semaphore(0), threading.Event()
    create = server.service.batches.create

    def slow(asked: Any, *more: Any) -> Any:
        if asked["inputConfig"].get("fileName") == large:
            waiting.release()
            assert go_on.wait(20)
        return create(asked, *more)

    monkeypatch.setattr(server.service.batches, "create", slow)
    body = {"batch": {"inputConfig": {"fileName": large}}}
    with ThreadPoolExecutor() as pool:
        path = f"/v1/models/{MODEL}:asyncBatchEmbedContent"
        made = [pool.submit(server.json, "POST", path, body) for _ in range(INTAKE_THREADS)]
        try:
            for _ in made:
                assert waiting.acquire(timeout=20)
            assert server.inline("a")
            assert server.create({"inputConfig": {"fileName": small}})
        finally:
            go_on.set()
        assert all(one.result(20)["name"] for one in made)
