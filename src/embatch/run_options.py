"""What `embatch.run` and `embatch.submit` take beside data and output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from embatch.environment import Environment
from embatch.runs.config import Audit, Execution, TooLong


class RunOptions(TypedDict, total=False):
    """What `submit` and `run` take beside data and output; the command's flags of these names."""

    provider: str | None
    """"local", "gemini" or "vertex"; None: the settings'."""
    model: str | None
    """Name or folder of the model; None: the settings', else the provider's default."""
    text: str | None
    """Column to embed; None: `text`, else the only string column."""
    key: str | None
    """Column of unique keys; None: the row number."""
    keep: Sequence[str]
    """Columns to carry into the output."""
    dims: int | None
    """Values of each vector; None: all of the model."""
    task_type: str | None
    precision: str
    """Of the local engine: "auto", "f32", "bf16" or "int8"."""
    reuse: str | Path | None
    """An earlier output of the same space, whose vectors serve equal texts."""
    name: str | None
    tags: Mapping[str, str] | None
    priority: int | None
    """Higher is worked on first; None leaves that of a run which stands already."""
    notify: Sequence[str] | None
    """URLs that hear of the run's end and of its troubles; None: the settings'."""
    journal: str | None
    """Database of runs, a file or URL; None: the settings'."""
    environment: Environment | None
    """An open environment, in place of `journal`."""

    max_batch_items: int | None
    max_batch_tokens: int | None
    poll_interval_s: float | None
    too_long: TooLong
    alert_below_pct: float
    settle_s: float | None
    max_cost_usd: float | None
    audit: Audit
    deadline: float | None
    stuck_after_s: float
    probe: bool
    keep_remote: bool
    staging: str | None
    execution: Execution
    """These are `RunConfig`'s, where each is told."""
