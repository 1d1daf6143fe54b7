"""The local engine against its peers: speed, memory, accuracy, cold start."""

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.corpus import chunks
from benchmarks.matmul import rate_gflops
from benchmarks.measuring import (
    PEERS_PYTHON,
    ROOT,
    WORK,
    Contender,
    Figures,
    Options,
    cosines,
    interleave,
    machine,
    median_ratio,
    neighbours_kept,
)
from embatch.local.engine import Engine
from embatch.local.models import find_model

DESCRIPTION = "the local engine against sentence-transformers, its OpenVINO backend, fastembed"
PEERS = ("st_f32", "st_openvino", "fastembed")
OURS = ("embatch_auto", "embatch_f32", "embatch_int8")
COLD_STARTS = 5
MFLOP_A_TOKEN = 22.7
"""Of all-MiniLM-L6-v2 at 122 tokens a text: weighted layers and attention."""
_COLD = (
    "import time; from embatch.local.engine import Engine; "
    "Engine.open().embed(['A first text.']); print(time.time())"
)


def measure(options: Options) -> Figures:
    """Runs all contenders in turn over the same texts."""
    if not PEERS_PYTHON.exists():
        raise SystemExit(
            f"no peers at {PEERS_PYTHON.relative_to(ROOT)}: see benchmarks/__init__.py"
        )
    texts = chunks(options.texts)
    WORK.mkdir(parents=True, exist_ok=True)
    texts_file = WORK / "texts.json"
    texts_file.write_text(json.dumps(texts))
    folder = _prepare_model()
    with Engine.open() as engine:
        tokens = engine.embed(texts).tokens
        resolved = engine.precision
    figures: Figures = {**machine(), "texts": len(texts), "rounds": options.rounds}
    figures["tokens_mean"] = round(float(tokens.mean()), 1)
    figures["auto_precision"] = resolved
    figures["cold_start_s"] = _cold_start_s()
    ours = [name for name in OURS if name != f"embatch_{resolved}"]
    with ExitStack() as stack:
        contenders = {
            name: stack.enter_context(_contender(name, folder, texts_file))
            for name in (*ours, *PEERS)
        }
        for name, contender in contenders.items():
            contender.ask(do="round", save=str(_vectors_file(name)))
        interleave(list(contenders.values()), options.rounds)
        for name, contender in contenders.items():
            figures.update(_speed(name, contender, contenders, len(texts)))
        for name in ours:
            seconds = statistics.median(contenders[name].seconds)
            figures[f"{name}_gflops"] = round(
                float(tokens.sum()) * MFLOP_A_TOKEN / 1e3 / seconds, 1
            )
    for precision in ("f32", "bf16"):
        rate = rate_gflops(precision, int(figures["cores"]))
        figures[f"matmul_{precision}_gflops"] = round(rate, 1)
        for name in ours:
            share = float(figures[f"{name}_gflops"]) / rate
            figures[f"{name}_share_of_{precision}_matmul"] = round(share, 3)
    return figures


def _contender(name: str, folder: Path, texts_file: Path) -> Contender:
    python = PEERS_PYTHON if name in PEERS else Path(sys.executable)
    command = [str(python), "-m", "benchmarks.contenders", name, str(folder), str(texts_file)]
    return Contender(name, command)


def _prepare_model() -> Path:
    """A copy of the default model with the peers' forms of it, made once."""
    target = WORK / "model"
    if not (target / "onnx" / "model.onnx").is_file():
        command = [str(PEERS_PYTHON), "-m", "benchmarks.prepare_peers"]
        subprocess.run([*command, str(find_model(None).path), str(target)], cwd=ROOT, check=True)
    return target


def _vectors_file(name: str) -> Path:
    return WORK / f"vectors-{name}.npy"


def _speed(
    name: str, contender: Contender, contenders: dict[str, Contender], texts: int
) -> Figures:
    """Rate, ratios, memory and accuracy of one contender."""
    vectors, reference = np.load(_vectors_file(name)), np.load(_vectors_file("st_f32"))
    against = cosines(vectors, reference)
    cpu_s = statistics.median(contender.cpu_seconds)
    return {
        f"{name}_texts_per_s": round(texts / statistics.median(contender.seconds), 1),
        # Processor time moves less than the clock on a machine that others use too.
        f"{name}_cpu_ms_per_text": round(cpu_s / texts * 1e3, 2),
        f"{name}_times_st_f32": round(median_ratio(contenders["st_f32"], contender), 2),
        f"{name}_times_st_openvino": round(median_ratio(contenders["st_openvino"], contender), 2),
        f"{name}_peak_mb": round(contender.peak_mb),
        f"{name}_cosine_min": round(float(against.min()), 5),
        f"{name}_cosine_mean": round(float(against.mean()), 5),
        f"{name}_top10_kept": round(neighbours_kept(reference, vectors), 4),
    }


def _cold_start_s() -> float:
    """From the start of Python to the first vector, as a median."""
    seconds = []
    for _ in range(COLD_STARTS):
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-c", _COLD], cwd=ROOT, capture_output=True, check=True
        )
        seconds.append(float(done.stdout) - start)
    return round(statistics.median(seconds), 2)


def table(figures: Figures) -> str:
    """The figures as people read them."""
    lines = [
        f"{figures['cpu']}, {figures['cores']} cores; {figures['texts']} texts of "
        f"{figures['tokens_mean']} tokens on average; medians of {figures['rounds']} rounds",
        f"auto is {figures['auto_precision']}; cold start {figures['cold_start_s']} s; matmul "
        f"{figures['matmul_f32_gflops']} (f32), {figures['matmul_bf16_gflops']} (bf16) GFLOP/s",
        "",
        f"{'':14}{'texts/s':>9}{'cpu ms':>8}{'x st f32':>10}{'x st ov':>9}{'peak MB':>9}"
        f"{'cos min':>10}{'cos mean':>10}{'top 10':>8}",
    ]
    suffix = "_texts_per_s"
    columns = [
        (9, "texts_per_s"),
        (8, "cpu_ms_per_text"),
        (10, "times_st_f32"),
        (9, "times_st_openvino"),
        (9, "peak_mb"),
        (10, "cosine_min"),
        (10, "cosine_mean"),
        (8, "top10_kept"),
    ]
    names = [key.removesuffix(suffix) for key in figures if key.endswith(suffix)]
    rows = [
        "".join(f"{figures[f'{name}_{column}']:>{width}}" for width, column in columns)
        for name in names
    ]
    lines += [f"{name:14}{row}" for name, row in zip(names, rows, strict=True)]
    return "\n".join(lines)
