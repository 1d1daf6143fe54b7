"""The client's side of a million rows: `embatch run --provider gemini` against a script.

Both read texts from a Parquet file, build, upload and create batches of the same size, download
the results, match them by key, bring them to length 1 and write Parquet; embatch with its journal,
staging, digests and checks, as the command that users type (without probe and audits, which ask
the service for more), the script with google-genai as in `benchmarks.cloud_script`. The service,
in a process of its own, serves results that were made beforehand; its processor time is told apart.
Processor time is that of the command and all processes it starts; memory the sum of their peaks.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cloud_service import VECTORS, prepared_vectors
from benchmarks.measuring import ROOT, Figures, Options, environment, machine

DESCRIPTION = "the client's side of a run on the Gemini API against a script with google-genai"
ROWS_PER_TEXT = 100
"""Rows for each text that the command line asks for: 200,000 unless said."""
BATCH_ROWS = 7_000
DIMS = 768
MOST_ROUNDS = 3
"""A round of the script takes minutes a million rows."""
SAMPLE_S = 0.05
TICKS = os.sysconf("SC_CLK_TCK")


def write_source(path: Path, rows: int) -> None:
    """Product titles of about 45 characters, each with its row's number in front."""
    words = ["steel", "kettle", "brushed", "lid", "1.7 l", "white", "oak", "shelf", "linen", "lamp"]
    with pq.ParquetWriter(path, pa.schema({"id": pa.string(), "text": pa.string()})) as writer:
        for start in range(0, rows, 50_000):
            numbers = range(start, min(start + 50_000, rows))
            texts = [
                f"{n} {' '.join(words[(n // 10**k) % 10] for k in range(6))} no. {n}"
                for n in numbers
            ]
            keys = [f"item-{n}" for n in numbers]
            writer.write_table(pa.table({"id": keys, "text": texts}))


@dataclass
class Measured:
    """What a contender took, a figure a round."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    service_cpu_s: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


class Peaks:
    """Watches the peak memory of a process and of all that it starts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._most_mb = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def total_mb(self) -> float:
        """The most that the peaks of those alive came to, in MB of 2**20 bytes; ends the watch."""
        self._ended.set()
        self._thread.join()
        return self._most_mb

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self._most_mb = max(self._most_mb, sum(map(_peak_mb, _family(self._pid))))


def _family(pid: int) -> list[int]:
    """A process and all below it that live."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(one) for t in threads for one in (t / "children").read_text().split()]
    except OSError:
        return [pid]
    return [pid, *(below for child in children for below in _family(child))]


def _peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    _, found, rest = status.partition("VmHWM:")
    return int(rest.split()[0]) / 1024 if found else 0.0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _embatch(folder: Path, source: Path, url: str) -> list[str]:
    del url
    flags = f"--provider gemini --dims {DIMS} --task-type retrieval_document --key id".split()
    pace = f"--max-batch-items {BATCH_ROWS} --poll-interval 0.2 --audit off --no-probe".split()
    return ["-m", "embatch", "run", str(source), "-o", str(folder / "out"), *flags, *pace, "--json"]


def _script(folder: Path, source: Path, url: str) -> list[str]:
    sizes = [str(BATCH_ROWS), str(DIMS)]
    return ["-m", "benchmarks.cloud_script", str(source), str(folder / "out"), url, *sizes]


CONTENDERS = {"embatch": _embatch, "script": _script}


def _round(
    name: str, source: Path, service: subprocess.Popen[str], url: str, into: Measured
) -> Path:
    """Lets a contender do the whole work once; its output folder."""
    folder = Path(tempfile.mkdtemp(dir=source.parent))
    told = {"GOOGLE_API_KEY": "a key", "GOOGLE_GEMINI_BASE_URL": url}
    variables = {**environment(), **told, "EMBATCH_HOME": str(folder / "home")}
    quiet = None if "BENCH_VERBOSE" in os.environ else subprocess.DEVNULL
    before, start = _cpu_s(service.pid), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *CONTENDERS[name](folder, source, url)],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=quiet,
    )
    peaks = Peaks(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    into.seconds.append(time.perf_counter() - start)
    into.peak_mb.append(peaks.total_mb())
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(
            f"{name} ended with exit code {process.returncode} (BENCH_VERBOSE=1 says why)"
        )
    into.cpu_s.append(usage.ru_utime + usage.ru_stime)
    into.service_cpu_s.append(_cpu_s(service.pid) - before)
    print(f"{name}: {into.seconds[-1]:.1f} s, cpu {into.cpu_s[-1]:.1f} s", file=sys.stderr)
    return folder


def check(folder: Path, rows: int) -> None:
    """Every key once, every vector that of its text; SystemExit otherwise."""
    vectors = prepared_vectors(DIMS)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    seen = np.zeros(rows, dtype=bool)
    for path in sorted((folder / "out").glob("part-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(8192, columns=["key", "embedding"]):
            keys = batch["key"].to_pylist()
            numbers = np.array([int(key.removeprefix("item-")) for key in keys])
            matrix = batch["embedding"].flatten().to_numpy().reshape(len(keys), DIMS)
            if seen[numbers].any() or np.abs(matrix - vectors[numbers % VECTORS]).max() > 1e-6:
                raise SystemExit(f"{path} holds a row twice, or a vector of another text")
            seen[numbers] = True
    if not seen.all():
        raise SystemExit(f"{folder} lacks {int((~seen).sum())} of {rows} rows")


def measure(options: Options) -> Figures:
    """Whole runs in turn; medians, and ratios round by round."""
    rows = options.rows or options.texts * ROWS_PER_TEXT
    rounds = min(options.rounds, MOST_ROUNDS)
    measured = {name: Measured() for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "texts.parquet"
        write_source(source, rows)
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cloud_service", str(DIMS)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as service:
            assert service.stdout is not None
            url = json.loads(service.stdout.readline())["url"]
            for number in range(rounds):
                for name, into in measured.items():
                    output = _round(name, source, service, url, into)
                    if number == 0:
                        check(output, rows)
                    shutil.rmtree(output)
    return {**machine(), "rows": rows, "rounds": rounds, **_figures(measured, rows)}


def _figures(measured: dict[str, Measured], rows: int) -> Figures:
    figures: Figures = {}
    own, millions = measured["embatch"], rows / 1e6
    for name, one in measured.items():
        figures[f"{name}_s_per_million"] = round(statistics.median(one.seconds) / millions, 1)
        figures[f"{name}_cpu_s_per_million"] = round(statistics.median(one.cpu_s) / millions, 1)
        served = statistics.median(one.service_cpu_s) / millions
        figures[f"{name}_service_cpu_s_per_million"] = round(served, 1)
        figures[f"{name}_peak_mb"] = round(max(one.peak_mb))
    for what, theirs, ours in (
        ("s", measured["script"].seconds, own.seconds),
        ("cpu_s", measured["script"].cpu_s, own.cpu_s),
    ):
        ratios = [one / other for one, other in zip(theirs, ours, strict=True)]
        figures[f"script_{what}_times_embatch"] = round(statistics.median(ratios), 2)
        figures[f"script_{what}_times_embatch_least"] = round(min(ratios), 2)
    return figures


def table(figures: Figures) -> str:
    """The figures as people read them."""
    lines = [
        f"{figures['cpu']}, {figures['cores']} cores; {figures['rows']} rows of {DIMS} dims in "
        f"batches of {BATCH_ROWS}, medians of {figures['rounds']} rounds, a million rows:",
        f"{'':10}{'s':>9}{'cpu s':>9}{'service cpu s':>15}{'peak MB':>9}",
    ]
    for name in CONTENDERS:
        columns = [figures[f"{name}_{what}"] for what in ("s_per_million", "cpu_s_per_million")]
        served, peak = figures[f"{name}_service_cpu_s_per_million"], figures[f"{name}_peak_mb"]
        lines.append(f"{name:10}{columns[0]:>9}{columns[1]:>9}{served:>15}{peak:>9}")
    lines.append(
        f"the script takes {figures['script_s_times_embatch']} times as long (least "
        f"{figures['script_s_times_embatch_least']}) and {figures['script_cpu_s_times_embatch']} "
        f"times the processor time (least {figures['script_cpu_s_times_embatch_least']})"
    )
    return "\n".join(lines)
