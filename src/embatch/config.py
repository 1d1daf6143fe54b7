"""Settings of the cloud client. Nothing else reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


class Secret:
    """A key or token that no repr, message or log can show."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def reveal(self) -> str:
        """The value itself, for the header that needs it."""
        return self._value


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudSettings:
    """What the environment says about the clouds. The names are those of Google's own tools."""

    api_key: Secret | None = None
    """`GOOGLE_API_KEY`, else `GEMINI_API_KEY`."""
    use_vertex: bool = False
    """`GOOGLE_GENAI_USE_VERTEXAI`: 1 or true."""
    project: str | None = None
    """`GOOGLE_CLOUD_PROJECT`."""
    location: str | None = None
    """`GOOGLE_CLOUD_LOCATION`."""
    gemini_base_url: str | None = None
    """`GOOGLE_GEMINI_BASE_URL`: another server that speaks the Gemini protocol."""
    vertex_base_url: str | None = None
    """`GOOGLE_VERTEX_BASE_URL`."""
    api_version: str | None = None
    """`GOOGLE_GENAI_API_VERSION`."""
    staging: str | None = None
    """`EMBATCH_STAGING`: `gs://bucket/prefix` for Vertex AI batches."""
    storage_base_url: str | None = None
    """`STORAGE_EMULATOR_HOST`: a Cloud Storage server of one's own."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "CloudSettings":
        """The settings of `environ`, by default this process's environment."""
        env = os.environ if environ is None else environ

        def value(*names: str) -> str | None:
            return next((env[name].strip() for name in names if env.get(name, "").strip()), None)

        key = value("GOOGLE_API_KEY", "GEMINI_API_KEY")
        return cls(
            api_key=Secret(key) if key else None,
            use_vertex=(value("GOOGLE_GENAI_USE_VERTEXAI") or "").lower() in {"1", "true", "yes"},
            project=value("GOOGLE_CLOUD_PROJECT"),
            location=value("GOOGLE_CLOUD_LOCATION"),
            gemini_base_url=value("GOOGLE_GEMINI_BASE_URL"),
            vertex_base_url=value("GOOGLE_VERTEX_BASE_URL"),
            api_version=value("GOOGLE_GENAI_API_VERSION"),
            staging=value("EMBATCH_STAGING"),
            storage_base_url=value("STORAGE_EMULATOR_HOST"),
        )
