"""Statuses to show."""

from collections.abc import Callable
from typing import Any

import pytest

from embatch.runs.status import RunStatus
from embatch.types.state import RunState


@pytest.fixture
def make_status() -> Callable[..., RunStatus]:
    """A status of a run half done; what is named is as named."""

    def make(**facts: Any) -> RunStatus:
        usual: dict[str, Any] = {
            "id": "r0123456789",
            "name": None,
            "state": RunState.RUNNING,
            "out": "/data/vectors",
            "provider": "local",
            "model": "all-MiniLM-L6-v2",
            "dims": 384,
            "precision": "bf16",
            "tags": {},
            "priority": 0,
            "rows": 20_000,
            "done": 10_000,
            "written": 8_192,
            "failed": 0,
            "copies": 0,
            "reused": 0,
            "truncated": 0,
            "tokens": 0,
            "batches": {"planned": 1, "submitted": 2, "published": 2},
            "rows_per_s": 212.0,
            "eta_s": 47.0,
            "cost_usd": 0.0,
            "saved_usd": 0.0,
            "created_at": 1000.0,
            "finished_at": None,
            "alert_below_pct": 95.0,
            "error_code": None,
            "error": None,
            "waiting": None,
        }
        return RunStatus(**usual | facts)

    return make
