"""What a model's config.json says about its network, for the families the engine can build."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embatch.errors import ConfigError

_ROBERTA_FAMILY = frozenset({"roberta", "xlm-roberta", "camembert"})
FAMILIES = frozenset({"bert"}) | _ROBERTA_FAMILY
"""Values of `model_type` whose graph the engine builds from safetensors."""

_ACTIVATIONS = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
    "gelu_fast": "tanh",
    "relu": "relu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The shape of a BERT-family network."""

    family: str
    """`model_type` of config.json."""
    layers: int
    heads: int
    hidden: int
    """Length of a token's vector."""
    positions: int
    """Tokens that the position table has room for."""
    position_offset: int
    """Row of the position table that the first token takes."""
    epsilon: float
    """Added to the variance in layer norms."""
    activation: str
    """"erf", "tanh" (both forms of GELU) or "relu"."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], model: str) -> "Architecture":
        """Parses config.json; ConfigError says what is supported when this is not."""
        family = config.get("model_type")
        if family not in FAMILIES:
            raise ConfigError(
                f"{model} is of type {family!r}; from safetensors the engine runs "
                f"{', '.join(sorted(FAMILIES))}. Give a folder with onnx/model.onnx or "
                "openvino/openvino_model.xml for other types"
            )
        kind = config.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise ConfigError(f"{model} has {kind!r} positions; only absolute ones are supported")
        activation = _ACTIVATIONS.get(config.get("hidden_act", "gelu"))
        if activation is None:
            raise ConfigError(
                f"{model} uses the activation {config['hidden_act']!r}; "
                f"supported are {', '.join(_ACTIVATIONS)}"
            )
        try:
            offset = config.get("pad_token_id", 1) + 1 if family in _ROBERTA_FAMILY else 0
            return cls(
                family=family,
                layers=config["num_hidden_layers"],
                heads=config["num_attention_heads"],
                hidden=config["hidden_size"],
                positions=config["max_position_embeddings"] - offset,
                position_offset=offset,
                epsilon=config.get("layer_norm_eps", 1e-12),
                activation=activation,
            )
        except KeyError as error:
            raise ConfigError(f"config.json of {model} does not say {error}") from None
