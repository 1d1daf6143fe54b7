"""Which work waits for which: each kind has threads of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from embatch.server.lanes import CHANGE_THREADS

from .conftest import Server


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
