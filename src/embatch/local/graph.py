"""Builds a model's network for OpenVINO: token ids in, unit sentence vectors out.

The graph's inputs are `input_ids` and `attention_mask`, both int32 `[n, width]`; its output is
float32 `[n, dims]`. BERT-family networks are built from their weights with OpenVINO's own
operations; ONNX files and OpenVINO IR get their pooling added.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from embatch.errors import ConfigError
from embatch.local.architecture import Architecture
from embatch.local.models import ModelFolder
from embatch.local.weights import Tensor, read_safetensors

Node = Any
"""A node of OpenVINO's graph; the library ships no types for it."""

Linear = Callable[[Node, str, Tensor, Tensor], Node]
"""Makes `x @ weight.T + bias` of a layer: (x, the layer's name, weight, bias)."""

_MASKED = np.float32(-1e4)
"""Added to the scores of padding: zero after softmax, and in range for bf16."""
_PREFIXES = ("", "bert.", "roberta.")
_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def plain_linear(x: Node, _name: str, weight: Tensor, bias: Tensor) -> Node:
    """`x @ weight.T + bias` in the precision that the graph is compiled for."""
    return op.add(op.matmul(x, _constant(weight), False, True), _constant(bias))


def build_graph(model: ModelFolder, linear: Linear = plain_linear) -> ov.Model:
    """The model's whole network, pooling included. `linear` makes its weighted layers."""
    ids, mask = _input("input_ids"), _input("attention_mask")
    if model.architecture is None:
        tokens = _read_graph(model, ids, mask)
    else:
        weights = _named_weights(model)
        tokens = _Bert(model.architecture, weights, linear).encode(ids, mask)
    return ov.Model([_pool(tokens, mask, model.pooling)], [ids, mask], "embatch")


def _input(name: str) -> Node:
    node = op.parameter([-1, -1], np.int32, name=name)
    node.output(0).set_names({name})
    return node


def _constant(values: Tensor) -> Node:
    return op.constant(np.ascontiguousarray(values), shared_memory=True)


def _ints(*values: int) -> Node:
    return op.constant(np.array(values, dtype=np.int64))


def _named_weights(model: ModelFolder) -> dict[str, Tensor]:
    """Weights under BERT's names, without the prefix of a model that holds BERT."""
    found = read_safetensors(model.weights[0])
    for prefix in _PREFIXES:
        if f"{prefix}embeddings.word_embeddings.weight" in found:
            return {
                name.removeprefix(prefix): value
                for name, value in found.items()
                if name.startswith(prefix)
            }
    raise ConfigError(f"{model.weights[0]} holds no BERT weights (embeddings.word_embeddings)")


class _Bert:
    """The layers of a BERT-family encoder."""

    def __init__(
        self, architecture: Architecture, weights: Mapping[str, Tensor], linear: Linear
    ) -> None:
        self._shape = architecture
        self._weights = weights
        self._linear = linear

    def encode(self, ids: Node, mask: Node) -> Node:
        """Token vectors `[n, width, hidden]`."""
        x = self._embed(ids)
        shut = op.subtract(op.constant(np.int32(1)), mask)
        bias = op.multiply(op.convert(shut, np.float32), op.constant(_MASKED))
        bias = op.unsqueeze(bias, _ints(1, 2))
        for layer in range(self._shape.layers):
            x = self._layer(x, bias, f"encoder.layer.{layer}")
        return x

    def _weight(self, name: str) -> Tensor:
        try:
            return self._weights[name]
        except KeyError:
            raise ConfigError(f"the model's weights hold no {name}") from None

    def _embed(self, ids: Node) -> Node:
        start = self._shape.position_offset
        words = op.gather(
            _constant(self._weight("embeddings.word_embeddings.weight")), ids, _ints(0)
        )
        # One text, so every token is of type 0: its vector goes with the positions.
        table = (
            self._weight("embeddings.position_embeddings.weight")[start:]
            + self._weight("embeddings.token_type_embeddings.weight")[0]
        )
        width = op.gather(op.shape_of(ids, output_type="i64"), _ints(1), _ints(0))
        places = op.slice(_constant(table), _ints(0), width, _ints(1), _ints(0))
        return self._norm(op.add(words, places), "embeddings.LayerNorm")

    def _layer(self, x: Node, bias: Node, prefix: str) -> Node:
        heads, size = self._shape.heads, self._shape.hidden // self._shape.heads

        def by_head(name: str) -> Node:
            split = op.reshape(self._dense(x, prefix, name), _ints(0, 0, heads, size), True)
            return op.transpose(split, _ints(0, 2, 1, 3))

        # Written out, the runtime turns each of the three about once; of its own attention
        # operation it turns the keys twice.
        scores = op.matmul(by_head("query"), by_head("key"), False, True)
        scaled = op.multiply(scores, op.constant(np.float32(size**-0.5)))
        shares = op.softmax(op.add(scaled, bias), -1)
        attended = op.matmul(shares, by_head("value"), False, False)
        joined = op.reshape(
            op.transpose(attended, _ints(0, 2, 1, 3)), _ints(0, 0, self._shape.hidden), True
        )
        attended = self._dense(joined, prefix, "attention")
        x = self._norm(op.add(attended, x), f"{prefix}.attention.output.LayerNorm")
        wide = self._activate(self._dense(x, prefix, "up"))
        return self._norm(
            op.add(self._dense(wide, prefix, "down"), x), f"{prefix}.output.LayerNorm"
        )

    def _dense(self, x: Node, prefix: str, name: str) -> Node:
        full = f"{prefix}.{_NAMES[name]}"
        return self._linear(
            x, f"{prefix}.{name}", self._weight(f"{full}.weight"), self._weight(f"{full}.bias")
        )

    def _activate(self, x: Node) -> Node:
        if self._shape.activation == "relu":
            return op.relu(x)
        return op.gelu(x, self._shape.activation)

    def _norm(self, x: Node, name: str) -> Node:
        centred = op.mvn(x, _ints(-1), True, self._shape.epsilon, "inside_sqrt")
        scaled = op.multiply(centred, _constant(self._weight(f"{name}.weight")))
        return op.add(scaled, _constant(self._weight(f"{name}.bias")))


def _read_graph(model: ModelFolder, ids: Node, mask: Node) -> Node:
    """The output of an ONNX or IR network, its inputs joined to ours."""
    network = ov.Core().read_model(model.weights[0])
    known = {"input_ids": ids, "attention_mask": mask}
    for parameter in network.get_parameters():
        name = parameter.output(0).get_any_name()
        if name == "token_type_ids":
            source = op.subtract(mask, mask)
        elif name in known:
            source = known[name]
        else:
            raise ConfigError(f"{model.weights[0]} wants the input {name!r}, which is unknown")
        cast = op.convert(source, parameter.get_element_type().to_dtype())
        for target in list(parameter.output(0).get_target_inputs()):
            target.replace_source_output(cast.output(0))
    output = network.output(0).get_node().input_value(0)
    if output.get_partial_shape().rank.get_length() not in (2, 3):
        raise ConfigError(
            f"the first output of {model.weights[0]} is neither token nor sentence vectors"
        )
    return output


def _pool(tokens: Node, mask: Node, pooling: str) -> Node:
    """Unit sentence vectors `[n, dims]` of token vectors `[n, width, dims]`."""
    source = tokens if isinstance(tokens, ov.Output) else tokens.output(0)
    if source.get_partial_shape().rank.get_length() == 2:
        pooled = tokens  # the network pools by itself
    elif pooling == "cls":
        pooled = op.gather(tokens, op.constant(np.int64(0)), _ints(1))
    else:
        kept = op.unsqueeze(op.convert(mask, np.float32), _ints(2))
        total = op.reduce_sum(op.multiply(tokens, kept), _ints(1))
        pooled = op.divide(total, op.reduce_sum(kept, _ints(1)))
    return op.normalize_l2(pooled, _ints(1), 1e-24, "max")
