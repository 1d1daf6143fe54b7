"""What an embedding is, and what makes two of them comparable."""

from dataclasses import asdict, dataclass
from typing import Any


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
