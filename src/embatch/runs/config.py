"""What a run is asked to do: what makes it this run, and what may change between starts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TooLong = Literal["send", "cut", "fail"]
Execution = Literal["threads", "workers"]
Audit = int | Literal["all", "off"]
DEFAULT_AUDIT = 8
"""Rows of each batch that are embedded again to compare (spec.md section 4.2)."""
STUCK_AFTER_S = 24 * 3600.0
"""A batch that has not moved for so long is stopped and sent again."""


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
    max_cost_usd: float | None = None
    """What the run may cost at most; None: as much as it takes."""
    audit: Audit = DEFAULT_AUDIT
    """Rows of each batch to embed again and compare, on providers that bill."""
    deadline: float | None = None
    """Seconds since 1970 by which the vectors are needed."""
    stuck_after_s: float = STUCK_AFTER_S
    probe: bool = True
    """A first small batch proves key, model and vectors before the rest is sent, where it bills."""
    keep_remote: bool = False
    """Inputs and finished batches stay at the provider."""
    staging: str | None = None
    """Vertex AI: `gs://bucket/prefix`; None: the environment's."""
    execution: Execution = "threads"
    """Who takes the steps: this process's threads, or the workers of a PostgreSQL journal."""
    notify: tuple[str, ...] = field(default=(), repr=False)
    """URLs that hear of the run's end and of its troubles; they may hold secrets: never shown."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for the journal."""
        values = asdict(self)
        return {
            **values,
            "inputs": list(self.inputs),
            "keep": list(self.keep),
            "notify": list(self.notify),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunConfig":
        """The config that `to_json` wrote."""
        listed = {name: tuple(values.get(name, ())) for name in ("inputs", "keep", "notify")}
        return cls(**{**values, **listed})
