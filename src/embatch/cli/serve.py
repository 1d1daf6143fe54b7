"""`embatch serve`: the Gemini protocol on this machine, over the local engine."""

import ipaddress
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from embatch.cli import options
from embatch.cli.exits import ExitCode
from embatch.cli.session import Session
from embatch.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from embatch.config import Secret
    from embatch.server.service import Service
    from embatch.server.settings import ServerSettings
    from embatch.server.simulation.profile import Profile
    from embatch.server.weather import Weather
    from embatch.types.results import TextEngine


MAX_LIFETIME_S: Final = 10 * 365 * 86400.0

Host = Annotated[
    str,
    typer.Option(
        "--host", metavar="HOST", help="Address to listen on. Another than loopback needs a key."
    ),
]
Port = Annotated[
    int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free one.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FOLDER",
        help="Where batches and files are kept.  Default: serve in EMBATCH_HOME.",
    ),
]
Alias = Annotated[
    list[str] | None,
    typer.Option(
        "--alias",
        metavar="A=M",
        help="Also answer to the name A with model M; may be given often. gemini-embedding-001,"
        " gemini-embedding-2, gemini-embedding-2-preview and text-embedding-004 stand for --model"
        " already.",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Key that callers must show. Better in EMBATCH_SERVE_API_KEY, where no process"
        " list shows it.",
        show_default=False,
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="Without a key, also answer calls that name this host, as those of a proxy on this"
        " machine do, and pages from there; may be given often.",
    ),
]
Simulate = Annotated[
    list[str] | None,
    typer.Option(
        "--simulate",
        metavar="PROFILE",
        help="Show faults on purpose, to try a pipeline against a bad day: presets or JSON files"
        " of faults, commas between them; may be given often. list tells the presets.",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        help="What all chance of --simulate is drawn from.  Default: that of the file, else 0.",
        show_default=False,
    ),
]
EngineKind = Annotated[
    Literal["local", "fake"],
    typer.Option("--engine", help="fake: vectors are hashes of the texts, for tests."),
]
MaxInlineBytes = Annotated[
    int,
    typer.Option(
        "--max-inline-bytes",
        metavar="N",
        min=1024,
        help="Largest JSON body that makes a batch.",
    ),
]
MaxFileBytes = Annotated[
    int, typer.Option("--max-file-bytes", metavar="N", min=1, help="Largest file.")
]
MaxBatches = Annotated[
    int, typer.Option("--max-batches", metavar="N", min=1, help="Most unfinished batches.")
]
FileLifetime = Annotated[
    float,
    typer.Option(
        "--file-lifetime-s",
        metavar="S",
        min=1.0,
        max=MAX_LIFETIME_S,
        help="Seconds for which files are kept: ten years at most.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Tell the address as one line of JSON.")]


def serve(
    context: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 8787,
    data: Data = None,
    model: options.Model = None,
    precision: options.Precision = "auto",
    alias: Alias = None,
    api_key: ApiKey = None,
    allow_host: AllowHost = None,
    engine: EngineKind = "local",
    max_inline_bytes: MaxInlineBytes = 20_000_000,
    max_file_bytes: MaxFileBytes = 2_147_483_648,
    max_batches: MaxBatches = 100,
    file_lifetime_s: FileLifetime = 172_800.0,
    simulate: Simulate = None,
    seed: Seed = None,
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    as_json: Json = False,
) -> None:
    """Serve the Gemini API's embedding calls and batches from this machine, until Ctrl-C."""
    _require_libraries()
    from embatch.config import load_settings
    from embatch.server.settings import ServerSettings

    session = Session.of(context, as_json=as_json)
    profile = _profile(simulate or [], seed)
    if profile == "list":
        _list_presets(session)
        return
    if math.isnan(file_lifetime_s):
        raise InvalidRequestError("--file-lifetime-s nan is no number: give seconds")
    key = _key(api_key)
    if key is None:
        _require_loopback(host)
    settings = ServerSettings(
        folder=_data_folder(data or load_settings().home / "serve"),
        api_key=key,
        allowed_hosts=_allowed_hosts(allow_host or ()),
        max_inline_bytes=max_inline_bytes,
        max_file_bytes=max_file_bytes,
        max_batches=max_batches,
        file_lifetime_s=file_lifetime_s,
    )
    aliases, opener = _parse_aliases(alias or []), _opener(session, engine, precision)
    place = (host, port)
    if not _run(session, settings, place, options.absolute_model(model), aliases, opener, profile):
        session.note(
            "the slice in hand did not end in time; it is computed again at the next start"
        )
        raise typer.Exit(ExitCode.FAILED)


def _run(
    session: Session,
    settings: "ServerSettings",
    address: tuple[str, int],
    model: str | None,
    aliases: "Mapping[str, str]",
    opener: "Callable[[str | None], TextEngine]",
    profile: "Profile | None",
) -> bool:
    """Serves until a signal comes. False when the slice in hand took too long to end."""
    from embatch.listening import bind, url_of
    from embatch.server.models import open_catalogue
    from embatch.server.run import serve
    from embatch.server.service import Service

    with ExitStack() as opened:
        bound = opened.enter_context(closing(bind(*address)))
        with session.busy("opening the model"):
            catalogue = open_catalogue(model, aliases, opener)
        opened.callback(catalogue.close)
        with _files_of_ones_own():
            service = Service(settings, catalogue, weather=_weather(profile))
            ended = serve(
                service, bound, ready=lambda: _tell(session, url_of(bound), service, profile)
            )
        opened.pop_all()  # the service has closed what it could
    return ended


@contextmanager
def _files_of_ones_own() -> Iterator[None]:
    """What is made meanwhile can be read by nobody else, as it holds callers' texts."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _require_libraries() -> None:
    try:
        import embatch.server.run  # noqa: F401 - to see whether it can be
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'embatch[serve,local]'"
        ) from None


def _profile(words: Sequence[str], seed: int | None) -> "Profile | Literal['list'] | None":
    """What is to be simulated; a server without it loads nothing of the simulation."""
    if not words:
        if seed is not None:
            raise InvalidRequestError("--seed is of --simulate: give both, or neither")
        return None
    if "list" in words:
        return "list"
    from embatch.server.simulation.profile import parse_profile

    return parse_profile(words, seed)


def _weather(profile: "Profile | None") -> "Weather | None":
    if profile is None:
        return None
    from embatch.server.simulation.weather import BadWeather

    return BadWeather(profile)


def _list_presets(session: Session) -> None:
    from embatch.server.simulation.presets import PRESETS

    if session.as_json:
        session.emit({"presets": {name: preset.sentence for name, preset in PRESETS.items()}})
        return
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        typer.echo(f"{name:{width}}  {preset.sentence}")


def _tell(session: Session, url: str, service: "Service", profile: "Profile | None") -> None:
    """Prints where the server is; who started it reads this line, through a pipe too."""
    own, folder = service.catalogue.own, service.settings.folder
    if session.as_json:
        session.emit(
            {
                "url": url,
                "model": own.name,
                "dims": own.engine.dims,
                "data": str(folder),
                "pid": os.getpid(),
                **({"simulate": list(profile.names), "seed": profile.seed} if profile else {}),
            }
        )
        return
    typer.echo(f"embatch serve: {url} (model {own.name}, {own.engine.dims} dims, data {folder})")
    if profile is not None:
        session.note(
            f"FAULTS ARE SIMULATED on purpose ({', '.join(profile.names)}; seed {profile.seed}): "
            "do not trust answers and results of this server",
            style="bold red",
        )
    if service.settings.api_key is None:
        session.note("no API key is asked for; only this machine can reach the server")


def _key(given: str | None) -> "Secret | None":
    from embatch.config import Secret, serve_api_key

    key = Secret(given) if given is not None else serve_api_key()
    if key is None:
        return None
    word = key.reveal().strip()
    if not word:
        raise ConfigError("the API key is empty: give one, or leave --api-key out")
    if not (word.isascii() and word.isprintable()):
        raise ConfigError(
            "the API key has characters that no header can carry: give one of letters, digits and "
            "signs of ASCII"
        )
    return Secret(word)


def _allowed_hosts(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if not (_HOST_NAME.fullmatch(name) or _is_address(name)):
            raise InvalidRequestError(
                f"--allow-host {name!r} is no host's name: give it alone, without http:// and port"
            )
    return frozenset(name.lower() for name in names)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_HOST_NAME: Final = re.compile(r"[a-z0-9._-]+", re.ASCII | re.IGNORECASE)


def _data_folder(folder: Path) -> Path:
    """The folder, made where it is not there. ConfigError where it cannot be used."""
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be the data folder ({error.strerror}): give another --data"
        ) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written to: give another --data")
    return folder


def _require_loopback(host: str) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigError(
            f"--host {host} can be reached from other machines, and no API key is set: "
            "set EMBATCH_SERVE_API_KEY, or listen on 127.0.0.1"
        )


def _parse_aliases(words: Sequence[str]) -> dict[str, str]:
    parsed = {}
    for word in words:
        name, _, model = word.partition("=")
        if not (name and model):
            raise InvalidRequestError(f"--alias {word!r} is no alias: give --alias NAME=MODEL")
        parsed[name] = options.absolute_model(model) or model
    return parsed


def _opener(session: Session, engine: str, precision: str) -> "Callable[[str | None], TextEngine]":
    """What opens an engine by its model's name."""

    def opened(model: str | None) -> "TextEngine":
        if engine == "fake":
            from embatch.testing.engine import FakeEngine

            return FakeEngine(384, model or "fake")
        if session.hooks is not None and session.hooks.open_engine is not None:
            return session.hooks.open_engine(model, precision=precision)
        from embatch.local.engine import Engine

        return Engine.open(model, precision=precision)

    return opened
