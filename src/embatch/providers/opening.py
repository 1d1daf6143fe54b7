"""Opens the provider that a run names."""

from collections.abc import Callable
from pathlib import Path

from embatch.errors import InvalidRequestError
from embatch.providers.base import Provider
from embatch.types.results import TextEngine

PROVIDERS = ("local",)
"""Names that `open_provider` knows."""


def open_provider(
    name: str,
    *,
    model: str | None,
    precision: str,
    dims: int | None,
    task_type: str | None,
    folder: Path,
    open_engine: Callable[..., TextEngine] | None = None,
    checkpoint: Callable[[str], None],
) -> Provider:
    """The provider called `name`, for one model and task. `folder` is its own on this machine.

    `open_engine` stands in for the local engine in tests.
    """
    if name == "local":
        from embatch.providers.local import open_local

        return open_local(
            model=model,
            precision=precision,
            dims=dims,
            task_type=task_type,
            folder=folder,
            open_engine=open_engine,
            checkpoint=checkpoint,
        )
    raise InvalidRequestError(f"no provider {name!r}: use one of {', '.join(PROVIDERS)}")
