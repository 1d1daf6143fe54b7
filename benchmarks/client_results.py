"""Reading batch results to float32: embatch, google-genai's way, and orjson; and to Parquet.

Each route runs in a process of its own, rounds interleaved, medians reported; peak memory is the
process's. embatch's routes are the calls that users make, down to its HTTP client, whose transport
reads a file instead of a socket. google-genai's way: its own inline path is what
`client.batches.get()` does with the body; for files it downloads bytes, here read from the disk at
once, and its users parse the lines with json into its types. The routes named http do the same
over a socket, from a server in another process.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT, Figures, Options, environment, machine

DESCRIPTION = "reading results to float32 and Parquet against google-genai, orjson and json"
PIECE_BYTES = 1 << 16
"""What a socket gives at once."""
ROWS_PER_TEXT = 5
"""Rows for each text that the command line asks for: 10,000 unless said."""
PARQUET_BYTES_PER_TEXT = 1 << 19
"""1 GiB of result file unless said."""
GROUP_BLOCKS = 3
"""Blocks written to Parquet at once: 6 MB of vectors."""
WARM_ROWS = 2
"""Rows that each route reads before it is measured: imports and connections are not."""
MOST_PARQUET_ROUNDS = 2
"""A round of json lists takes minutes and gigabytes."""


def _label(rows: int, dims: int) -> Any:
    from embatch.types.label import Label

    return Label(display_name="bench", tag="5f0c9ab3d17e", rows=rows, dims=dims)


def _arrays(dims: int) -> list[str]:
    values = np.random.default_rng(0).normal(scale=0.02, size=(64, dims)).astype(np.float32)
    return [json.dumps([float(str(value)) for value in row]) for row in values]


def write_results(path: Path, rows: int, dims: int) -> None:
    """A result file as the Gemini API writes it; its batch's label stands beside it."""
    from embatch.types.label import wire_key

    label, arrays = _label(rows, dims).text, _arrays(dims)
    beside(path, "label").write_text(label)
    with path.open("w") as file:
        for row in range(rows):
            usage = f'"usageMetadata":{{"promptTokenCount":{row % 90}}}'
            response = f'{{"embedding":{{"values":{arrays[row % 64]}}},{usage}}}'
            file.write(f'{{"key":"{wire_key(label, row)}","response":{response}}}\n')


def write_inline(path: Path, rows: int, dims: int) -> None:
    """A finished inline batch's document, every vector twice."""
    from embatch.types.label import wire_key

    label, arrays = _label(rows, dims).text, _arrays(dims)
    beside(path, "label").write_text(label)
    listed = ",".join(
        f'{{"metadata":{{"key":"{wire_key(label, row)}"}},'
        f'"response":{{"embedding":{{"values":{arrays[row % 64]}}}}}}}'
        for row in range(rows)
    )
    output = f'{{"inlinedResponses":{{"inlinedResponses":[{listed}]}}}}'
    metadata = (
        f'{{"model":"models/gemini-embedding-001","displayName":"{label}",'
        f'"state":"BATCH_STATE_SUCCEEDED","output":{output}}}'
    )
    path.write_text(f'{{"name":"batches/x","done":true,"metadata":{metadata},"response":{output}}}')


def beside(path: Path, what: str) -> Path:
    """Where something about a file of results is kept."""
    return path.with_name(f"{path.name}.{what}")


def _batch(path: Path, **output: Any) -> Any:
    """The finished batch whose results the file holds."""
    from embatch.types.batch import BatchOutput, EmbedContentBatch
    from embatch.types.state import JobState

    return EmbedContentBatch(
        name="batches/x",
        display_name="bench",
        label=beside(path, "label").read_text(),
        model="gemini-embedding-001",
        state=JobState.COMPLETED,
        output=BatchOutput(**output),
    )


def _open(path: Path) -> tuple[Any, Any]:
    """The Gemini API as a client sees it, and a performer that gets every answer from the file."""
    import httpx2

    from embatch.client.auth import NoAuthorization
    from embatch.client.calls import Calls
    from embatch.client.flow import Thread
    from embatch.client.gemini import Gemini
    from embatch.transport import Transport

    class Body(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            with path.open("rb") as file:
                while piece := file.read(PIECE_BYTES):
                    yield piece

    class FromFile(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            del request
            size = {"content-length": str(path.stat().st_size)}
            return httpx2.Response(200, headers=size, stream=Body())

    calls = Calls(base_url="http://file", authorization=NoAuthorization())
    return Gemini(calls=calls, version="v1beta"), Thread(Transport(inner=FromFile()))


def embatch_file(path: Path) -> np.ndarray:
    """embatch: get_batch_embeddings(batch).to_numpy(), aligned by key."""
    from embatch.client.cloud import read_embeddings
    from embatch.client.flow import drive

    cloud, performer = _open(path)
    batch = _batch(path, file="files/batch-x")
    return drive(read_embeddings(cloud, batch, None), performer).to_numpy()


def _blocks(path: Path) -> Iterator[Any]:
    from embatch.client.cloud import emit_blocks
    from embatch.client.flow import stream

    cloud, performer = _open(path)
    return stream(emit_blocks(cloud, _batch(path, file="files/batch-x")), performer)


def embatch_stream(path: Path) -> int:
    """embatch: read_batch_results(batch), each block dropped after use."""
    return sum(len(block.keys) for block in _blocks(path))


def embatch_http(path: Path) -> np.ndarray:
    """embatch: the same call, by the batch's name, over a socket."""
    from embatch import Client

    told = json.loads(beside(path, "http").read_text())
    with Client(api_key=told["key"], base_url=told["url"]) as client:
        return client.get_batch_embeddings(told["name"]).to_numpy()


def genai_http(path: Path) -> np.ndarray:
    """google-genai: its download over a socket, then as without one."""
    from google import genai
    from google.genai import types

    told = json.loads(beside(path, "http").read_text())
    options = types.HttpOptions(base_url=told["url"])
    with genai.Client(api_key=told["key"], http_options=options) as client:
        content = client.files.download(file=told["name"].replace("batches/", "files/batch-"))
    return _genai_rows(content)


def orjson_file(path: Path) -> np.ndarray:
    """orjson by line."""
    import orjson

    with path.open("rb") as file:
        rows = [orjson.loads(line)["response"]["embedding"]["values"] for line in file]
    return np.array(rows, dtype=np.float32)


def genai_file(path: Path) -> np.ndarray:
    """google-genai: the download's bytes, json by line, its types, then numpy."""
    return _genai_rows(path.read_bytes())


def _genai_rows(content: bytes) -> np.ndarray:
    from google.genai import types

    rows = []
    for line in content.splitlines():
        response = json.loads(line)["response"]["embedding"]
        rows.append(types.ContentEmbedding.model_validate(response).values)
    return np.array(rows, dtype=np.float32)


def embatch_inline(path: Path) -> np.ndarray:
    """embatch: the same call on a batch in hand; rows are cut out as the document streams by."""
    from embatch.client.cloud import read_embeddings
    from embatch.client.flow import drive

    cloud, performer = _open(path)
    return drive(read_embeddings(cloud, _batch(path, inlined=True), None), performer).to_numpy()


def orjson_inline(path: Path) -> np.ndarray:
    """orjson: the whole document."""
    import orjson

    document = orjson.loads(path.read_bytes())
    listed = document["response"]["inlinedResponses"]["inlinedResponses"]
    return np.array([one["response"]["embedding"]["values"] for one in listed], dtype=np.float32)


def genai_inline(path: Path) -> np.ndarray:
    """google-genai: what its get() does with the body."""
    from google.genai import types
    from google.genai.batches import _BatchJob_from_mldev

    document = json.loads(path.read_bytes())
    mapped = _BatchJob_from_mldev(document)
    job = types.BatchJob._from_response(response=mapped, kwargs={})  # noqa: SLF001 - what get() calls
    listed = job.dest.inlined_embed_content_responses
    return np.array([one.response.embedding.values for one in listed], dtype=np.float32)


def embatch_parquet(path: Path) -> int:
    """embatch: the blocks of read_batch_results(batch) to a FixedSizeList column, some at once;
    while they are written, which leaves Python alone, the next ones are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(blocks: list[Any]) -> pa.Table:
        keys = pa.chunked_array([pa.array(block.keys) for block in blocks])
        vectors = [
            pa.FixedSizeListArray.from_arrays(
                pa.array(block.vectors.reshape(-1)), block.vectors.shape[1]
            )
            for block in blocks
        ]
        return pa.table({"key": keys, "embedding": pa.chunked_array(vectors)})

    rows, blocks = 0, _blocks(path)
    with ThreadPoolExecutor(1) as pool, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        written = pool.submit(int)
        while group := list(islice(blocks, GROUP_BLOCKS)):
            made = table(group)
            if writer is None:
                writer = pq.ParquetWriter(
                    f"{path}.parquet",
                    made.schema,
                    use_dictionary=False,
                    write_statistics=False,
                    compression="none",
                )
                stack.enter_context(writer)
            written.result()
            written = pool.submit(writer.write_table, made)
            rows += made.num_rows
        written.result()
    return rows


def lists_parquet(path: Path) -> int:
    """What people write: json to lists, lists to pyarrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open() as file:
        documents = [json.loads(line) for line in file]
    table = pa.table(
        {
            "key": [one["key"] for one in documents],
            "embedding": [one["response"]["embedding"]["values"] for one in documents],
        }
    )
    pq.write_table(table, f"{path}.parquet")
    return table.num_rows


ROUTES = {
    route.__name__: route
    for route in (
        *(embatch_file, embatch_stream, orjson_file, genai_file, embatch_http, genai_http),
        *(embatch_inline, orjson_inline, genai_inline, embatch_parquet, lists_parquet),
    )
}

_CHILD = """
import sys, time
from pathlib import Path
from benchmarks import client_results as bench
route, path = bench.ROUTES[sys.argv[1]], Path(sys.argv[2])
route(Path(sys.argv[3]))
start, cpu_start = time.perf_counter(), time.process_time()
route(path)
seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
print(seconds, cpu_seconds, peak)
"""


def _measure(case: str, routes: tuple[str, ...], path: Path, warm: Path, rounds: int) -> Figures:
    seconds: dict[str, list[float]] = {route: [] for route in routes}
    cpu_seconds: dict[str, list[float]] = {route: [] for route in routes}
    peaks = dict.fromkeys(routes, 0.0)
    for _ in range(rounds):
        for route in routes:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, route, str(path), str(warm)],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            took, cpu_took, peak = map(float, done.stdout.split())
            seconds[route].append(took)
            cpu_seconds[route].append(cpu_took)
            peaks[route] = max(peaks[route], peak)
    figures: Figures = {f"{case}_mb": round(path.stat().st_size / 1e6, 1)}
    for route in routes:
        ratios = zip(seconds[route], seconds[routes[0]], strict=True)
        # Processor time moves less than the clock on a machine that others use too.
        cpu_ratios = zip(cpu_seconds[route], cpu_seconds[routes[0]], strict=True)
        name = f"{case}_{route.partition('_')[0] if route != 'embatch_stream' else 'stream'}"
        figures[f"{name}_s"] = round(statistics.median(seconds[route]), 3)
        figures[f"{name}_peak_mb"] = round(peaks[route])
        figures[f"{name}_cpu_s"] = round(statistics.median(cpu_seconds[route]), 3)
        figures[f"{name}_cpu_times_embatch"] = round(
            statistics.median(one / other for one, other in cpu_ratios), 2
        )
        figures[f"{name}_times_embatch"] = round(
            statistics.median(one / other for one, other in ratios), 2
        )
    return figures


def _measure_http(case: str, path: Path, warm: Path, rows: int, rounds: int) -> Figures:
    from embatch.testing.cloud import CloudProcess

    with CloudProcess() as cloud:
        for place, count in ((path, rows), (warm, WARM_ROWS)):
            label = beside(place, "label").read_text()
            name = cloud.prepare_batch(str(place), rows=count, display_name=label)
            told = {"url": cloud.url, "key": cloud.api_key, "name": name}
            beside(place, "http").write_text(json.dumps(told))
        return _measure(case, ("embatch_http", "genai_http"), path, warm, rounds)


def measure(options: Options) -> Figures:
    """All figures by case and route; `times_embatch` is how often slower than embatch."""
    rows, rounds = options.texts * ROWS_PER_TEXT, options.rounds
    figures: Figures = {**machine(), "rows": rows, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        warm, path = Path(folder) / "warm", Path(folder) / "rows"
        for dims in (768, 3072):
            write_results(path, rows, dims)
            write_results(warm, WARM_ROWS, dims)
            routes = ("embatch_file", "embatch_stream", "orjson_file", "genai_file")
            figures |= _measure(f"file_{dims}", routes, path, warm, rounds)
            figures |= _measure_http(f"http_{dims}", path, warm, rows, rounds)
        write_inline(path, rows, 768)
        write_inline(warm, WARM_ROWS, 768)
        routes = ("embatch_inline", "orjson_inline", "genai_inline")
        figures |= _measure("inline_768", routes, path, warm, rounds)
        write_results(path, WARM_ROWS, 3072)
        row_bytes = path.stat().st_size // WARM_ROWS
        write_results(path, max(options.texts * PARQUET_BYTES_PER_TEXT // row_bytes, 1), 3072)
        write_results(warm, WARM_ROWS, 3072)
        routes = ("embatch_parquet", "lists_parquet")
        figures |= _measure("parquet", routes, path, warm, min(rounds, MOST_PARQUET_ROUNDS))
    return figures


def table(figures: Figures) -> str:
    """The figures as people read them."""
    suffix = "_peak_mb"
    names = [key.removesuffix(suffix) for key in figures if key.endswith(suffix)]
    lines = [
        f"{figures['cpu']}, {figures['cores']} cores; {figures['rows']} rows, Parquet from "
        f"{figures['parquet_mb']} MB; medians of {figures['rounds']} rounds",
        f"{'':20}{'s':>9}{'x embatch':>11}{'cpu s':>9}{'x embatch':>11}{'peak MB':>9}",
    ]
    lines += [
        f"{name:20}{figures[f'{name}_s']:>9}{figures[f'{name}_times_embatch']:>11}"
        f"{figures[f'{name}_cpu_s']:>9}{figures[f'{name}_cpu_times_embatch']:>11}"
        f"{figures[f'{name}_peak_mb']:>9}"
        for name in names
    ]
    return "\n".join(lines)
