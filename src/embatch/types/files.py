"""Files and models as a service lists them."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file at the service."""

    name: str
    """`files/{id}`, or `gs://bucket/path` on Vertex AI."""
    display_name: str = ""
    mime_type: str = ""
    size_bytes: int = 0
    create_time: datetime | None = None
    expiration_time: datetime | None = None
    """When the service removes it: 48 hours after an upload to the Gemini API."""
    sha256: str | None = None
    """SHA-256 of the content, hex; None where the service does not say."""
    state: str = ""
    """"active", "processing" or "failed"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDescription:
    """A model that a service offers."""

    name: str
    display_name: str
    input_token_limit: int | None = None
    methods: tuple[str, ...] = ()
    """Calls it takes, in the service's words: "embedContent", "asyncBatchEmbedContent", …"""
