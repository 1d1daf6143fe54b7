"""What an embedding is, and what makes two of them comparable."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embatch.errors import InvalidRequestError

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What makes vectors comparable. Vectors of unequal spaces never meet in one output."""

    provider: str
    """"local", "gemini", "vertex"."""
    model: str
    """Model name as the provider spells it."""
    dims: int
    """Length of every vector."""
    task_type: str | None = None
    """Task the vectors are made for, None for the model's default."""
    prompt_template: str | None = None
    """Text written around each input, with `{text}` in it; None for the bare text."""
    normalized: bool = True
    """Every vector has length 1."""
    weights_sha256: str | None = None
    """Local models: SHA-256 of the weights file, hex."""
    precision: str | None = None
    """Local models: the arithmetic as resolved: "f32", "bf16" or "int8"."""

    def difference(self, other: "Space") -> str | None:
        """The first field in which the spaces differ, as a sentence part; None when equal."""
        mine, theirs = asdict(self), asdict(other)
        for name, value in mine.items():
            if value != theirs[name]:
                return f"{name} is {value!r} here and {theirs[name]!r} there"
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Space":
        """The space that `to_json` wrote."""
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """Why one row has no vector."""

    code: str
    """Short and stable: "empty_text", "too_long", "invalid_argument", "internal", "missing", …"""
    message: str
    """One sentence, without the row's text."""
    transient: bool = False
    """Sending the row again may help."""


@dataclass(frozen=True, slots=True, eq=False)
class ContentEmbedding:
    """One vector. Compare vectors of one space only."""

    values: Float32
    """float32, `[d]`."""
    tokens: int | None = field(default=None, kw_only=True)
    """Tokens billed for the text, None where the service does not say."""
    cut_from: int | None = field(default=None, kw_only=True)
    """Values that came, where they were more than asked for and the rest was cut off here."""

    def __post_init__(self) -> None:
        values: ArrayLike = self.values
        vector = np.ascontiguousarray(values, dtype=np.float32)
        if vector.ndim != 1:
            raise InvalidRequestError(f"an embedding has 1 dimension, not {vector.ndim}")
        object.__setattr__(self, "values", vector)

    def __repr__(self) -> str:
        return f"ContentEmbedding(dimensionality={self.dimensionality}, norm={self.norm:.6g})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ContentEmbedding):
            return NotImplemented
        return np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]  # vectors are compared by value and can be written

    def __len__(self) -> int:
        return self.dimensionality

    @property
    def dimensionality(self) -> int:
        """How many values the vector has."""
        return int(self.values.shape[0])

    @property
    def norm(self) -> float:
        """The vector's length."""
        return float(np.sqrt(np.einsum("i,i->", self.values, self.values, dtype=np.float64)))

    def normalize(self) -> "ContentEmbedding":
        """The same direction at length 1. A vector of zeros stays one."""
        norm = self.norm
        if norm == 0.0:
            return self
        return ContentEmbedding((self.values / norm).astype(np.float32), tokens=self.tokens)

    def cosine_similarity(self, other: "ContentEmbedding") -> float:
        """Cosine of the angle between the two, -1 to 1; 0.0 when one of them is all zeros."""
        product = self.dot_product(other)
        norms = self.norm * other.norm
        return float(np.clip(product / norms, -1.0, 1.0)) if norms > 0.0 else 0.0

    def dot_product(self, other: "ContentEmbedding") -> float:
        """Sum of the products of the values."""
        left, right = self._pair(other)
        return float(np.dot(left, right))

    def euclidean_distance(self, other: "ContentEmbedding") -> float:
        """Distance of the two points, 0 for equal ones."""
        left, right = self._pair(other)
        return float(np.linalg.norm(left - right))

    def _pair(self, other: "ContentEmbedding") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self.dimensionality != other.dimensionality:
            raise InvalidRequestError(
                f"vectors of {self.dimensionality} and {other.dimensionality} values cannot be "
                "compared: embed both with the same model and dimensions"
            )
        return self.values.astype(np.float64), other.values.astype(np.float64)


@dataclass(frozen=True, eq=False, kw_only=True)
class BatchEmbeddings(Sequence[ContentEmbedding | RowError]):
    """The results of a batch, one for each input, in the order of the inputs.

    An entry is a `ContentEmbedding`, or the `RowError` that says why there is none.
    """

    vectors: Float32 = field(repr=False)
    """float32, `[n, d]`; rows without a vector are NaN throughout."""
    errors: dict[int, RowError] = field(default_factory=dict, repr=False)
    """Reason by index, for the rows that have no vector."""
    aligned: bool = True
    """Entry `i` belongs to input `i`, by the key that the submission wrote. False for a batch
    made by others: the order of the result file, which services do not promise to keep."""
    keys: Sequence[str] | None = field(default=None, repr=False)
    """The user's keys when aligned, else the keys of the result file; None where there are none."""
    tokens: NDArray[np.int64] | None = field(default=None, repr=False)
    """Tokens billed for each row, -1 where unknown; None where the service never says."""

    def __len__(self) -> int:
        return int(self.vectors.shape[0])

    @overload
    def __getitem__(self, index: int) -> ContentEmbedding | RowError: ...
    @overload
    def __getitem__(self, index: slice) -> list[ContentEmbedding | RowError]: ...
    def __getitem__(
        self, index: int | slice
    ) -> ContentEmbedding | RowError | list[ContentEmbedding | RowError]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        error = self.errors.get(place)
        return self._embedding(place) if error is None else error

    def __iter__(self) -> Iterator[ContentEmbedding | RowError]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        n, d = self.vectors.shape
        return f"BatchEmbeddings(n={n}, d={d}, failed={len(self.errors)}, aligned={self.aligned})"

    def _embedding(self, place: int) -> ContentEmbedding:
        tokens = None if self.tokens is None else int(self.tokens[place])
        known = tokens is not None and tokens >= 0
        return ContentEmbedding(self.vectors[place], tokens=tokens if known else None)

    def to_numpy(self) -> Float32:
        """All vectors, float32 `[n, d]`, row `i` for input `i`. Failed rows are NaN."""
        return self.vectors

    @cached_property
    def failed_responses(self) -> list[tuple[int, RowError]]:
        """`(index, error)` of every row without a vector, in order."""
        return sorted(self.errors.items())

    @cached_property
    def successful_responses(self) -> list[tuple[int, ContentEmbedding]]:
        """`(index, embedding)` of every row that has a vector, in order."""
        return [(i, self._embedding(i)) for i in range(len(self)) if i not in self.errors]

    @property
    def total_tokens(self) -> int | None:
        """Tokens billed for all rows that say so, None when none does."""
        return None if self.tokens is None else int(self.tokens[self.tokens > 0].sum())
