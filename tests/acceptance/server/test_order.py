"""Priorities: the urgent batch first, and interactive calls before batches."""

import time

import pytest
from serving import MODEL, Server, Servers, eventually, jsonl

ROW_S = 0.0005
LONG = [f"long {n}" for n in range(20_000)]
SHORT = [f"short {n}" for n in range(200)]


@pytest.fixture
def busy(servers: Servers) -> tuple[Server, str]:
    """A server that computes a long batch of priority 0."""
    server = servers.start(row_s=ROW_S)
    name = server.api.create_from(jsonl(LONG), displayName="long")
    eventually(lambda: server.api.served(name) > 0)
    return server, name


@pytest.mark.parametrize("priority", [10, "10"])
def test_an_urgent_batch_ends_first(busy: tuple[Server, str], priority: object) -> None:
    """A batch of priority 10 that comes late ends before the long one of priority 0."""
    server, long = busy
    urgent = server.api.create_from(jsonl(SHORT), priority=priority)
    server.api.finished(urgent)
    assert not server.api.poll(long).get("done")
    assert server.api.served(long) < len(LONG)


def test_batches_of_lower_priority_wait(busy: tuple[Server, str]) -> None:
    """Negative priorities go last, in whatever order batches come."""
    server, _ = busy
    beside = server.api.create_from(jsonl(LONG[:8_000]), priority=1)
    eventually(lambda: server.api.served(beside) > 0)
    waiting = [
        server.api.create_from(jsonl(SHORT), priority=priority) for priority in (-7, "-5", -6, 0)
    ]
    ends = [server.api.finished(name)["metadata"]["endTime"] for name in waiting]
    seventh, fifth, sixth, ordinary = ends
    assert ordinary < fifth < sixth < seventh
    assert server.api.finished(beside)["metadata"]["endTime"] < fifth


def test_a_batch_is_moved_while_it_waits(busy: tuple[Server, str]) -> None:
    """updateEmbedContentBatch puts a waiting batch before the one that runs."""
    server, long = busy
    waiting = server.api.create_from(jsonl(SHORT), displayName="moved")
    changed = server.api.call(
        "PATCH",
        f"/v1beta/{waiting}:updateEmbedContentBatch",
        params={"updateMask": "priority"},
        json={"priority": "10"},
    )
    assert (changed["priority"], changed["name"]) == ("10", waiting)
    assert changed["displayName"] == "moved"
    server.api.finished(waiting)
    assert not server.api.poll(long).get("done")


def test_an_interactive_call_does_not_wait_for_a_batch(busy: tuple[Server, str]) -> None:
    """One text is embedded while the long batch goes on, again and again."""
    server, long = busy
    for n in range(5):
        body = {"content": {"parts": [{"text": f"now {n}"}]}}
        begun = time.monotonic()
        server.api.call("POST", f"/v1beta/models/{MODEL}:embedContent", json=body)
        print(f"embedContent beside a batch: {1000 * (time.monotonic() - begun):.0f} ms")
    assert not server.api.poll(long).get("done")
