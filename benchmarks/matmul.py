"""How fast this machine multiplies matrices in OpenVINO: what an engine can reach at best."""

import time

import numpy as np
import openvino as ov
from openvino import opset13 as op

ROWS, NARROW, WIDE, PAIRS = 2048, 384, 1536, 6
"""The shapes of all-MiniLM-L6-v2's widest layers, at one batch."""
REPEATS = 5


def rate_gflops(precision: str, cores: int) -> float:
    """Thousand million operations a second over all cores in "f32" or "bf16"; best of a few."""
    rng = np.random.default_rng(0)
    x = op.parameter([ROWS, NARROW], np.float32)
    y = x
    for _ in range(PAIRS):
        up = rng.standard_normal((WIDE, NARROW)).astype(np.float32) / 20
        down = rng.standard_normal((NARROW, WIDE)).astype(np.float32) / 40
        y = op.matmul(op.matmul(y, op.constant(up), False, True), op.constant(down), False, True)
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": str(cores),
        "INFERENCE_NUM_THREADS": str(cores),
    }
    compiled = ov.Core().compile_model(ov.Model([y], [x], "matmul"), "CPU", options)
    requests = [compiled.create_infer_request() for _ in range(cores)]
    for request in requests:
        request.set_input_tensor(0, ov.Tensor(rng.standard_normal((ROWS, NARROW), np.float32)))
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        best = min(best, time.perf_counter() - start)
    return 2 * ROWS * NARROW * WIDE * 2 * PAIRS * cores / best / 1e9
