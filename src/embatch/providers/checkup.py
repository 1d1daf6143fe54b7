"""A look at a cloud from this machine: all that a run will need there, one thing after another."""

import math
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from embatch.client import objects
from embatch.client.cloud import Cloud
from embatch.client.flow import Flow, Thread, drive, stream
from embatch.client.open import DEFAULT_MODEL, Auth
from embatch.client.requests import EmbedOptions
from embatch.client.vertex import Vertex
from embatch.config import CloudSettings
from embatch.errors import (
    AlignmentError,
    AuthenticationError,
    ConfigError,
    EmbatchError,
    NotFoundError,
    PermissionDeniedError,
    ProviderUnavailableError,
)
from embatch.providers.clouds import UNIT_TOLERANCE, open_cloud
from embatch.transport import Lost, Transport
from embatch.types.files import ModelDescription
from embatch.types.models import bare_model_name, find_model

MOST_SKEW_S: Final = 60.0
"""Clocks further apart than this spoil signed logins, deadlines and waits for quotas."""
SILENCE_S: Final = 30.0
"""Longest silence of a service that is waited for here."""
SAMPLE_TEXT: Final = "Is everything well?"
BATCH_METHOD: Final = "asyncBatchEmbedContent"
_NOTE: Final = b"embatch doctor wrote this and removes it again\n"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One thing to look at."""

    what: str
    take: Callable[[], str]
    """Tells what was found; raises EmbatchError, which says what to do."""
    needs: str | None = None
    """The look that must have gone well before this one."""


class CloudCheckup:
    """The looks at one cloud. Close it.

    `model` None is the provider's default; `dims` None asks for all of its values. `staging` and
    `settings` are as for `open_cloud`. `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        auth: Auth,
        *,
        model: str | None = None,
        dims: int | None = None,
        staging: str | None = None,
        settings: CloudSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._auth = auth
        self._model = bare_model_name(model or DEFAULT_MODEL)
        self._dims = dims
        self._staging = staging
        self._settings = settings
        self._clock = clock
        self._performer = Thread(Transport(timeout_s=SILENCE_S))
        self._opened: Cloud | None = None
        self._ahead_s: float | None = None
        self._models: list[ModelDescription] = []

    def looks(self) -> Sequence[Look]:
        """In the order in which a run would meet them."""
        first = [
            Look(what="credentials", take=self.credentials),
            Look(what="service", take=self.service, needs="credentials"),
            Look(what="clock", take=self.clock, needs="service"),
        ]
        vector = Look(what="vector", take=self.vector, needs="access")
        if self._auth is Auth.GEMINI:
            return [
                *first,
                Look(what="access", take=self.model_access, needs="service"),
                Look(what="model", take=self.model, needs="access"),
                Look(what="batches", take=self.batches, needs="access"),
                vector,
            ]
        return [
            *first,
            Look(what="location", take=self.location, needs="credentials"),
            Look(what="access", take=self.batches, needs="service"),
            vector,
            Look(what="bucket", take=self.bucket, needs="credentials"),
        ]

    def close(self) -> None:
        """Closes every connection. Safe to call twice."""
        self._performer.transport.close()

    @property
    def _cloud(self) -> Cloud:
        if self._opened is None:
            raise ConfigError("the credentials come first")
        return self._opened

    @property
    def _vertex(self) -> Vertex:
        cloud = self._cloud
        if not isinstance(cloud, Vertex):
            raise TypeError("Vertex AI was asked for")
        return cloud

    def credentials(self) -> str:
        """What leads to the cloud is set, and gives a token where tokens are used."""
        cloud = open_cloud(self._auth, staging=self._staging, settings=self._settings)
        drive(cloud.calls.ready(), self._performer)
        self._opened = cloud
        if isinstance(cloud, Vertex):
            cloud.places.require_project()
            places = cloud.places
            return f"a token came; project {places.project}, location {places.location}"
        keyless = cloud.calls.authorization.mark == "open"
        return "no key is set, and none asked for" if keyless else "an API key is set"

    def service(self) -> str:
        """Somebody answers; how far the local clock is ahead is noted."""
        calls = self._cloud.calls
        host = urlsplit(calls.base_url).netloc.rpartition("@")[2]
        began, start = self._clock(), time.perf_counter()
        answer = self._performer.transport.send(calls.request("GET", "/", open_to_all=True))
        took_s = time.perf_counter() - start
        if isinstance(answer, Lost):
            raise ProviderUnavailableError(
                f"{host}: {answer.reason}: check the network, proxy and address"
            )
        there = _seconds(answer.headers.get("date", ""))
        if there is not None:
            # The header has whole seconds, cut off; it was written about half way.
            self._ahead_s = began + took_s / 2 - (there + 0.5)
        return f"{host} answers in {took_s * 1000:.0f} ms"

    def clock(self) -> str:
        """The local clock is right, by the service's own."""
        ahead = self._ahead_s
        if ahead is None:
            return "the service does not tell its time"
        if abs(ahead) > MOST_SKEW_S:
            raise ConfigError(
                f"this machine's clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}: "
                "set it by a time server (NTP)"
            )
        return f"within {max(1, math.ceil(abs(ahead)))} s of the service's"

    def location(self) -> str:
        """The location takes batches of the model, as far as that is documented."""
        here, known = self._vertex.places.location, find_model(self._model).batch_locations
        if not known:
            return f"{here}; where {self._model} has batches is not known to embatch"
        if here not in known:
            raise ConfigError(
                f"{self._model} has no batches in {here}: set GOOGLE_CLOUD_LOCATION to one of "
                f"{', '.join(sorted(known))}"
            )
        return f"{here} takes batches of {self._model}"

    def model_access(self) -> str:
        """The key is accepted: it lists the models."""
        self._models = list(stream(self._cloud.list_models(), self._performer))
        return f"the list of models can be read ({len(self._models)} models)"

    def model(self) -> str:
        """The service has the model, and takes batches of it."""
        found = next((one for one in self._models if one.name == self._model), None)
        if found is None:
            raise NotFoundError(
                f"the service lists no model {self._model}: give --model, one of "
                f"{self._listed('embed') or 'those that it lists'}"
            )
        if found.methods and BATCH_METHOD not in found.methods:
            raise ConfigError(
                f"{self._model} has no {BATCH_METHOD}, only {', '.join(found.methods)}: give "
                f"--model, one of {self._listed(BATCH_METHOD) or 'those that have it'}"
            )
        limit = f"{found.input_token_limit:,}" if found.input_token_limit else "not told how many"
        return f"{self._model}: {limit} tokens a text, takes batches"

    def _listed(self, method: str) -> str:
        """The models that take a call of this name or beginning."""
        wanted = [
            one.name
            for one in self._models
            if any(name.lower().startswith(method.lower()) for name in one.methods)
        ]
        return ", ".join(sorted(wanted))

    def batches(self) -> str:
        """The list of batches can be read: lost creations are found there."""
        next(stream(self._cloud.list_batches(), self._performer), None)
        return "the list of batches can be read"

    def vector(self) -> str:
        """One short text is embedded, for a few tokens; its vector has the length asked for."""
        options = EmbedOptions.of(self._model, None, self._dims, None)
        usual = options.expected_dims
        if self._dims is None:  # whatever length comes is to be told
            options = replace(options, model=replace(options.model, known=False))
        start = time.perf_counter()
        (found,) = drive(self._cloud.embed([SAMPLE_TEXT], options), self._performer)
        took_s = time.perf_counter() - start
        if usual not in (None, found.dimensionality):
            raise ConfigError(
                f"{self._model} gives {found.dimensionality} values here, not {usual}: "
                f"say --dims {found.dimensionality} on the run"
            )
        if found.norm == 0.0:
            raise AlignmentError(
                f"{self._model} gave a vector of zeros: try again, and another --model if it stays"
            )
        unit = abs(found.norm - 1.0) <= UNIT_TOLERANCE
        parts = [f"{found.dimensionality} dims, length {found.norm:.3f}"]
        if not unit:
            parts.append("a run brings it to 1")
        if found.cut_from is not None:
            parts.append(f"{found.cut_from} values came and are cut here")
        tokens = "a few" if found.tokens is None else f"{found.tokens}"
        return f"{', '.join(parts)}; {took_s:.1f} s, {tokens} tokens"

    def bucket(self) -> str:
        """A small object can be written to the staging folder, listed, read and removed."""
        vertex = self._vertex
        folder = vertex.places.root
        storage = vertex.open_storage()
        uri = f"{folder}/embatch-doctor-{secrets.token_hex(8)}/note.txt"
        with tempfile.TemporaryDirectory(prefix="embatch-") as scratch:
            sent, read = Path(scratch) / "sent", Path(scratch) / "read"
            sent.write_bytes(_NOTE)
            self._do("write to", objects.put(storage, uri, sent))
            try:
                found = self._do("list", objects.get(storage, uri))
                self._do("read from", objects.download_to(storage, uri, read))
                if found.size_bytes != len(_NOTE) or read.read_bytes() != _NOTE:
                    raise ProviderUnavailableError(f"{uri} gave back something else: try again")
            except EmbatchError:
                with suppress(EmbatchError):  # the first trouble is the one to tell
                    drive(objects.delete(storage, uri), self._performer)
                raise
            self._do("remove from", objects.delete(storage, uri))
        return f"{folder}: written, read and removed"

    def _do(self, step: str, flow: Flow[T]) -> T:
        try:
            return drive(flow, self._performer)
        except (AuthenticationError, PermissionDeniedError) as error:
            raise type(error)(f"cannot {step} the staging folder: {error}") from None
        except NotFoundError as error:
            raise NotFoundError(
                f"cannot {step} the staging folder: {error}; check the name of the bucket"
            ) from None


def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return None
