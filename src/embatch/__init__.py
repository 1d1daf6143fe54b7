"""Embed millions of texts: never lose a vector, never pay twice, never mix them up.

import embatch

status = embatch.run(["first text", "second text"], "vectors")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embatch.errors import (
    AlignmentError,
    AuthenticationError,
    BatchFailedError,
    BatchNotCompleteError,
    BatchTimeoutError,
    BudgetExceededError,
    ConfigError,
    EmbatchError,
    IndeterminateError,
    InputError,
    InvalidRequestError,
    JournalError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
    RateLimitError,
    SpaceMismatchError,
)

if TYPE_CHECKING:
    from embatch import vectors
    from embatch.api import Run, get_run, list_runs, run, submit
    from embatch.runs.status import RunStatus

__version__ = "0.1.0"

_LAZY = {
    "Run": "embatch.api",
    "get_run": "embatch.api",
    "list_runs": "embatch.api",
    "run": "embatch.api",
    "submit": "embatch.api",
    "RunStatus": "embatch.runs.status",
}
_MODULES = ("vectors",)

__all__ = [
    "AlignmentError",
    "AuthenticationError",
    "BatchFailedError",
    "BatchNotCompleteError",
    "BatchTimeoutError",
    "BudgetExceededError",
    "ConfigError",
    "EmbatchError",
    "IndeterminateError",
    "InputError",
    "InvalidRequestError",
    "JournalError",
    "NotFoundError",
    "PermissionDeniedError",
    "ProviderUnavailableError",
    "RateLimitError",
    "Run",
    "RunStatus",
    "SpaceMismatchError",
    "__version__",
    "get_run",
    "list_runs",
    "run",
    "submit",
    "vectors",
]


def __getattr__(name: str) -> Any:
    """Imports what is heavy at its first use."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in _MODULES:
        return import_module(f"embatch.{name}")
    raise AttributeError(f"module 'embatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
