"""The Gemini API as a provider: rows through the Files API, jobs by asyncBatchEmbedContent."""

import hashlib
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

from embatch.client.flow import drive
from embatch.client.gemini import Gemini
from embatch.client.open import DEFAULT_MODEL, Auth
from embatch.config import CloudSettings
from embatch.errors import (
    EmbatchError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
)
from embatch.providers.base import OpenProvider, StagedItems
from embatch.providers.clouds import Asked, CloudProvider, open_cloud
from embatch.providers.limits import GEMINI
from embatch.providers.request_file import request_file
from embatch.transport import Transport
from embatch.types.files import RemoteFile

_GONE: Final = (NotFoundError, PermissionDeniedError)
"""How the Files API tells of a file that is not there: 403 as a rule."""
_ID_CHARS: Final = 24


class GeminiProvider(CloudProvider):
    """Batches of the Gemini API.

    The input of a label is one file under one name, so that an upload that is done again after a
    crash leaves nothing behind.
    """

    name: ClassVar[str] = "gemini"
    unreadable: ClassVar[tuple[type[EmbatchError], ...]] = _GONE

    def __init__(
        self,
        cloud: Gemini,
        asked: Asked,
        transport: Transport,
        opener: OpenProvider | None = None,
    ) -> None:
        super().__init__(cloud, asked, transport, opener)
        self._gemini = cloud

    def upload(self, stage: StagedItems, label: str) -> str:
        """Uploads the request rows, in chunks that are taken up where they broke off."""
        name, options = file_name_of(label), self._options
        row = {"request": options.gemini_request("\0")}
        with request_file(
            stage, label, row, affixes=options.affixes, most_bytes=GEMINI.file_bytes
        ) as path:
            standing = self._look(name)
            if standing is not None:
                if _holds(standing, path):
                    return name
                self._delete(name)
            flow = self._gemini.upload_file(path, display_name=label, name=name)
            try:
                return drive(flow, self._performer).name
            except InvalidRequestError as error:
                # Nobody has looked into the rows yet: they are not to blame.
                raise PermissionDeniedError(str(error)) from None

    def refusal(self, error: EmbatchError, input_ref: str) -> EmbatchError:
        """A file that is gone or not ready yet is no fault of its rows."""
        file = self._look(input_ref)
        if file is None or file.state == "failed":
            return NotFoundError(
                f"the input {input_ref} is no longer there: files are kept for 48 hours"
            )
        if file.state == "processing":
            return ProviderUnavailableError(f"{input_ref} is still being taken in by the service")
        return super().refusal(error, input_ref)

    def discard(self, name: str | None, input_ref: str | None) -> None:
        """Deletes the batch, its result file with it, and the input."""
        if name is not None:
            with suppress(NotFoundError):
                drive(self._gemini.delete(name), self._performer)
            self.forget(name)
        if input_ref is not None:
            self._delete(input_ref)

    def _look(self, name: str) -> RemoteFile | None:
        try:
            return drive(self._gemini.get_file(name), self._performer)
        except _GONE:
            return None

    def _delete(self, name: str) -> None:
        with suppress(*_GONE):
            drive(self._gemini.delete_file(name), self._performer)


def file_name_of(label: str) -> str:
    """The file that holds the input of the batch `label`."""
    return f"files/eb-{hashlib.sha256(label.encode()).hexdigest()[:_ID_CHARS]}"


def _holds(file: RemoteFile, path: Path) -> bool:
    """The file at the service is the one at `path`, whole."""
    if file.state == "failed" or file.size_bytes != path.stat().st_size:
        return False
    with path.open("rb") as local:
        return file.sha256 == hashlib.file_digest(local, "sha256").hexdigest()


def open_gemini(
    *,
    model: str | None,
    dims: int | None = None,
    task_type: str | None = None,
    settle_s: float | None = None,
    settings: CloudSettings | None = None,
) -> GeminiProvider:
    """The Gemini API with the key of `settings`, by default the environment's.

    Raises ConfigError, naming the variables, without a key.
    """
    asked = Asked.of(model or DEFAULT_MODEL, dims=dims, task_type=task_type, settle_s=settle_s)
    cloud = open_cloud(Auth.GEMINI, settings=settings)
    if not isinstance(cloud, Gemini):
        raise TypeError("the Gemini API was asked for")
    opener = partial(
        open_gemini,
        model=model,
        dims=dims,
        task_type=task_type,
        settle_s=settle_s,
        settings=settings,
    )
    return GeminiProvider(cloud, asked, Transport(), opener)
