"""The fake cloud as a test holds it: started, controlled, and asked for its bill."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from embatch.testing.cloud import batches, files, gemini, uploads
from embatch.testing.cloud.bill import Bill
from embatch.testing.cloud.core import CloudSettings, Core
from embatch.testing.cloud.faults import Facts, Fault
from embatch.testing.cloud.jobs import Jobs
from embatch.testing.cloud.web import CloudServer

ROUTES = (*gemini.ROUTES, *batches.ROUTES, *files.ROUTES, *uploads.ROUTES)


class CloudCrashedError(AssertionError):
    """The fake cloud itself failed; the message holds its tracebacks."""


class FakeCloud:
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
        settings: CloudSettings | None = None,
        **changes: Any,
    ) -> None:
        """`changes` are fields of `CloudSettings`: `seed`, `manual_clock`, `job_duration_s`, …"""
        self.settings = settings or CloudSettings(**changes)
        self._own_folder = state is None
        self.folder = Path(state or tempfile.mkdtemp(prefix="fake-cloud-"))
        self._core = Core(self.folder, self.settings, ROUTES)
        self._server = CloudServer(port, self._core.answer)
        self._core.stopping = self._server.stopping
        self._core.url = self._server.url
        self._core.jobs = Jobs(self._core, self._server.crashes)
        self._core.board.on_change(self._core.jobs.wake)
        for number, fault in enumerate(faults, 1):
            self._core.board.add(fault, default_id=f"given-{number}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        crashes = self.crashes
        self.stop()
        if crashes and kind is None:
            raise CloudCrashedError("\n".join(crashes))

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

    @property
    def url(self) -> str:
        """Where it listens; every API's base URL but storage's."""
        return self._server.url

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

    @property
    def crashes(self) -> list[str]:
        """Tracebacks of failures of the cloud itself; empty when it is sound."""
        return list(self._server.crashes)

    def add_fault(self, fault: Fault) -> str:
        """Puts a fault in force and gives its id."""
        return self._core.board.add(fault)

    def clear_faults(self, word: str | None = None) -> None:
        """Lifts all faults, those of a kind, or the one with an id."""
        self._core.board.clear(word)

    def faults(self) -> list[Facts]:
        """Faults in force, with how often each `matched` and `struck`."""
        return self._core.board.faults()

    def now(self) -> float:
        """The cloud's time, seconds since the epoch."""
        return self._core.clock.now()

    def advance(self, seconds: float) -> None:
        """Moves the clock; on return every job that became due has ended."""
        self._core.advance(seconds)

    def finish(self, name: str) -> None:
        """Brings a job to its end now, whatever the clock says."""
        self._core.jobs.finish(name)

    def jobs(self) -> list[dict[str, Any]]:
        """Every job with what the cloud knows of it, oldest first."""
        return self._core.jobs.all()

    def bill(self) -> Bill:
        """What was charged so far."""
        return self._core.ledger.bill()

    def times_billed(self, text: str, model: str | None = None) -> int:
        """How many batch rows were charged for a text."""
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return self._core.ledger.times_billed(digest, model)

    def rows_by_digest(self) -> dict[str, int]:
        """Batch rows charged by hex SHA-256 of the text."""
        return self._core.ledger.rows_by_digest()
