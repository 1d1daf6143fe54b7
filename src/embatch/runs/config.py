"""What a run is asked to do: what makes it this run, and what may change between starts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

TooLong = Literal["send", "cut", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run's settings, as the journal keeps them."""

    inputs: tuple[str, ...]
    """Absolute paths as resolved, in order."""
    out: str
    provider: str = "local"
    model: str | None = None
    text: str | None = None
    key: str | None = None
    keep: tuple[str, ...] = ()
    dims: int | None = None
    task_type: str | None = None
    precision: str = "auto"
    reuse: str | None = None
    """An earlier output of the same space, whose vectors serve equal texts."""

    max_batch_items: int | None = None
    max_batch_tokens: int | None = None
    poll_interval_s: float | None = None
    too_long: TooLong = "send"
    alert_below_pct: float = 95.0
    settle_s: float | None = None
    """How long an ambiguous submission may still turn up; None: the provider's default."""
    staging: str | None = None
    """Vertex AI: `gs://bucket/prefix`; None: the environment's."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        values = asdict(self)
        return {**values, "inputs": list(self.inputs), "keep": list(self.keep)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The config that `to_json` wrote."""
        return cls(**{**values, "inputs": tuple(values["inputs"]), "keep": tuple(values["keep"])})
