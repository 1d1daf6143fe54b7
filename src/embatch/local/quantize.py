"""Static int8: which ranges each layer's input takes, and layers that multiply in int8.

Weights get one scale for each output. Inputs get one scale for the tensor, after each of their
channels is divided by a factor that its weights take up (Xiao et al., SmoothQuant, 2022), so
that a few large channels do not cost the others their resolution. What rounding still adds on
average is taken from the bias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from embatch.local.graph import Node, build_graph, plain_linear
from embatch.local.models import ModelFolder
from embatch.local.weights import Tensor

_LEVELS = 256
_MIGRATION = 0.75
"""Share of a channel's spread that goes into the weights. On all-MiniLM-L6-v2, 0.5 gives a mean
cosine of 0.990 to float32, 0.65 gives 0.997, 0.75 gives 0.998, 1.0 gives 0.994."""
_TINY = np.float32(1e-5)
"""Stands for channels that are always zero."""
_SAMPLE_EVERY = 3
"""Of the calibration's tokens every so many are kept whole, to measure what rounding adds."""
_SHARED_INPUTS = {"key": "query", "value": "query"}
"""Layers that read the input of another layer."""


def input_of(name: str) -> str:
    """The name of the layer whose input the layer `name` reads."""
    prefix, _, layer = name.rpartition(".")
    return f"{prefix}.{_SHARED_INPUTS.get(layer, layer)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What calibration saw at a layer's input, by channel."""

    lowest: Tensor
    highest: Tensor
    rows: Tensor
    """Some token vectors as they were, `[n, channels]`."""
    weights: Tensor
    """The largest absolute weight that reads each channel."""


class _Tapped:
    """Makes float32 layers and remembers their inputs and weights."""

    def __init__(self) -> None:
        self.inputs: dict[str, Node] = {}
        self.weights: dict[str, Tensor] = {}

    def __call__(self, x: Node, name: str, weight: Tensor, bias: Tensor) -> Node:
        source = input_of(name)
        self.inputs.setdefault(source, x)
        largest = np.abs(weight).max(axis=0)
        self.weights[source] = np.maximum(self.weights.get(source, largest), largest)
        return plain_linear(x, name, weight, bias)


def calibrate(model: ModelFolder, texts: Sequence[NDArray[np.int32]]) -> "Int8Linear":
    """Runs the model in float32 over token ids and gives layers fit for what they met there."""
    tapped = _Tapped()
    graph = build_graph(model, tapped)
    graph.add_outputs([node.output(0) for node in tapped.inputs.values()])
    options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1"}
    request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()
    spans: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in tapped.inputs}
    rows: dict[str, list[Tensor]] = {name: [] for name in tapped.inputs}
    for ids in texts:
        request.infer([ids[None], np.ones((1, len(ids)), dtype=np.int32)])
        for index, name in enumerate(tapped.inputs, start=1):
            met = request.get_output_tensor(index).data[0]
            spans[name].append((met.min(axis=0), met.max(axis=0)))
            rows[name].append(met[::_SAMPLE_EVERY].copy())
    observed = {
        name: Observed(
            lowest=np.min([low for low, _ in spans[name]], axis=0),
            highest=np.max([high for _, high in spans[name]], axis=0),
            rows=np.concatenate(rows[name]),
            weights=tapped.weights[name],
        )
        for name in tapped.inputs
    }
    return Int8Linear(observed)


class Int8Linear:
    """Makes layers that multiply in int8; give one to `build_graph`."""

    def __init__(self, observed: Mapping[str, Observed]) -> None:
        self._observed = observed
        self._inputs: dict[str, Node] = {}

    def __call__(self, x: Node, name: str, weight: Tensor, bias: Tensor) -> Node:
        """`x @ weight.T + bias`, both factors rounded to int8."""
        source = input_of(name)
        seen = self._observed[source]
        smooth, low, high = _input_range(seen)
        if source not in self._inputs:
            bounds = [op.constant(np.float32(bound)) for bound in (low, high, low, high)]
            scaled = op.multiply(x, op.constant(1 / smooth))
            self._inputs[source] = op.fake_quantize(scaled, *bounds, _LEVELS)
        whole, scale = _round_weight(weight * smooth)
        step = (high - low) / (_LEVELS - 1)
        steps = np.clip(np.round((seen.rows / smooth - low) / step), 0, _LEVELS - 1)
        rounded = (steps * step + low) @ (whole * scale).T
        drift = (rounded - seen.rows @ weight.T).mean(axis=0)
        factor = op.multiply(op.convert(op.constant(whole), np.float32), op.constant(scale))
        product = op.matmul(self._inputs[source], factor, False, True)
        return op.add(product, op.constant((bias - drift).astype(np.float32)))


def _input_range(seen: Observed) -> tuple[Tensor, float, float]:
    """The factor of each channel, and the lowest and highest value after division by it."""
    largest = np.maximum(np.maximum(-seen.lowest, seen.highest), _TINY)
    smooth = largest**_MIGRATION / np.maximum(seen.weights, _TINY) ** (1 - _MIGRATION)
    smooth = (smooth / smooth.mean()).astype(np.float32)
    low, high = float((seen.lowest / smooth).min()), float((seen.highest / smooth).max())
    return smooth, min(low, 0.0), max(high, 0.0)


def _round_weight(weight: Tensor) -> tuple[NDArray[np.int8], Tensor]:
    """int8 weights and the scale of each output, `[outputs, 1]`."""
    scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True), 1e-12) / 127
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)
