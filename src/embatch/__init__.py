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
    DuplicateKeyError,
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
    StorageError,
)

if TYPE_CHECKING:
    from embatch import vectors
    from embatch.api import Run, get_run, list_runs, run, submit
    from embatch.client import AsyncClient, Client, RetryPolicy
    from embatch.runs.status import RunStatus
    from embatch.types.batch import EmbedContentBatch, EmbedContentBatchStats
    from embatch.types.embedding import BatchEmbeddings, ContentEmbedding, RowError
    from embatch.types.state import JobState
    from embatch.types.task import TaskType

__version__ = "0.1.0"

_LAZY = {
    "AsyncClient": "embatch.client",
    "BatchEmbeddings": "embatch.types.embedding",
    "Client": "embatch.client",
    "ContentEmbedding": "embatch.types.embedding",
    "EmbedContentBatch": "embatch.types.batch",
    "EmbedContentBatchStats": "embatch.types.batch",
    "JobState": "embatch.types.state",
    "RetryPolicy": "embatch.client",
    "RowError": "embatch.types.embedding",
    "TaskType": "embatch.types.task",
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
    "AsyncClient",
    "AuthenticationError",
    "BatchEmbeddings",
    "BatchFailedError",
    "BatchNotCompleteError",
    "BatchTimeoutError",
    "BudgetExceededError",
    "Client",
    "ConfigError",
    "ContentEmbedding",
    "DuplicateKeyError",
    "EmbatchError",
    "EmbedContentBatch",
    "EmbedContentBatchStats",
    "IndeterminateError",
    "InputError",
    "InvalidRequestError",
    "JobState",
    "JournalError",
    "NotFoundError",
    "PermissionDeniedError",
    "ProviderUnavailableError",
    "RateLimitError",
    "RetryPolicy",
    "RowError",
    "Run",
    "RunStatus",
    "SpaceMismatchError",
    "StorageError",
    "TaskType",
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
