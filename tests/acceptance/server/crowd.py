"""Many clients of one server at once, in processes of their own: nothing here delays a poll."""

import asyncio
import itertools
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
import orjson
from serving import MODEL, truth

POLLERS, SUBMITTERS = 50, 10
POLL_EVERY_S = 0.2
"""How often each client looks: 250 looks a second together."""
ROWS = 100
"""Of each submitted batch."""


@dataclass
class Seen:
    """What clients met."""

    polls_s: list[float] = field(default_factory=list)
    """How long each look took."""
    batches: int = 0
    """Made, finished, checked and deleted."""
    errors: list[str] = field(default_factory=list)

    def percentile_ms(self, share: float) -> float:
        """Of the times of looks."""
        return 1000 * statistics.quantiles(self.polls_s, n=1000)[round(share * 1000) - 1]


async def _poll(url: str, name: str, who: int, until: float, seen: Seen) -> None:
    """Looks at one batch again and again, over a bare socket, which costs little."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"GET /v1beta/{name} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    await asyncio.sleep(POLL_EVERY_S * who / POLLERS)
    while time.monotonic() < until:
        begun = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        size = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
        body = await reader.readexactly(int(size))
        seen.polls_s.append(time.perf_counter() - begun)
        if not head.startswith(b"HTTP/1.1 200 ") or b'"name":' not in body:
            seen.errors.append(repr(head + body))
        await asyncio.sleep(POLL_EVERY_S)
    writer.close()


async def _submit(
    http: httpx2.AsyncClient, who: int, until: float, checked: bool, seen: Seen
) -> None:
    """Makes batches one after the other, looks at every vector, deletes them."""
    for turn in itertools.count():
        if time.monotonic() >= until:
            return
        texts = [f"client {who} batch {turn} row {n}" for n in range(ROWS)]
        requests = [{"request": {"content": {"parts": [{"text": text}]}}} for text in texts]
        answer = await http.post(
            f"/v1beta/models/{MODEL}:asyncBatchEmbedContent",
            json={"batch": {"inputConfig": {"requests": {"requests": requests}}, "priority": 1}},
        )
        while answer.status_code == 200 and not (operation := orjson.loads(answer.content)).get(
            "done"
        ):
            await asyncio.sleep(POLL_EVERY_S)
            answer = await http.get(f"/v1beta/{operation['name']}")
        if answer.status_code != 200:
            seen.errors.append(answer.text)
            return
        _check(operation, texts, checked, seen)
        await http.delete(f"/v1beta/{operation['name']}")


def _check(operation: dict[str, Any], texts: list[str], checked: bool, seen: Seen) -> None:
    items = operation["response"]["inlinedResponses"]["inlinedResponses"]
    values = [item["response"]["embedding"]["values"] for item in items]
    if len(values) != len(texts) or (
        checked and np.array(values, dtype=np.float32).tobytes() != truth(texts).tobytes()
    ):
        seen.errors.append(f"{operation['name']} has wrong vectors")
    seen.batches += 1


async def _poll_all(url: str, name: str, until: float) -> Seen:
    seen = Seen()
    await asyncio.gather(*(_poll(url, name, who, until, seen) for who in range(POLLERS)))
    return seen


async def _submit_all(url: str, until: float, checked: bool) -> Seen:
    seen = Seen()
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        await asyncio.gather(
            *(_submit(http, who, until, checked, seen) for who in range(SUBMITTERS))
        )
    return seen


def poll_all(url: str, name: str, seconds: float) -> Seen:
    """50 clients look at the batch `name`."""
    return asyncio.run(_poll_all(url, name, time.monotonic() + seconds))


def submit_all(url: str, seconds: float, checked: bool) -> Seen:
    """10 clients make batches; `checked` holds their vectors against the fake engine's."""
    return asyncio.run(_submit_all(url, time.monotonic() + seconds, checked))


def load(url: str, name: str, seconds: float, *, checked: bool = True) -> Seen:
    """All clients at once."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as processes:
        polled = processes.submit(poll_all, url, name, seconds)
        submitted = processes.submit(submit_all, url, seconds, checked)
        seen = polled.result()
        made = submitted.result()
    return Seen(seen.polls_s, made.batches, seen.errors + made.errors)
