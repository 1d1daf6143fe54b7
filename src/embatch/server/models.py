"""The models that a server runs, under their own names and under others."""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final

import numpy as np

from embatch.errors import ConfigError
from embatch.types.results import Embedded, TextEngine
from embatch.types.task import TaskType
from embatch.vectors import truncate

DEFAULT_ALIASES: Final = (
    "gemini-embedding-001",
    "gemini-embedding-2",
    "gemini-embedding-2-preview",
    "text-embedding-004",
)
"""Names that stand for the server's model unless an alias says otherwise."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


class ContentEngine:
    """An engine that leaves empty texts out: their vector is not a number, which fails the row.

    Shorter vectors are always cut from full ones by `truncate`: a row has the same bits whether it
    is computed alone or cut later from a batch whose rows differ in length.
    """

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._counting = threading.Lock()
        self.texts = 0
        """Texts embedded so far."""
        self.tokens = 0
        """Tokens read so far."""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._engine.model

    @property
    def dims(self) -> int:
        """Length of its full vectors."""
        return self._engine.dims

    @property
    def max_tokens(self) -> int:
        """Tokens the model reads of a text."""
        return self._engine.max_tokens

    @property
    def precision(self) -> str:
        """The arithmetic in use."""
        return self._engine.precision

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, hex."""
        return self._engine.weights_sha256

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompt texts by task type."""
        return self._engine.prompts

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        dims: int | None = None,
        urgent: bool = False,
    ) -> Embedded:
        """Unit vectors of `texts`, in order; NaN where the text is empty."""
        places = [place for place, text in enumerate(texts) if text]
        if len(places) == len(texts):
            return self._counted(self._embed(texts, prompt, dims, urgent))
        made = Embedded(
            vectors=np.full((len(texts), dims or self.dims), np.nan, dtype=np.float32),
            tokens=np.zeros(len(texts), dtype=np.int32),
            truncated=np.zeros(len(texts), dtype=np.bool_),
        )
        if places:
            inner = self._embed([texts[place] for place in places], prompt, dims, urgent)
            made.vectors[places] = inner.vectors
            made.tokens[places] = inner.tokens
            made.truncated[places] = inner.truncated
            self._counted(inner)
        return made

    def _embed(self, texts: Sequence[str], prompt: str, dims: int | None, urgent: bool) -> Embedded:
        made = self._engine.embed(texts, prompt=prompt, urgent=urgent)
        if dims is None or dims == self.dims:
            return made
        return replace(made, vectors=truncate(made.vectors, dims))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, those beyond the model's limit included."""
        return self._engine.count_tokens(texts)

    def _counted(self, made: Embedded) -> Embedded:
        with self._counting:
            self.texts += len(made.tokens)
            self.tokens += int(made.tokens.sum())
        return made

    def close(self) -> None:
        """Frees the model's memory."""
        self._engine.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One loaded model."""

    name: str
    """Its own name on the wire."""
    key: str
    """Names the very weights and arithmetic: no other engine may go on with a batch."""
    engine: ContentEngine

    def prompted(self, text: str, task: TaskType | None) -> str:
        """The text with the model's own prompt for a task before it; an empty text stays empty."""
        prompt = self.engine.prompts.get(task, "") if task else ""
        return prompt + text if text else ""


class Catalogue:
    """Models by every name that callers may use."""

    def __init__(self, engines: Mapping[str, TextEngine], aliases: Mapping[str, str]) -> None:
        """`engines` by the names people typed, the first one the server's own; `aliases` name them.

        Raises `ConfigError` for an alias that is no name for a URL.
        """
        self._served: dict[str, ServedModel] = {}
        self._by_name: dict[str, ServedModel] = {}
        for typed, engine in engines.items():
            content = ContentEngine(engine)
            served = ServedModel(
                name=_wire_name(engine.model),
                key=f"{engine.model}:{engine.precision}:{engine.weights_sha256}",
                engine=content,
            )
            self._served[typed] = served
            self._by_name[served.name] = served
        self.own = next(iter(self._served.values()))
        """The model of `--model`."""
        for alias in DEFAULT_ALIASES:
            self._by_name.setdefault(alias, self.own)
        for alias, typed in aliases.items():
            if not _NAME.fullmatch(alias):
                raise ConfigError(
                    f"--alias {alias}={typed}: a name has letters, digits, '.', '_' and '-' only"
                )
            self._by_name[alias] = self._served[typed]

    def find(self, name: str) -> ServedModel | None:
        """The model that is called `name`."""
        return self._by_name.get(name)

    def names(self) -> list[tuple[str, ServedModel]]:
        """Every name with its model, own names first."""
        return list(self._by_name.items())

    def keys(self) -> list[str]:
        """Keys of all loaded models."""
        return [served.key for served in self._served.values()]

    def engine_for(self, key: str) -> ContentEngine:
        """The engine of a model's key."""
        return next(one.engine for one in self._served.values() if one.key == key)

    def engines(self) -> list[ContentEngine]:
        """All engines."""
        return [served.engine for served in self._served.values()]

    def close(self) -> None:
        """Frees all models."""
        for engine in self.engines():
            engine.close()


def _wire_name(model: str) -> str:
    """A model's name as a part of a URL; of a folder its last part."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", PurePath(model).name or model).strip("-.")
    return name or "model"


def open_catalogue(
    model: str | None,
    aliases: Mapping[str, str],
    open_engine: Callable[[str | None], TextEngine],
) -> Catalogue:
    """Loads the server's model and those that aliases name. Raises `ConfigError`."""
    own = open_engine(model)
    engines: dict[str, TextEngine] = {own.model: own}
    typed_as = {
        model or own.model: own.model,
        own.model: own.model,
        _wire_name(own.model): own.model,
    }
    wanted: dict[str, str] = {}
    try:
        for alias, typed in aliases.items():
            if typed not in typed_as:
                engine = open_engine(typed)
                engines[typed] = engine
                typed_as[typed] = typed
            wanted[alias] = typed_as[typed]
        return Catalogue(engines, wanted)
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise
