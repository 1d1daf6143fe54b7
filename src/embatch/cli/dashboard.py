"""`embatch dashboard`: the journal in a browser."""

import os
import webbrowser
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from embatch.cli import options
from embatch.cli.session import Session
from embatch.errors import ConfigError

if TYPE_CHECKING:
    from embatch.config import Secret

Host = Annotated[
    str,
    typer.Option(
        "--host", metavar="HOST", help="Address to listen on. Another than loopback needs a token."
    ),
]
Port = Annotated[
    int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 takes a free one.")
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="T",
        help="What browsers must show, 16 characters or more. Better in EMBATCH_DASHBOARD_TOKEN,"
        " where no process list shows it.",
        show_default=False,
    ),
]
ReadOnly = Annotated[
    bool, typer.Option("--read-only", help="Refuse to cancel, resume or change anything.")
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")]
Json = Annotated[bool, typer.Option("--json", help="Tell the address as one line of JSON.")]


def dashboard(
    context: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 8780,
    token: Token = None,
    read_only: ReadOnly = False,
    open_page: Open = False,
    journal: options.Journal = None,
    log_format: options.LogFormat = None,  # noqa: ARG001 - its callback has done the work
    as_json: Json = False,
) -> None:
    """Show the runs of the journal in a browser, live, until Ctrl-C."""
    _require_libraries()
    from embatch.dashboard.app import Dashboard
    from embatch.dashboard.pages import safe_address
    from embatch.dashboard.serve import serve
    from embatch.dashboard.settings import DashboardSettings
    from embatch.listening import bind, url_of

    session = Session.of(context, journal=journal, as_json=as_json)
    secret = _token(token, host)
    with closing(bind(host, port)) as bound, session.environment() as environment:
        url = url_of(bound)
        settings = DashboardSettings(
            base=environment.settings,
            token=secret,
            read_only=read_only,
            port=bound.getsockname()[1],
        )
        shown = Dashboard(settings, environment.journal, environment.hooks)

        def ready() -> None:
            if as_json:
                place = safe_address(environment.settings.journal)
                session.emit({"url": url, "journal": place, "pid": os.getpid()})
            else:
                typer.echo(f"embatch dashboard: {url}")
                if secret is None:
                    session.note("no token is asked for; only this machine can reach it")
            if open_page:
                webbrowser.open(url)

        serve(shown, bound, ready=ready)


def _token(given: str | None, host: str) -> "Secret | None":
    """The token that is asked for. ConfigError where one is needed and none is set."""
    from embatch.config import Secret, dashboard_token
    from embatch.dashboard.security import check_token, is_loopback

    token = Secret(given) if given is not None else dashboard_token()
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines, and no token is set: set "
            "EMBATCH_DASHBOARD_TOKEN (or --token), or listen on 127.0.0.1"
        )
    check_token(token)
    return token


def _require_libraries() -> None:
    try:
        import embatch.dashboard.serve  # noqa: F401 - to see whether it can be
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'embatch[serve]'") from None
