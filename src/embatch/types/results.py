"""Vectors on their way from an engine or a service to a part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embatch.types.embedding import RowError

Matrix = NDArray[np.float32]
"""float32, C-contiguous, `[n, d]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What an engine makes of `n` texts, in their order."""

    vectors: Matrix
    """`[n, dims]`."""
    tokens: NDArray[np.int32]
    """Tokens the model read of each text, special tokens included, `[n]`; -1 where unknown."""
    truncated: NDArray[np.bool_]
    """True where the text was longer than the model reads, `[n]`."""
    billed: int | None = None
    """Tokens of all texts together, where the service tells no more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultBlock:
    """A stretch of a batch's results, in any order, joined to items by key only."""

    keys: Sequence[str]
    """Wire keys of the rows that have a vector, in the order of `vectors`."""
    vectors: Matrix
    """`[len(keys), dims]`."""
    errors: Sequence[tuple[str, RowError]] = ()
    """Wire key and reason of the rows that failed."""
    tokens: NDArray[np.int32] | None = None
    """Tokens billed for each key, -1 where unknown; None where the service never says."""
    truncated: NDArray[np.bool_] | None = None
    """Rows cut at the model's limit, None where the service does not say."""


class TextEngine(Protocol):
    """A model on this machine: texts in, vectors out. Safe to call from several threads."""

    @property
    def model(self) -> str:
        """Name of the model, as users type it."""
        ...

    @property
    def dims(self) -> int:
        """Length of its full vectors."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens the model reads of a text; the rest is cut and reported."""
        ...

    @property
    def precision(self) -> str:
        """The arithmetic in use: "f32", "bf16" or "int8"."""
        ...

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights, hex: what tells two models of one name apart."""
        ...

    @property
    def prompts(self) -> Mapping[str, str]:
        """Prompt texts by task type, those the model defines; a prompt goes before the text."""
        ...

    def embed(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        dims: int | None = None,
        urgent: bool = False,
    ) -> Embedded:
        """Unit vectors of `texts`, in order. `dims` keeps the first values and normalises again.

        An `urgent` call goes ahead of calls under way, as far as the engine can.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens and those beyond the model's limit included."""
        ...

    def close(self) -> None:
        """Frees the model's memory. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a batch is."""

    total: int
    succeeded: int = 0
    failed: int = 0
    tokens: int = 0
    extra: Mapping[str, int] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        """Rows neither succeeded nor failed."""
        return self.total - self.succeeded - self.failed
