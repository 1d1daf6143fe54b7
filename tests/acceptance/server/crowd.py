"""Many clients of one server at once, in processes of their own: nothing here delays a poll."""

import asyncio
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
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


Client = Callable[[httpx2.AsyncClient, int, float, Seen], Awaitable[None]]


async def _poll(name: str, http: httpx2.AsyncClient, who: int, until: float, seen: Seen) -> None:
    """Looks at one batch again and again."""
    await asyncio.sleep(POLL_EVERY_S * who / POLLERS)
    while time.monotonic() < until:
        begun = time.perf_counter()
        answer = await http.get(f"/v1beta/{name}")
        seen.polls_s.append(time.perf_counter() - begun)
        if answer.status_code != 200:
            seen.errors.append(answer.text)
        await asyncio.sleep(POLL_EVERY_S)


async def _submit(
    checked: bool, http: httpx2.AsyncClient, who: int, until: float, seen: Seen
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


async def _all(url: str, clients: int, seconds: float, client: Client) -> Seen:
    seen = Seen()
    until = time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        await asyncio.gather(*(client(http, who, until, seen) for who in range(clients)))
    return seen


def poll_all(url: str, name: str, seconds: float) -> Seen:
    """50 clients look at the batch `name`."""
    return asyncio.run(_all(url, POLLERS, seconds, partial(_poll, name)))


def submit_all(url: str, checked: bool, seconds: float) -> Seen:
    """10 clients make batches; `checked` holds their vectors against the fake engine's."""
    return asyncio.run(_all(url, SUBMITTERS, seconds, partial(_submit, checked)))


def load(url: str, name: str, seconds: float, *, checked: bool = True) -> Seen:
    """All clients at once."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as processes:
        polled = processes.submit(poll_all, url, name, seconds)
        submitted = processes.submit(submit_all, url, checked, seconds)
        seen = polled.result()
        made = submitted.result()
    return Seen(seen.polls_s, made.batches, seen.errors + made.errors)
