"""Vertex AI as a provider: rows through Cloud Storage, jobs as batchPredictionJobs."""

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from embatch.client import objects
from embatch.client.flow import drive
from embatch.client.open import DEFAULT_MODEL, Auth
from embatch.client.vertex import Vertex
from embatch.config import CloudSettings
from embatch.errors import (
    EmbatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
)
from embatch.providers.base import OpenProvider, RemoteBatch, StagedItems, label_hash
from embatch.providers.clouds import Asked, CloudProvider, open_cloud
from embatch.providers.limits import service_limits
from embatch.providers.request_file import request_file
from embatch.transport import Transport

if TYPE_CHECKING:
    from google.auth.credentials import Credentials


class VertexProvider(CloudProvider):
    """Batches of Vertex AI. Input and results of a label share a folder under the staging one."""

    name: ClassVar[str] = "vertex"
    unreadable: ClassVar[tuple[type[EmbatchError], ...]] = (NotFoundError,)

    def __init__(
        self,
        cloud: Vertex,
        asked: Asked,
        transport: Transport,
        opener: OpenProvider | None = None,
    ) -> None:
        super().__init__(cloud, asked, transport, opener)
        self._vertex = cloud

    def upload(self, stage: StagedItems, label: str) -> str:
        """Copies the request rows to `STAGING/<label hash>/input.jsonl`, over what is there."""
        uri = f"{self._vertex.places.folder(label)}/input.jsonl"
        options = self._options
        most_bytes = service_limits(self.name, options.model).file_bytes
        with request_file(
            stage,
            label,
            options.vertex_row("\0"),
            affixes=options.affixes,
            most_bytes=most_bytes,
        ) as path:
            try:
                drive(objects.put(self._vertex.open_storage(), uri, path), self._performer)
            except InvalidRequestError as error:
                # Nobody has looked into the rows yet: they are not to blame.
                raise PermissionDeniedError(str(error)) from None
        return uri

    def submit(self, input_ref: str, label: str, *, items: int, priority: int) -> RemoteBatch:
        """Creates the job. Vertex AI has no priorities: none is sent."""
        del priority
        return super().submit(input_ref, label, items=items, priority=0)

    def discard(self, name: str | None, input_ref: str | None) -> None:
        """Deletes the job, and all that its folder holds: input and results.

        Without a name the input alone: a job that nobody has found may have results there.
        """
        if name is None:
            if input_ref is not None:
                drive(objects.delete(self._vertex.open_storage(), input_ref), self._performer)
            return
        folders = {_folder_of(input_ref)} if input_ref is not None else set()
        with suppress(NotFoundError):
            job = drive(self._vertex.get(name), self._performer)
            own = label_hash(job.label)
            output = job.output.directory if job.output is not None else None
            for place in (job.input_config.file, output):
                if place is not None and f"/{own}/" in place:
                    folders.add(f"{place.partition(f'/{own}/')[0]}/{own}/")
            drive(self._vertex.delete(name), self._performer)
        self.forget(name)
        for folder in sorted(folders):
            drive(objects.clear(self._vertex.open_storage(), folder), self._performer)


def _folder_of(uri: str) -> str:
    return uri.rpartition("/")[0] + "/"


def open_vertex(
    *,
    model: str | None,
    dims: int | None = None,
    task_type: str | None = None,
    settle_s: float | None = None,
    staging: str | None = None,
    settings: CloudSettings | None = None,
    credentials: "Credentials | None" = None,
) -> VertexProvider:
    """Vertex AI with the project, credentials and staging folder of `settings`, by default the
    environment's; `staging` and `credentials` outweigh them.

    Raises ConfigError, naming the variables, when something is missing.
    """
    asked = Asked.of(model or DEFAULT_MODEL, dims=dims, task_type=task_type, settle_s=settle_s)
    cloud = open_cloud(Auth.VERTEX_AI, staging=staging, settings=settings, credentials=credentials)
    if not isinstance(cloud, Vertex):
        raise TypeError("Vertex AI was asked for")
    opener = partial(
        open_vertex,
        model=model,
        dims=dims,
        task_type=task_type,
        settle_s=settle_s,
        staging=staging,
        settings=settings,
    )
    return VertexProvider(cloud, asked, Transport(), opener if credentials is None else None)
