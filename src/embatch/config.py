"""Settings: defaults < embatch.toml < environment < command line. Nothing else reads them."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from embatch.errors import ConfigError

CONFIG_FILE = "embatch.toml"
CACHE_MB = 8192
"""Objects that are kept on this machine when nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where embatch keeps its things, and the defaults a user has set."""

    home: Path
    """Folder of the journal and the local service; `EMBATCH_HOME`."""
    journal: str
    """URL of the journal's database; `EMBATCH_JOURNAL_URL`."""
    provider: str | None = None
    """Provider when the command names none; `EMBATCH_PROVIDER`."""
    model: str | None = None
    """Model when the command names none; `EMBATCH_MODEL`."""
    notify: tuple[str, ...] = field(default=(), repr=False)
    """Who hears of runs when the command names none; `EMBATCH_NOTIFY`, URLs with spaces between."""


_VARIABLES = {
    "home": "EMBATCH_HOME",
    "journal": "EMBATCH_JOURNAL_URL",
    "provider": "EMBATCH_PROVIDER",
    "model": "EMBATCH_MODEL",
    "notify": "EMBATCH_NOTIFY",
}


def load_settings(
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    journal: str | None = None,
) -> Settings:
    """The settings in force: `embatch.toml` of `folder`, then the environment, then `journal`.

    Raises ConfigError for a file that is not TOML or holds a name that embatch does not know.
    """
    env = os.environ if environ is None else environ
    values = _read_file((folder or Path.cwd()) / CONFIG_FILE)
    values.update({name: env[var] for name, var in _VARIABLES.items() if env.get(var)})
    if journal:
        values["journal"] = journal
    home = Path(values.pop("home", "") or _default_home()).expanduser().absolute()
    url = journal_url(values.pop("journal", "") or str(home / "journal.db"))
    return Settings(
        home=home,
        journal=url,
        provider=values.get("provider"),
        model=values.get("model"),
        notify=tuple(values.get("notify", "").split()),
    )


def journal_url(location: str) -> str:
    """A database URL; a bare path means a SQLite file."""
    if "://" in location:
        return location
    return f"sqlite:///{Path(location).expanduser().absolute()}"


def _default_home() -> str:
    from platformdirs import user_data_dir

    return user_data_dir("embatch", appauthor=False)


def _read_file(path: Path) -> dict[str, str]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    known = {field.name for field in fields(Settings)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"{path} sets {name!r}, which is no setting: use {', '.join(sorted(known))}"
            )
        if name == "notify" and isinstance(value, list) and all(map(_is_text, value)):
            values[name] = " ".join(value)
        elif name == "notify" and not isinstance(value, str):
            raise ConfigError(f"{path} sets notify to what is no list of URLs")
        elif not isinstance(value, str):
            raise ConfigError(f"{path} sets {name} to {value!r}: it must be a string")
    return values


def _is_text(value: object) -> bool:
    return isinstance(value, str)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """What the environment says about object stores. The names are those of each cloud's tools."""

    cache: Path
    """Folder for what must lie on this machine while it is used; `EMBATCH_CACHE`."""
    cache_bytes: int = CACHE_MB << 20
    """What is kept there of objects that may be needed again; `EMBATCH_CACHE_MB`."""
    s3_endpoint: str | None = None
    """`AWS_ENDPOINT_URL_S3`, else `AWS_ENDPOINT_URL`: a server that speaks S3's protocol."""
    s3_region: str | None = None
    """`AWS_REGION`, else `AWS_DEFAULT_REGION`."""
    s3_unsigned: bool = False
    """`AWS_SKIP_SIGNATURE`: a bucket that is public."""
    s3_http: bool = False
    """`AWS_ALLOW_HTTP`: another machine may be spoken to without encryption."""
    google_endpoint: str | None = None
    """`STORAGE_EMULATOR_HOST`."""
    azure_account: str | None = None
    """`AZURE_STORAGE_ACCOUNT_NAME`."""
    azure_endpoint: str | None = None
    """`AZURE_STORAGE_ENDPOINT`, else `AZURE_ENDPOINT`."""
    azure_http: bool = False
    """`AZURE_ALLOW_HTTP`."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "StorageSettings":
        """The settings of `environ`, by default this process's environment."""
        env = os.environ if environ is None else environ

        def value(*names: str) -> str | None:
            return next((env[name].strip() for name in names if env.get(name, "").strip()), None)

        def asked(name: str) -> bool:
            return (value(name) or "").lower() in {"1", "true", "yes"}

        cache = value("EMBATCH_CACHE")
        size = value("EMBATCH_CACHE_MB") or str(CACHE_MB)
        if not size.isdigit():
            raise ConfigError(f"EMBATCH_CACHE_MB is {size!r}: give a number of megabytes")
        return cls(
            cache=Path(cache).expanduser().absolute()
            if cache
            else load_settings(environ=env).home / "cache",
            cache_bytes=int(size) << 20,
            s3_endpoint=value("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            s3_region=value("AWS_REGION", "AWS_DEFAULT_REGION"),
            s3_unsigned=asked("AWS_SKIP_SIGNATURE"),
            s3_http=asked("AWS_ALLOW_HTTP"),
            google_endpoint=value("STORAGE_EMULATOR_HOST"),
            azure_account=value("AZURE_STORAGE_ACCOUNT_NAME"),
            azure_endpoint=value("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
            azure_http=asked("AZURE_ALLOW_HTTP"),
        )


def serve_api_key(environ: Mapping[str, str] | None = None) -> Secret | None:
    """The key that `embatch serve` asks its callers for: `EMBATCH_SERVE_API_KEY`."""
    env = os.environ if environ is None else environ
    key = env.get("EMBATCH_SERVE_API_KEY")
    return Secret(key) if key else None


def webhook_secret(environ: Mapping[str, str] | None = None) -> Secret | None:
    """What webhooks are signed with: `EMBATCH_WEBHOOK_SECRET`, one secret or more."""
    env = os.environ if environ is None else environ
    words = env.get("EMBATCH_WEBHOOK_SECRET", "").strip()
    return Secret(words) if words else None


def prefer_plain_allocator() -> None:
    """Has Arrow, when it is loaded, take memory from the system, unless `ARROW_DEFAULT_MEMORY_POOL`
    says otherwise.

    Its own choice, mimalloc, keeps some 80 MB that threads have let go of; it hears of another by
    this variable alone, as the processes do that this one starts.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def dashboard_token(environ: Mapping[str, str] | None = None) -> Secret | None:
    """The token that `embatch dashboard` asks browsers for: `EMBATCH_DASHBOARD_TOKEN`."""
    env = os.environ if environ is None else environ
    token = env.get("EMBATCH_DASHBOARD_TOKEN")
    return Secret(token) if token else None
