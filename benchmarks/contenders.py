"""One contender of the engine's benchmark, alone in its process.

    python -m benchmarks.contenders NAME MODEL_FOLDER TEXTS_FILE

Runs in embatch's environment or in that of the peers: nothing is imported before it is known
which of them is wanted.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import serve

Encode = Callable[[list[str]], Any]


def embatch(folder: str, precision: str) -> tuple[Encode, dict[str, object]]:
    """The engine of this repository."""
    from embatch.local.engine import Engine

    engine = Engine.open(folder, precision=precision)
    return lambda texts: engine.embed(texts).vectors, {"precision": engine.precision}


def sentence_transformers(folder: str, backend: str) -> tuple[Encode, dict[str, object]]:
    """sentence-transformers as people use it: default batch, default settings."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu", backend=backend)
    return lambda texts: model.encode(texts, normalize_embeddings=True), {}


def fastembed(folder: str, _: str) -> tuple[Encode, dict[str, object]]:
    """fastembed over the same weights as ONNX, default batch."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="benchmark",
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(hf="benchmark/benchmark"),
        dim=json.loads((Path(folder) / "config.json").read_text())["hidden_size"],
        model_file="onnx/model.onnx",
    )
    model = TextEmbedding("benchmark", specific_model_path=folder)
    return lambda texts: np.array(list(model.embed(texts)), dtype=np.float32), {}


CONTENDERS: Mapping[str, tuple[Callable[[str, str], tuple[Encode, dict[str, object]]], str]] = {
    "embatch_auto": (embatch, "auto"),
    "embatch_f32": (embatch, "f32"),
    "embatch_int8": (embatch, "int8"),
    "st_f32": (sentence_transformers, "torch"),
    "st_openvino": (sentence_transformers, "openvino"),
    "fastembed": (fastembed, ""),
}


def main() -> None:
    """Loads the contender, warms it up and answers rounds until its input ends."""
    name, folder, texts_file = sys.argv[1:4]
    texts = json.loads(Path(texts_file).read_text())
    make, argument = CONTENDERS[name]
    encode, ready = make(folder, argument)
    encode(texts[:64])

    def work(question: Mapping[str, Any]) -> Mapping[str, object]:
        vectors = encode(texts)
        if "save" in question:
            np.save(question["save"], vectors)
        return {}

    serve(work, **ready)


if __name__ == "__main__":
    main()
