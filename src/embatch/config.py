"""Settings: defaults < embatch.toml < environment < command line. Nothing else reads them."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from embatch.errors import ConfigError

CONFIG_FILE = "embatch.toml"


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


_VARIABLES = {
    "home": "EMBATCH_HOME",
    "journal": "EMBATCH_JOURNAL_URL",
    "provider": "EMBATCH_PROVIDER",
    "model": "EMBATCH_MODEL",
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
        home=home, journal=url, provider=values.get("provider"), model=values.get("model")
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
        if not isinstance(value, str):
            raise ConfigError(f"{path} sets {name} to {value!r}: it must be a string")
    return values
