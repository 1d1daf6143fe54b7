"""The engine against the definition of its network, on tiny random models."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embatch.errors import ConfigError, InvalidRequestError
from embatch.local import engine as engine_module
from embatch.local.engine import Engine
from embatch.types.results import TextEngine

Sentences = Callable[[int], list[str]]


def cosines(left: Any, right: Any) -> Any:
    """Cosine of each row of unit vectors with the same row of the other."""
    return np.einsum("ij,ij->i", left, right)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_the_definition(
    tiny_model: Any, sentences: Sentences, pooling: str, normalize: bool
) -> None:
    """Both poolings match plain numpy; vectors are unit length whatever modules.json says."""
    model = tiny_model(pooling=pooling, normalize=normalize)
    texts = sentences(50)
    with Engine.open(model.folder, precision="f32") as engine:
        vectors = engine.embed(texts).vectors
    np.testing.assert_allclose(vectors, [model.vector(text) for text in texts], atol=2e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"family": "xlm-roberta"},
        {"family": "roberta", "prefix": "roberta."},
        {"prefix": "bert."},
        {"activation": "relu"},
        {"dtype": "F16"},
        {"dtype": "BF16"},
    ],
    ids=str,
)
def test_each_supported_form_of_model_matches_the_definition(
    tiny_model: Any, sentences: Sentences, options: dict[str, str]
) -> None:
    """Families, name prefixes, activations and stored types that the docs claim."""
    model = tiny_model(**options)
    texts = sentences(20)
    with Engine.open(model.folder, precision="f32") as engine:
        vectors = engine.embed(texts).vectors
    np.testing.assert_allclose(vectors, [model.vector(text) for text in texts], atol=2e-5)


def test_int8_stays_near_float32(
    tiny_model: Any, sentences: Sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calibrated on texts that the model knows, int8 gives nearly the same vectors."""
    model, texts = tiny_model(), sentences(50)
    monkeypatch.setattr(engine_module, "TEXTS", sentences(90)[50:])
    with Engine.open(model.folder, precision="int8") as engine:
        vectors = engine.embed(texts).vectors
        assert engine.precision == "int8"
    found = cosines(vectors, [model.vector(text) for text in texts])
    assert found.mean() > 0.998
    assert found.mean() < 0.999999


def test_an_ir_folder_gives_the_same_vectors(tiny_model: Any, sentences: Sentences) -> None:
    """A ready OpenVINO graph with token vectors as output is pooled like ours."""
    import openvino as ov

    from embatch.local import graph
    from embatch.local.models import find_model

    model, texts = tiny_model(), sentences(20)
    folder = find_model(model.folder)
    ids, mask = graph._input("input_ids"), graph._input("attention_mask")
    bert = graph._Bert(folder.architecture, graph._named_weights(folder), graph.plain_linear)
    ready = ov.Model([bert.encode(ids, mask)], [ids, mask], "ready")
    ov.save_model(ready, model.folder / "openvino" / "openvino_model.xml", compress_to_fp16=False)
    (model.folder / "model.safetensors").unlink()
    with Engine.open(model.folder, precision="f32") as engine:
        vectors = engine.embed(texts).vectors
    np.testing.assert_allclose(vectors, [model.vector(text) for text in texts], atol=2e-5)


def test_int8_of_a_ready_graph_is_refused(tiny_model: Any) -> None:
    """int8 is made from weights; the error says so instead of running in another precision."""
    import openvino as ov

    from embatch.local import graph

    model = tiny_model()
    ready = graph.build_graph(engine_module.find_model(model.folder))
    ov.save_model(ready, model.folder / "openvino_model.xml")
    (model.folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        Engine.open(model.folder, precision="int8")


def test_order_is_kept_over_many_windows(
    tiny_model: Any, sentences: Sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorting by length inside windows never shows: row i belongs to text i."""
    monkeypatch.setattr(engine_module, "WINDOW_TEXTS", 32)
    monkeypatch.setattr(engine_module, "PACK_TOKENS", 128)
    model, texts = tiny_model(), sentences(150)
    with Engine.open(model.folder, precision="f32", threads=2) as engine:
        vectors = engine.embed(texts).vectors
    np.testing.assert_allclose(vectors, [model.vector(text) for text in texts], atol=2e-5)


def test_no_texts_give_an_empty_matrix(tiny_model: Any) -> None:
    """[] is a valid call: zero rows of the model's length."""
    with Engine.open(tiny_model().folder) as engine:
        embedded = engine.embed([])
    assert embedded.vectors.shape == (0, engine.dims)
    assert len(embedded.tokens) == len(embedded.truncated) == 0


def test_truncation_is_reported(tiny_model: Any) -> None:
    """A text over the limit is cut at it and marked; one exactly at it is not."""
    model = tiny_model(max_tokens=10)
    with Engine.open(model.folder, precision="f32") as engine:
        embedded = engine.embed(["tree " * 8, "tree " * 9, ""])
    assert embedded.tokens.tolist() == [10, 10, 2]
    assert embedded.truncated.tolist() == [False, True, False]
    np.testing.assert_allclose(embedded.vectors[1], model.vector("tree " * 9), atol=2e-5)


def test_the_tokenizers_own_padding_and_cut_are_ignored(tiny_model: Any) -> None:
    """A tokenizer.json that pads and cuts at 8 does not shorten texts or lengthen short ones."""
    with Engine.open(tiny_model(max_tokens=40).folder) as engine:
        embedded = engine.embed(["tree", "tree " * 20])
    assert embedded.tokens.tolist() == [3, 22]
    assert not embedded.truncated.any()


def test_dims_keep_the_first_values_at_unit_length(tiny_model: Any, sentences: Sentences) -> None:
    """`dims` cuts the full vector and normalises it again."""
    texts = sentences(9)
    with Engine.open(tiny_model().folder, precision="f32") as engine:
        full, cut = engine.embed(texts).vectors, engine.embed(texts, dims=8).vectors
    expected = full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    assert cut.flags.c_contiguous
    assert cut.dtype == np.float32


@pytest.mark.parametrize("dims", [0, -1, 25])
def test_dims_out_of_range_are_refused(tiny_model: Any, dims: int) -> None:
    """The error names the range."""
    with Engine.open(tiny_model().folder) as engine, pytest.raises(InvalidRequestError, match="24"):
        engine.embed(["tree"], dims=dims)


def test_a_prompt_goes_before_each_text(tiny_model: Any) -> None:
    """With a prompt the vector is that of prompt and text together."""
    model = tiny_model(prompts={"query": "the red "})
    with Engine.open(model.folder, precision="f32") as engine:
        prompt = engine.prompts["retrieval_query"]
        vectors = engine.embed(["house"], prompt=prompt).vectors
    np.testing.assert_allclose(vectors[0], model.vector("the red house"), atol=2e-5)


def test_a_lone_surrogate_is_named_by_its_place(tiny_model: Any) -> None:
    """The error says which text, never what it holds."""
    with Engine.open(tiny_model().folder) as engine:
        with pytest.raises(InvalidRequestError, match="text 2") as caught:
            engine.embed(["tree", "ü", "secret \ud800"])
        assert "secret" not in str(caught.value)
        assert engine.embed(["tree"]).vectors.shape == (1, 24)


def test_what_is_no_string_is_named_by_its_place(tiny_model: Any) -> None:
    """None among the texts is an error of the call, not a crash in a worker."""
    with Engine.open(tiny_model().folder) as engine:
        with pytest.raises(InvalidRequestError, match="text 1 is NoneType"):
            engine.embed(["tree", None])  # type: ignore[list-item]
        with pytest.raises(InvalidRequestError, match="list"):
            engine.embed("tree")


def test_threads_share_one_engine(tiny_model: Any, sentences: Sentences) -> None:
    """Calls from several threads at once each get their own texts' vectors."""
    model, texts = tiny_model(), sentences(80)
    expected = np.array([model.vector(text) for text in texts])
    together = threading.Barrier(4)

    with Engine.open(model.folder, precision="f32", threads=2) as engine:

        def call(part: int) -> Any:
            together.wait(timeout=30)
            return [engine.embed(texts[part::4]).vectors for _ in range(5)]

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(call, range(4)))
    for part, rounds in enumerate(answers):
        for vectors in rounds:
            np.testing.assert_allclose(vectors, expected[part::4], atol=2e-5)


def test_the_same_call_gives_the_same_bits(tiny_model: Any, sentences: Sentences) -> None:
    """With the same packing nothing depends on which worker took which pack."""
    texts = sentences(100)
    with Engine.open(tiny_model().folder, precision="f32", threads=2) as engine:
        first, second = engine.embed(texts).vectors, engine.embed(texts).vectors
    assert np.array_equal(first, second)


def test_a_closed_engine_refuses_calls(tiny_model: Any) -> None:
    """close() may be called twice; embedding after it is an error that says so."""
    engine = Engine.open(tiny_model().folder)
    engine.close()
    engine.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        engine.embed(["tree"])


def test_weights_other_than_the_pinned_ones_are_refused(tiny_model: Any, tmp_path: Path) -> None:
    """A known model whose file was changed does not pass under its name."""
    from embatch.local.models import describe

    folder = describe(tiny_model().folder, name="all-MiniLM-L6-v2", pinned_sha256="0" * 64)
    with pytest.raises(ConfigError, match="SHA-256"):
        Engine.open(folder)


def test_an_engine_is_a_text_engine(tiny_model: Any) -> None:
    """What the service and the local provider ask of an engine is there."""
    with Engine.open(tiny_model().folder) as engine:
        port: TextEngine = engine
        assert (port.dims, port.max_tokens, len(port.weights_sha256)) == (24, 40, 64)


@pytest.mark.parametrize("precision", ["f64", "", "INT8"])
def test_an_unknown_precision_is_refused(tiny_model: Any, precision: str) -> None:
    """The error lists the four words."""
    with pytest.raises(ConfigError, match="auto, f32, bf16 or int8"):
        Engine.open(tiny_model().folder, precision=precision)
