"""Reading batch results to float32: embatch, google-genai's way, and orjson; and to Parquet.

Each route runs in a process of its own, rounds interleaved, medians reported; peak memory is the
process's. google-genai's way: its own inline path is `client.batches.get()` into its types; for
files it downloads bytes, and its users parse lines with json into its types.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT, Figures, Options, environment, machine

DESCRIPTION = "reading results to float32 and Parquet against google-genai, orjson and json"
PIECE_BYTES = 1 << 16
ROWS_PER_TEXT = 5
"""Rows for each text that the command line asks for: 10,000 unless said."""
PARQUET_BYTES_PER_TEXT = 1 << 19
"""1 GiB of result file unless said."""
MOST_PARQUET_ROUNDS = 2
"""A round of json lists takes minutes and gigabytes."""


def write_results(path: Path, rows: int, dims: int) -> None:
    """A result file as the Gemini API writes it."""
    values = np.random.default_rng(0).normal(scale=0.02, size=(64, dims)).astype(np.float32)
    arrays = [json.dumps([float(str(value)) for value in row]) for row in values]
    with path.open("w") as file:
        for row in range(rows):
            usage = f'"usageMetadata":{{"promptTokenCount":{row % 90}}}'
            response = f'{{"embedding":{{"values":{arrays[row % 64]}}},{usage}}}'
            file.write(f'{{"key":"9deb9595d13a:{row}","response":{response}}}\n')


def write_inline(path: Path, rows: int, dims: int) -> None:
    """A finished inline batch's document, every vector twice."""
    values = np.random.default_rng(0).normal(scale=0.02, size=(64, dims)).astype(np.float32)
    arrays = [json.dumps([float(str(value)) for value in row]) for row in values]
    listed = ",".join(
        f'{{"metadata":{{"key":"9deb9595d13a:{row}"}},'
        f'"response":{{"embedding":{{"values":{arrays[row % 64]}}}}}}}'
        for row in range(rows)
    )
    output = f'{{"inlinedResponses":{{"inlinedResponses":[{listed}]}}}}'
    metadata = (
        '{"model":"models/gemini-embedding-001","displayName":"x",'
        f'"state":"BATCH_STATE_SUCCEEDED","output":{output}}}'
    )
    path.write_text(f'{{"name":"batches/x","done":true,"metadata":{metadata},"response":{output}}}')


def _pieces(path: Path) -> Any:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def embatch_file(path: Path) -> np.ndarray:
    """embatch: the stream to blocks, the blocks to one matrix."""
    from embatch.client.results import read_blocks

    return np.concatenate([block.vectors for block in read_blocks(_pieces(path))])


def embatch_stream(path: Path) -> int:
    """embatch: the stream to blocks, each dropped after use."""
    from embatch.client.results import read_blocks

    return sum(len(block.keys) for block in read_blocks(_pieces(path)))


def orjson_file(path: Path) -> np.ndarray:
    """orjson by line."""
    import orjson

    with path.open("rb") as file:
        rows = [orjson.loads(line)["response"]["embedding"]["values"] for line in file]
    return np.array(rows, dtype=np.float32)


def genai_file(path: Path) -> np.ndarray:
    """google-genai: the download's bytes, json by line, its types, then numpy."""
    from google.genai import types

    content = path.read_bytes()
    rows = []
    for line in content.splitlines():
        response = json.loads(line)["response"]["embedding"]
        rows.append(types.ContentEmbedding.model_validate(response).values)
    return np.array(rows, dtype=np.float32)


def embatch_inline(path: Path) -> np.ndarray:
    """embatch: rows cut out of the document as it streams by."""
    from embatch.client.cutter import DocumentCutter
    from embatch.client.results import BlockBuilder

    cutter, builder = DocumentCutter(), BlockBuilder()
    blocks = [builder.add(row) for piece in _pieces(path) for row in cutter.feed(piece)]
    return np.concatenate([one.block.vectors for one in [*blocks, builder.finish()] if one])


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
    """embatch's blocks to a FixedSizeList column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from embatch.client.results import read_blocks

    writer, rows = None, 0
    for block in read_blocks(_pieces(path)):
        dims = block.vectors.shape[1]
        column = pa.FixedSizeListArray.from_arrays(pa.array(block.vectors.reshape(-1)), dims)
        batch = pa.record_batch({"key": pa.array(block.keys), "embedding": column})
        if writer is None:
            writer = pq.ParquetWriter(
                f"{path}.parquet", batch.schema, use_dictionary=False, write_statistics=False
            )
        writer.write_batch(batch)
        rows += len(batch)
    if writer is not None:
        writer.close()
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
        *(embatch_file, embatch_stream, orjson_file, genai_file),
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


def measure(options: Options) -> Figures:
    """All figures by case and route; `times_embatch` is how often slower than embatch."""
    rows, rounds = options.texts * ROWS_PER_TEXT, options.rounds
    figures: Figures = {**machine(), "rows": rows, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        warm, path = Path(folder) / "warm", Path(folder) / "rows"
        for dims in (768, 3072):
            write_results(path, rows, dims)
            write_results(warm, 2, dims)
            routes = ("embatch_file", "embatch_stream", "orjson_file", "genai_file")
            figures |= _measure(f"file_{dims}", routes, path, warm, rounds)
        write_inline(path, rows, 768)
        write_inline(warm, 2, 768)
        routes = ("embatch_inline", "orjson_inline", "genai_inline")
        figures |= _measure("inline_768", routes, path, warm, rounds)
        write_results(path, 2, 3072)
        row_bytes = path.stat().st_size // 2
        write_results(path, max(options.texts * PARQUET_BYTES_PER_TEXT // row_bytes, 1), 3072)
        write_results(warm, 2, 3072)
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
