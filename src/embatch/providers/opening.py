"""Opens the provider that a run names."""

from collections.abc import Callable
from pathlib import Path

from embatch.errors import InvalidRequestError
from embatch.providers.base import Provider
from embatch.types.results import TextEngine

PROVIDERS = ("local", "gemini", "vertex")
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
    settle_s: float | None = None,
    staging: str | None = None,
) -> Provider:
    """The provider called `name`, for one model and task. `folder` is its own on this machine.

    `open_engine` stands in for the local engine in tests. The clouds find keys and credentials in
    the environment; `settle_s` is theirs (None: the default), `staging` is Vertex AI's.
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
    if name == "gemini":
        from embatch.providers.gemini import open_gemini

        return open_gemini(model=model, dims=dims, task_type=task_type, settle_s=settle_s)
    if name == "vertex":
        from embatch.providers.vertex import open_vertex

        return open_vertex(
            model=model, dims=dims, task_type=task_type, settle_s=settle_s, staging=staging
        )
    raise InvalidRequestError(f"no provider {name!r}: use one of {', '.join(PROVIDERS)}")
