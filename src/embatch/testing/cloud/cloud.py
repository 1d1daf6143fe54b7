"""The fake cloud as a test holds it: started, controlled, and asked for its bill."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from embatch.testing.cloud import batches, files, gemini, objects, publishers, uploads, vertex
from embatch.testing.cloud.control import Controls, control_route
from embatch.testing.cloud.core import CloudSettings, Core
from embatch.testing.cloud.faults import Fault
from embatch.testing.cloud.jobs import Jobs
from embatch.testing.cloud.verbs import verbs_of
from embatch.testing.cloud.web import CloudServer

_SURFACES = (gemini, batches, files, uploads, vertex, publishers, objects)


class CloudCrashedError(AssertionError):
    """The fake cloud itself failed; the message holds its tracebacks."""


class CloudAddress(Controls):
    """Where a fake cloud listens and what opens it, beside its controls."""

    url: str
    """Where it listens."""
    settings: CloudSettings

    @property
    def gemini_url(self) -> str:
        """Base URL for the Gemini API: GOOGLE_GEMINI_BASE_URL."""
        return self.url

    @property
    def vertex_url(self) -> str:
        """Base URL for Vertex AI: GOOGLE_VERTEX_BASE_URL."""
        return self.url

    @property
    def storage_url(self) -> str:
        """Base URL for Cloud Storage: obstore's `base_url`, GOOGLE_BASE_URL."""
        return self.url + "/storage"

    @property
    def token_url(self) -> str:
        """Token endpoint: `token_uri` of a service account's key file."""
        return self.url + "/token"

    @property
    def api_key(self) -> str:
        """The one key that is valid."""
        return self.settings.api_key

    @property
    def access_token(self) -> str:
        """A bearer token that never runs out."""
        return self.settings.access_token


class FakeCloud(CloudAddress):
    """A Gemini API, a Vertex AI and a Cloud Storage of one's own, on 127.0.0.1.

    A context manager that runs on threads of this process:

        with FakeCloud(faults=[Fault("shuffle")]) as cloud:
            client = Client(api_key=cloud.api_key, base_url=cloud.gemini_url)

    `state` names a folder that a later cloud goes on from; without it all is gone at the end.
    Leaving the context raises `CloudCrashedError` when the cloud itself failed on a request.
    """

    def __init__(
        self,
        *,
        faults: Iterable[Fault] = (),
        state: Path | str | None = None,
        port: int = 0,
        **settings: Any,
    ) -> None:
        """`settings` are fields of `CloudSettings`: `seed`, `manual_clock`, `job_duration_s`, …"""
        self.settings = CloudSettings(**settings)
        self._own_folder = state is None
        self.folder = Path(state or tempfile.mkdtemp(prefix="fake-cloud-"))
        routes = [line for surface in _SURFACES for line in surface.ROUTES]
        core = Core(self.folder, self.settings, routes)
        self._core = core
        self._server = CloudServer(port, core.answer)
        core.stopping = self._server.stopping
        self.url = core.url = self._server.url
        core.jobs = Jobs(core, self._server.crashes)
        core.publish = lambda job: vertex.publish(core, job)
        core.board.on_change(core.jobs.wake)
        verbs = verbs_of(core, self._server.crashes)
        routes.append(control_route(verbs))
        super().__init__(lambda verb, arguments: verbs[verb](**arguments))
        for number, fault in enumerate(faults, 1):
            core.board.add(fault, default_id=f"given-{number}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.stop()
        if self._server.crashes and kind is None:
            raise CloudCrashedError("\n".join(self._server.crashes))

    def start(self) -> None:
        """Begins to answer and to work off jobs."""
        self._server.start()
        self._core.jobs.start()

    def stop(self) -> None:
        """Breaks every connection and stops; without `state` all is removed."""
        self._server.stop()
        self._core.jobs.stop()
        self._core.store.close()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
