"""Tiny random models in sentence-transformers' layout, and the same networks in plain numpy."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    *("the", "a", "red", "blue", "small", "old", "river", "house"),
    *("tree", "runs", "sleeps", "over", "under", "near", "and", "very"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
HIDDEN, HEADS, LAYERS, WIDE, POSITIONS = 24, 3, 2, 40, 64

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """A random BERT in a folder, and the same network in numpy."""

    folder: Path
    weights: dict[str, Array]
    pooling: str
    offset: int
    activation: str
    max_tokens: int

    def ids(self, text: str) -> list[int]:
        """Token ids as the folder's tokenizer gives them, cut at the limit."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_tokens)
        return tokenizer.encode(text).ids

    def vector(self, text: str) -> Array:
        """The unit vector of one text, straight from the definition, in float64."""
        ids = self.ids(text)
        x = self._norm(
            self.weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
            + self.weights["embeddings.position_embeddings.weight"][self.offset :][: len(ids)]
            + self.weights["embeddings.token_type_embeddings.weight"][0],
            "embeddings.LayerNorm",
        )
        for layer in range(LAYERS):
            x = self._layer(x, f"encoder.layer.{layer}")
        pooled = x[0] if self.pooling == "cls" else x.mean(axis=0)
        return (pooled / np.linalg.norm(pooled)).astype(np.float32)

    def _layer(self, x: NDArray[np.float64], at: str) -> NDArray[np.float64]:
        size = HIDDEN // HEADS
        query, key, value = (
            self._dense(x, f"{at}.attention.self.{name}").reshape(len(x), HEADS, size)
            for name in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(size)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", shares, value).reshape(len(x), HIDDEN)
        mixed = self._dense(mixed, f"{at}.attention.output.dense")
        x = self._norm(x + mixed, f"{at}.attention.output.LayerNorm")
        wide = self._activate(self._dense(x, f"{at}.intermediate.dense"))
        return self._norm(x + self._dense(wide, f"{at}.output.dense"), f"{at}.output.LayerNorm")

    def _activate(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.activation == "relu":
            return np.maximum(x, 0)
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def _dense(self, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def _random_weights(offset: int) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings": (len(SPECIAL) + len(WORDS), HIDDEN),
        "embeddings.position_embeddings": (POSITIONS + offset, HIDDEN),
        "embeddings.token_type_embeddings": (2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{at}.attention.{name}"] = (HIDDEN, HIDDEN)
        shapes[f"{at}.intermediate.dense"] = (WIDE, HIDDEN)
        shapes[f"{at}.output.dense"] = (HIDDEN, WIDE)
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    weights = {f"{name}.weight": rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if "embeddings" not in name:
            weights[f"{name}.bias"] = rng.normal(0, 0.1, shape[0])
    for name in norms:
        weights[f"{name}.weight"] = rng.normal(1, 0.1, HIDDEN)
        weights[f"{name}.bias"] = rng.normal(0, 0.1, HIDDEN)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def write_safetensors(path: Path, weights: dict[str, Array], dtype: str = "F32") -> None:
    """Writes tensors as float32 ("F32"), half precision ("F16") or bfloat16 ("BF16")."""
    stored: dict[str, bytes] = {}
    for name, value in weights.items():
        if dtype == "BF16":
            stored[name] = (value.view(np.uint32) >> 16).astype("<u2").tobytes()
        else:
            stored[name] = value.astype("<f2" if dtype == "F16" else "<f4").tobytes()
    header, end = {}, 0
    for name, data in stored.items():
        offsets = [end, end + len(data)]
        header[name] = {"dtype": dtype, "shape": weights[name].shape, "data_offsets": offsets}
        end += len(data)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + b"".join(stored.values()))


def _write_tokenizer(path: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # What real folders do too: a padding and a cut that are not the model's.
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(8)
    tokenizer.save(str(path))


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., TinyModel]:
    """Makes a tiny model folder; the arguments are what the folder's files say."""

    def make(
        *,
        pooling: str = "mean",
        normalize: bool = True,
        family: str = "bert",
        activation: str = "gelu",
        max_tokens: int = 40,
        prefix: str = "",
        dtype: str = "F32",
        prompts: dict[str, str] | None = None,
    ) -> TinyModel:
        folder = tmp_path / "tiny"
        folder.mkdir()
        offset = 1 if family != "bert" else 0
        weights = _random_weights(offset)
        if dtype == "BF16":
            cut = {name: value.view(np.uint32) >> 16 << 16 for name, value in weights.items()}
            weights = {name: value.view(np.float32) for name, value in cut.items()}
        if dtype == "F16":
            weights = {
                name: value.astype(np.float16).astype(np.float32) for name, value in weights.items()
            }
        named = {f"{prefix}{name}": value for name, value in weights.items()}
        write_safetensors(folder / "model.safetensors", named, dtype)
        _write_tokenizer(folder / "tokenizer.json")
        modules = [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        if normalize:
            modules.append({"path": "2", "type": "sentence_transformers.models.Normalize"})
        (folder / "1_Pooling").mkdir()
        files = {
            "config.json": {
                "model_type": family,
                "hidden_size": HIDDEN,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "intermediate_size": WIDE,
                "max_position_embeddings": POSITIONS + offset,
                "pad_token_id": 0,
                "hidden_act": activation,
            },
            "modules.json": modules,
            "1_Pooling/config.json": {
                "word_embedding_dimension": HIDDEN,
                "pooling_mode_cls_token": pooling == "cls",
                "pooling_mode_mean_tokens": pooling == "mean",
                "pooling_mode_max_tokens": pooling == "max",
            },
            "sentence_bert_config.json": {"max_seq_length": max_tokens},
            "config_sentence_transformers.json": {"prompts": prompts or {}},
        }
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        return TinyModel(
            folder=folder,
            weights=weights,
            pooling=pooling,
            offset=offset,
            activation=activation,
            max_tokens=max_tokens,
        )

    return make


@pytest.fixture
def sentences() -> Callable[[int], list[str]]:
    """Makes random sentences of 1 to 30 words that the tiny models know."""

    def make(count: int) -> list[str]:
        rng = np.random.default_rng(3)
        return [" ".join(rng.choice(WORDS, rng.integers(1, 31))) for _ in range(count)]

    return make
