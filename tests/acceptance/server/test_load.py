"""Many clients at once: no error, answers in time, memory that does not grow."""

import contextlib

import pytest
from crowd import ROWS, SUBMITTERS, load
from serving import Server, Servers, eventually, jsonl

LONG_ROWS = 100_000
"""Of the batch that runs meanwhile and is polled."""
GROWTH_BYTES = 48 << 20
"""What the process may hold more after the load than after its first part."""


def pressed(server: Server, name: str, seconds: float, *, checked: bool = True) -> None:
    """50 pollers of `name` and 10 submitters: no error, memory flat."""
    load(server.url, name, seconds / 4, checked=checked)
    before = server.memory_bytes()
    seen = load(server.url, name, seconds, checked=checked)
    after = server.memory_bytes()
    print(
        f"{len(seen.polls_s)} polls in {seconds:.0f} s: p50 {seen.percentile_ms(0.5):.1f} ms, "
        f"p99 {seen.percentile_ms(0.99):.1f} ms, longest {1000 * max(seen.polls_s):.0f} ms; "
        f"{seen.batches} batches of {ROWS} rows; "
        f"memory {before / 2**20:.0f} to {after / 2**20:.0f} MiB"
    )
    assert seen.errors == []
    assert seen.batches >= SUBMITTERS
    assert not server.api.poll(name).get("done"), "the long batch should have run all the time"
    assert after - before < GROWTH_BYTES
    server.assert_unbroken()


@pytest.mark.parametrize("seconds", [8.0, pytest.param(60.0, marks=pytest.mark.soak)])
def test_pollers_and_submitters(servers: Servers, seconds: float) -> None:
    """50 clients poll, 10 submit, while a batch of 100,000 rows runs."""
    server = servers.start(row_s=0.0008)
    name = server.api.create_from(jsonl([f"row {n}" for n in range(LONG_ROWS)]))
    eventually(lambda: server.api.served(name) > 0)
    pressed(server, name, seconds)


@pytest.mark.engine
@pytest.mark.soak
def test_pollers_and_submitters_beside_the_real_engine(servers: Servers) -> None:
    """The same while the real model keeps every core busy."""
    server = servers.start(engine="local")
    name = server.api.create_from(jsonl([f"a text of row {n} " * 10 for n in range(LONG_ROWS)]))
    eventually(lambda: server.api.served(name) > 0)
    pressed(server, name, 60.0, checked=False)


def test_a_large_download_takes_no_memory_and_holds_no_one_up(servers: Servers) -> None:
    """Results of 100,000 rows stream from the disk, to clients that stop reading too."""
    server = servers.start()
    operation = server.api.finished(
        server.api.create_from(jsonl([f"row {n}" for n in range(LONG_ROWS)]))
    )
    before = server.memory_bytes()
    url = f"/download/v1beta/{operation['response']['responsesFile']}:download?alt=media"
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            answer = stack.enter_context(server.api.http.stream("GET", url))
            next(answer.iter_raw(65536))
        assert server.api.poll(operation["name"])["done"]
        assert len(server.api.results(operation)) == LONG_ROWS
        assert server.memory_bytes() - before < GROWTH_BYTES
