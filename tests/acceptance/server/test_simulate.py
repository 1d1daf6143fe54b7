"""`embatch serve --simulate`: each preset does what it says, to google-genai and to our client."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import orjson
import pytest
from google import genai
from google.genai import errors, types
from serving import DIMS, MODEL, Server, Servers, eventually, jsonl, truth

from embatch import Client
from embatch.errors import BatchFailedError, EmbatchError, RateLimitError

pytestmark = pytest.mark.filterwarnings("ignore:batches.create_embeddings")

TEXTS = [f"text {n}" for n in range(300)]
Simulate = Callable[..., Server]


@pytest.fixture
def simulate(servers: Servers) -> Simulate:
    """Starts a server with faults."""

    def started(profile: str, *arguments: str, **more: Any) -> Server:
        return servers.start("--simulate", profile, *arguments, **more)

    return started


def sdk(server: Server) -> genai.Client:
    """The official client."""
    return genai.Client(api_key="unused", http_options={"base_url": server.url})


def batch_of(server: Server, client: genai.Client, display_name: str = "d") -> Any:
    """A batch over an uploaded file, by the official client."""
    file = server.api.upload(jsonl(TEXTS))
    return client.batches.create_embeddings(
        model=MODEL,
        src=types.EmbeddingsBatchJobSource(file_name=file),
        config={"display_name": display_name},
    )


def ended(client: genai.Client, job: Any) -> Any:
    deadline = time.monotonic() + 60
    while not job.done:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        job = client.batches.get(name=job.name)
    return job


def downloaded(client: genai.Client, job: Any) -> list[Any]:
    return [
        orjson.loads(line) for line in client.files.download(file=job.dest.file_name).splitlines()
    ]


def right(row: Any) -> bool:
    """The row bears the vector of its key's text."""
    vector = np.array(row["response"]["embedding"]["values"], dtype=np.float32)
    return vector.tobytes() == truth([TEXTS[int(row["key"][1:])]]).tobytes()


def test_shuffle(simulate: Simulate) -> None:
    """google-genai gets every row once, in another order, under its own key."""
    server = simulate("shuffle")
    client = sdk(server)
    rows = downloaded(client, ended(client, batch_of(server, client)))
    keys = [row["key"] for row in rows]
    assert keys != [f"k{n}" for n in range(300)]
    assert sorted(keys) == sorted(f"k{n}" for n in range(300))
    assert all(right(row) for row in rows)


@pytest.mark.parametrize(
    ("preset", "counts"),
    [("missing-rows", {0: 30, 1: 270}), ("doubled-rows", {1: 270, 2: 30})],
)
def test_missing_and_doubled_rows(simulate: Simulate, preset: str, counts: dict[int, int]) -> None:
    """A tenth of the rows, in the file that google-genai downloads."""
    server = simulate(preset)
    client = sdk(server)
    rows = downloaded(client, ended(client, batch_of(server, client)))
    seen = Counter(row["key"] for row in rows)
    assert Counter(seen[f"k{n}"] for n in range(300)) == counts
    assert all(right(row) for row in rows)


def test_row_errors(simulate: Simulate) -> None:
    """Some for good, some the first time only: a second batch of the same texts has fewer."""
    server = simulate("row-errors")
    client = sdk(server)
    first, second = (
        [row.get("error", {}).get("code") for row in downloaded(client, ended(client, made))]
        for made in (batch_of(server, client) for _ in range(2))
    )
    good_for_ever = [n for n, code in enumerate(first) if code == 3]
    assert [second[n] for n in good_for_ever] == [3] * len(good_for_ever)
    passing = [n for n, code in enumerate(first) if code == 14]
    assert passing
    assert sum(second[n] == 14 for n in passing) < len(passing)


def test_quota(simulate: Simulate) -> None:
    """A 429 with a Help link alone, no RetryInfo and no Retry-After; both clients name it."""
    server = simulate("quota")
    client = sdk(server)
    refused: list[errors.ClientError] = []
    made = 0
    for _ in range(12):
        try:
            client.batches.create_embeddings(
                model=MODEL,
                src=types.EmbeddingsBatchJobSource(
                    inlined_requests=types.EmbedContentBatch(contents=["a"])
                ),
            )
            made += 1
        except errors.ClientError as error:
            refused.append(error)
    assert made
    assert refused
    assert made == len(server.api.call("GET", "/v1/batches")["operations"])
    for error in refused:
        assert (error.code, error.status) == (429, "RESOURCE_EXHAUSTED")
        details = error.details["error"]["details"]
        assert [one["@type"] for one in details] == ["type.googleapis.com/google.rpc.Help"]
        assert "retry-after" not in error.response.headers
    with Client(auth="gemini", base_url=server.url, api_key="x") as own:
        met = [error for error in (submitted(own) for _ in range(12)) if error is not None]
    assert met
    assert {error.retry_after_s for error in met} == {None}


def submitted(own: Client) -> RateLimitError | None:
    """A batch of one text; the refusal, if it is one."""
    try:
        own.async_batch_embed_contents(["a"], display_name="d", output_dimensionality=DIMS)
    except RateLimitError as error:
        return error
    return None


def test_unavailable(simulate: Simulate) -> None:
    """500, 503 and 504 all come; a 504 of a create took effect."""
    server = simulate("unavailable")
    seen: Counter[int] = Counter()
    created = 0
    body = json.loads(
        '{"batch":{"inputConfig":{"requests":{"requests":'
        '[{"request":{"content":{"parts":[{"text":"a"}]}}}]}}}}'
    )
    for _ in range(60):
        answer = server.api.http.post(f"/v1/models/{MODEL}:asyncBatchEmbedContent", json=body)
        seen[answer.status_code] += 1
        created += answer.status_code in (200, 504)
    assert set(seen) == {200, 500, 503, 504}
    while (listed := server.api.http.get("/v1/batches?pageSize=100")).status_code != 200:
        pass
    assert len(listed.json()["operations"]) == created
    server.assert_unbroken()


def test_dropped_connections(simulate: Simulate) -> None:
    """Each create either exists afterwards or does not, and both happen without an answer."""
    server = simulate("dropped-connections")
    lost, known = 0, set()
    body = {"batch": {"inputConfig": {"requests": {"requests": [
        {"request": {"content": {"parts": [{"text": "a"}]}}}]}}}}  # fmt: skip
    for _ in range(60):
        try:
            made = server.api.http.post(f"/v1/models/{MODEL}:asyncBatchEmbedContent", json=body)
            known.add(made.json()["name"])
        except httpx2.TransportError:
            lost += 1
    listed = retried(lambda: server.api.http.get("/v1/batches?pageSize=100").json()["operations"])
    there = {one["name"] for one in listed}
    assert known < there
    assert 0 < len(there - known) < lost
    struck = strikes(server)
    assert struck["reset_before"] > 0
    assert struck["reset_after"] > 0
    server.assert_unbroken()


def retried(call: Callable[[], Any]) -> Any:
    while True:
        try:
            return call()
        except httpx2.TransportError:
            continue


def strikes(server: Server) -> Counter[str]:
    """How often each kind struck, from /metrics."""
    found: Counter[str] = Counter()
    for line in server.api.http.get("/metrics").text.splitlines():
        if line.startswith("embatch_serve_faults_struck_total{"):
            found[line.split('kind="')[1].split('"')[0]] += round(float(line.split()[-1]))
    return found


def test_dropped_connections_are_survived(simulate: Simulate) -> None:
    """Our client goes on with uploads and finds the batch whose create lost its answer."""
    server = simulate("dropped-connections", "--seed", "2")
    with Client(auth="gemini", base_url=server.url, api_key="x") as own:
        for attempt in range(10):
            try:
                batch = own.async_batch_embed_contents(
                    TEXTS, display_name=f"d{attempt}", output_dimensionality=DIMS
                )
                break
            except EmbatchError:
                continue  # nothing was made: the create was lost before it took effect
        batch = own.await_batch_completion(batch, poll_interval=0.1, timeout=60)
        matrix = own.get_batch_embeddings(batch).to_numpy()
    assert matrix.tobytes() == truth(TEXTS).tobytes()


def test_stuck(simulate: Simulate) -> None:
    """RUNNING with all rows pending, though all is computed, until it is cancelled."""
    server = simulate("stuck")
    client = sdk(server)
    job = batch_of(server, client)
    metric = "embatch_serve_rows_embedded_total 300.0"
    eventually(lambda: metric in server.api.http.get("/metrics").text)
    time.sleep(0.3)
    assert client.batches.get(name=job.name).state == types.JobState.JOB_STATE_RUNNING
    client.batches.cancel(name=job.name)
    assert ended(client, job).state == types.JobState.JOB_STATE_CANCELLED


def test_expired(simulate: Simulate) -> None:
    """No results; our client says so."""
    server = simulate("expired")
    client = sdk(server)
    job = ended(client, batch_of(server, client))
    assert job.state == types.JobState.JOB_STATE_EXPIRED
    assert job.dest is None or not job.dest.file_name
    own = Client(auth="gemini", base_url=server.url, api_key="x")
    with own, pytest.raises(BatchFailedError):
        own.get_batch_embeddings(job.name)


def test_partial_cancel(simulate: Simulate) -> None:
    """Half of the rows, in input order, and our client knows which ones are not there."""
    server = simulate("partial-cancel")
    with Client(auth="gemini", base_url=server.url, api_key="x") as own:
        batch = own.async_batch_embed_contents(TEXTS, display_name="d", output_dimensionality=DIMS)
        own.cancel_batch(batch.name)
        batch = own.await_batch_completion(batch, poll_interval=0.1, timeout=30)
        assert batch.state == "cancelled"
        results = own.get_batch_embeddings(batch)
    assert [index for index, _ in results.failed_responses] == list(range(150, 300))
    assert len(results.successful_responses) == 150


def test_slow(simulate: Simulate) -> None:
    """A call takes half a second, and a batch is PENDING for a while."""
    server = simulate("slow")
    answer = server.api.http.get("/v1/models")
    assert answer.elapsed.total_seconds() >= 0.5
    name = server.api.create_from(jsonl(TEXTS))
    assert server.api.poll(name)["metadata"]["state"] == "BATCH_STATE_PENDING"


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_bad_day_is_survived(simulate: Simulate, seed: int) -> None:
    """Every row has its own vector or a named error, whatever happened on the way."""
    server = simulate("bad-day", "--seed", str(seed))
    with Client(auth="gemini", base_url=server.url, api_key="x") as own:
        batch = own.async_batch_embed_contents(TEXTS, display_name="d", output_dimensionality=DIMS)
        batch = own.await_batch_completion(batch, poll_interval=0.1, timeout=60)
        results = own.get_batch_embeddings(batch)
        assert len(own.embed_contents(TEXTS[:5], output_dimensionality=DIMS)) == 5
        source = Path(server.log.parent, "rows.jsonl")
        source.write_bytes(jsonl(TEXTS))
        again = own.create_batch_from_file(source, display_name="f", model=MODEL)
        again = own.await_batch_completion(again, poll_interval=0.1, timeout=60)
        own.get_batch_embeddings(again)
    assert results.aligned
    failed = dict(results.failed_responses)
    assert len(failed) <= 6
    assert {error.code for error in failed.values()} <= {"missing", "unavailable"}
    right_ones = truth(TEXTS)
    for index, embedding in enumerate(results):
        if index not in failed:
            assert embedding.values.tobytes() == right_ones[index].tobytes()
    assert strikes(server).total() > 5
    server.assert_unbroken()


def lived(server: Server) -> tuple[list[int], list[list[str]]]:
    """What a fixed row of calls meets: statuses, and keys of results in order."""
    file = server.api.upload(jsonl(TEXTS))
    body = {"batch": {"inputConfig": {"fileName": file}}}
    answers = [
        server.api.http.post(f"/v1/models/{MODEL}:asyncBatchEmbedContent", json=body)
        for _ in range(8)
    ]
    results = [
        [orjson.loads(line)["key"] for line in server.api.results(server.api.finished(name))]
        for name in (made.json()["name"] for made in answers if made.status_code == 200)
    ]
    return [made.status_code for made in answers], results


def test_a_day_is_repeatable(simulate: Simulate) -> None:
    """By its seed, on another folder too; another seed gives another day."""
    profile = "quota,shuffle,missing-rows"
    first, again, other = (
        lived(simulate(profile, "--seed", seed, data=f"data-{number}"))
        for number, seed in enumerate(("7", "7", "8"))
    )
    assert set(first[0]) == {200, 429}
    assert again == first
    assert other != first


def test_what_befell_a_batch_survives_kill_9(simulate: Simulate) -> None:
    """A killed server shows the same spoiled results again, and what is stuck stays stuck."""
    server = simulate("shuffle,missing-rows")
    operation = server.api.finished(server.api.create_from(jsonl(TEXTS)))
    before = server.api.results(operation)
    slow = server.api.create_from(jsonl(TEXTS))
    server.kill()
    server = simulate("shuffle,missing-rows")
    assert server.api.results(server.api.poll(operation["name"])) == before
    keys = [orjson.loads(line)["key"] for line in server.api.results(server.api.finished(slow))]
    assert len(keys) == 270
    assert keys != sorted(keys, key=lambda key: int(key[1:]))


def test_a_file_of_faults(simulate: Simulate, tmp_path: Path) -> None:
    """Faults of one's own, with their seed; the start tells of both, loudly."""
    day = tmp_path / "my-day.json"
    fault = {"kind": "reset_after", "match": {"route": "batches.create"}, "times": 1}
    day.write_text(json.dumps({"seed": 5, "faults": [fault]}))
    server = simulate(str(day))
    assert (server.ready["simulate"], server.ready["seed"]) == ([str(day)], 5)
    with Client(auth="gemini", base_url=server.url, api_key="x") as own:
        batch = own.async_batch_embed_contents(["a"], display_name="d", output_dimensionality=DIMS)
        own.await_batch_completion(batch, poll_interval=0.1, timeout=60)
    assert strikes(server) == {"reset_after": 1}
    assert len(server.api.call("GET", "/v1/batches")["operations"]) == 1


def first_lines(command: list[str]) -> Iterator[str]:
    """What a server says on standard error and output until it listens."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        yield process.stdout.readline()
        process.terminate()
        yield process.stderr.read()


def test_the_start_says_it_loudly(tmp_path: Path) -> None:
    """One line on standard output as ever; the warning beside it."""
    command = [sys.executable, "-m", "embatch", "serve", "--engine", "fake", "--port", "0"]
    out, err = first_lines([*command, "--data", str(tmp_path), "--simulate", "stuck"])
    assert out.startswith("embatch serve: http://127.0.0.1:")
    assert "FAULTS ARE SIMULATED on purpose (stuck; seed 0)" in err


def test_a_fair_server_loads_nothing_of_it() -> None:
    """Neither the simulation nor the fake cloud, down to the application."""
    program = (
        "import sys, embatch.server.run, embatch.server.app, embatch.cli.serve\n"
        "print([name for name in sys.modules"
        " if name.startswith(('embatch.testing', 'embatch.server.simulation'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
