"""A batch through `embatch serve` against the bare engine on the same texts.

Server and bare engine are processes that take turns. A round of the server is what a user waits
for: texts to a file, its upload, the batch, the download, vectors in the order of the texts.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpus import chunks
from benchmarks.measuring import ROOT, Contender, Figures, Options, cosines, environment, machine
from embatch.client import Client
from embatch.config import CloudSettings
from embatch.local.models import find_model

DESCRIPTION = "upload, batch and download through embatch serve against the bare engine"
LOOK_EVERY_S = 0.25
STOP_S = 60.0
TIMEOUT_S = 3600.0


def measure(options: Options) -> Figures:
    """Interleaves batches through a server with calls of a bare engine."""
    texts = chunks(options.texts)
    served: list[float] = []
    served_cpu: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts_file = folder / "texts.json"
        texts_file.write_text(json.dumps(texts))
        vectors_file = folder / "vectors.npy"
        with (
            _bare_engine(texts_file) as bare,
            _server(folder / "data") as (pid, url, model),
            Client(auth="gemini", base_url=url, settings=CloudSettings()) as client,
        ):
            precision = str(bare.ready["precision"])
            vectors = _through_the_server(client, model, texts[:64])[1]
            for number in range(options.rounds):
                saving = {} if number else {"save": str(vectors_file)}
                answer = bare.ask(do="round", **saving)
                bare.seconds.append(answer["seconds"])
                bare.cpu_seconds.append(answer["cpu_seconds"])
                used = _cpu_s(pid)
                seconds, vectors = _through_the_server(client, model, texts)
                served.append(seconds)
                served_cpu.append(_cpu_s(pid) - used)
                print(
                    f"round {number + 1}: bare {bare.seconds[-1]:.2f} s, served {seconds:.2f} s",
                    file=sys.stderr,
                )
            peak_mb = _peak_mb(pid)
        against = cosines(vectors, np.load(vectors_file))
    ratios = [one / other for one, other in zip(bare.seconds, served, strict=True)]
    # Processor time moves less than the clock on a machine that others use too.
    cpu_ratios = [one / other for one, other in zip(bare.cpu_seconds, served_cpu, strict=True)]
    return {
        **machine(),
        "texts": len(texts),
        "rounds": options.rounds,
        "precision": precision,
        "bare_texts_per_s": round(len(texts) / statistics.median(bare.seconds), 1),
        "served_texts_per_s": round(len(texts) / statistics.median(served), 1),
        "served_over_bare_rate": round(statistics.median(ratios), 3),
        "served_over_bare_rate_least": round(min(ratios), 3),
        "served_over_bare_rate_by_cpu": round(statistics.median(cpu_ratios), 3),
        "server_peak_mb": round(peak_mb),
        "cosine_min": round(float(against.min()), 5),
    }


def _bare_engine(texts_file: Path) -> Contender:
    folder = str(find_model(None).path)
    command = [sys.executable, "-m", "benchmarks.contenders", "embatch_auto", folder]
    return Contender("bare engine", [*command, str(texts_file)])


@contextmanager
def _server(data: Path) -> Iterator[tuple[int, str, str]]:
    """A server over the real engine: its process, where it listens, and its model."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "embatch", "serve", "--json", "--port", "0"),
            *("--data", str(data)),
        ],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if "BENCH_VERBOSE" not in os.environ else None,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"embatch serve ended with exit code {process.wait()}")
        ready = json.loads(line)
        yield process.pid, ready["url"], ready["model"]
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)
    finally:
        process.kill()
        process.communicate()


def _through_the_server(
    client: Client, model: str, texts: list[str]
) -> tuple[float, NDArray[np.float32]]:
    """Seconds from texts to vectors, and the vectors."""
    start = time.perf_counter()
    batch = client.async_batch_embed_contents(texts, display_name="benchmark", model=model)
    client.await_batch_completion(batch, poll_interval=LOOK_EVERY_S, timeout=TIMEOUT_S)
    found = client.get_batch_embeddings(batch)
    vectors = found.to_numpy()
    seconds = time.perf_counter() - start
    if found.failed_responses or len(vectors) != len(texts):
        failed = len(found.failed_responses)
        raise SystemExit(f"{failed} of {len(texts)} texts failed: {found.failed_responses[:1]}")
    client.delete_batch(batch)
    return seconds, vectors


def _cpu_s(pid: int) -> float:
    """Processor seconds that a process and this one, the client, have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    server_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return server_s + time.process_time()


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def table(figures: Figures) -> str:
    """The figures as people read them."""
    return (
        f"{figures['texts']} texts, {figures['precision']}, medians of {figures['rounds']} rounds: "
        f"bare engine {figures['bare_texts_per_s']} texts/s, through the server "
        f"{figures['served_texts_per_s']} texts/s, ratio {figures['served_over_bare_rate']} "
        f"(least {figures['served_over_bare_rate_least']}, by processor time "
        f"{figures['served_over_bare_rate_by_cpu']}); server peak "
        f"{figures['server_peak_mb']} MB; cosine at least {figures['cosine_min']}"
    )
