"""What all benchmarks share: processes that answer rounds in turn, medians, accuracy, machine."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
WORK = ROOT / "build" / "bench"
"""Where benchmarks keep models and vectors between runs."""
PEERS_PYTHON = ROOT / ".venv-bench" / "bin" / "python"
NEIGHBOURS = 10

Figures = dict[str, float | int | str]
"""Named figures: the units end the names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asked for."""

    rounds: int
    texts: int
    rows: int | None = None
    """Of the benchmarks that count rows; None: as many as `texts` asks for."""


def environment() -> dict[str, str]:
    """This process's environment, with embatch importable and the hub switched off."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }


class Contender:
    """One process that stays alive and does the same work once a round."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peak_mb = 0.0
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "BENCH_VERBOSE" not in os.environ else None,
            text=True,
        )
        self.ready = self._answer()

    def ask(self, **question: object) -> dict[str, Any]:
        """Sends one question and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"{self.name} ended with exit code {self._process.wait()}")

    def __enter__(self) -> "Contender":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()


def serve(work: Callable[[Mapping[str, Any]], Mapping[str, object]], **ready: object) -> None:
    """The other end of a `Contender`: answers each question with what `work` gives and its time."""
    print(json.dumps({"ready": True, **ready}), flush=True)
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        answer = dict(work(json.loads(line)))
        answer["seconds"] = time.perf_counter() - start
        answer["cpu_seconds"] = time.process_time() - cpu_start
        answer["peak_mb"] = peak_mb()
        print(json.dumps(answer), flush=True)


def peak_mb() -> float:
    """The most memory that this process has held, in MB of 2**20 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def interleave(contenders: Sequence[Contender], rounds: int) -> None:
    """Gives each contender the machine in turn, so that a slow minute falls on all alike."""
    for number in range(rounds):
        for contender in contenders:
            answer = contender.ask(do="round")
            contender.seconds.append(answer["seconds"])
            contender.cpu_seconds.append(answer["cpu_seconds"])
            contender.peak_mb = answer["peak_mb"]
            print(
                f"round {number + 1} {contender.name}: {answer['seconds']:.2f} s", file=sys.stderr
            )


def median_ratio(slow: Contender, fast: Contender) -> float:
    """How many times faster `fast` is: the median over the rounds."""
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    return statistics.median(one / other for one, other in pairs)


def cosines(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each row of unit vectors with the same row of the other."""
    found: NDArray[np.float32] = np.einsum("ij,ij->i", left, right)
    return found


def neighbours_kept(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The share of each row's ten nearest rows in `left` that are so in `right` too."""

    def nearest(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        return np.argpartition(-scores, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]

    pairs = zip(nearest(left), nearest(right), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / NEIGHBOURS for a, b in pairs]))


def machine() -> Figures:
    """The processor and the cores that this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next(
            (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model
        )
    return {"cpu": model, "cores": len(os.sched_getaffinity(0))}
