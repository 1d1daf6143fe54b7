"""Where notifications go: which URLs are understood, and what of them may be shown."""

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Final, Literal
from urllib.parse import urlsplit

from embatch.errors import ConfigError, InvalidRequestError

Way = Literal["webhook", "apprise"]
"""How a target is reached."""
WAYS: Final[tuple[Way, ...]] = ("webhook", "apprise")
_CHATS: Final = {
    "hooks.slack.com": "slack://TOKEN_A/TOKEN_B/TOKEN_C",
    "discord.com": "discord://WEBHOOK_ID/WEBHOOK_TOKEN",
    "discordapp.com": "discord://WEBHOOK_ID/WEBHOOK_TOKEN",
    "webhook.office.com": "msteams://…",
}
"""Services whose webhooks want messages of their own form, which apprise makes."""


def way_of(url: str) -> Way:
    """`https://` and `http://` are webhooks of our own form; all else is apprise's."""
    return "webhook" if scheme_of(url) in ("http", "https") else "apprise"


def scheme_of(url: str) -> str:
    """The part of a URL that holds no secret."""
    return url.partition("://")[0].strip().lower() if "://" in url else ""


def shown(url: str) -> str:
    """A URL as messages and logs may name it."""
    return f"{scheme_of(url) or '?'}://…"


def has_apprise() -> bool:
    """The extra `notify` is installed."""
    return importlib.util.find_spec("apprise") is not None


def require_targets(urls: Iterable[str], *, signs: bool) -> tuple[str, ...]:
    """The targets, each once. `signs`: there is a secret to sign webhooks with.

    InvalidRequestError for a URL that is not understood, ConfigError for one that needs what is
    not there. Messages name schemes alone.
    """
    wanted = tuple(dict.fromkeys(url.strip() for url in urls))
    for url in wanted:
        if way_of(url) == "webhook":
            _require_webhook(url, signs=signs)
        else:
            _require_apprise(url)
    return wanted


def _require_webhook(url: str, *, signs: bool) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or any(sign.isspace() for sign in url):
        raise InvalidRequestError(f"--notify {shown(url)} is no URL: write https://host/path")
    for name, form in _CHATS.items():
        if host == name or host.endswith(f".{name}"):
            raise InvalidRequestError(
                f"--notify {shown(url)} leads to {name}, which takes messages of its own form "
                f"alone: write it as apprise does, {form}"
            )
    if not signs:
        raise ConfigError(
            f"--notify {shown(url)} is a webhook, and webhooks are signed: set "
            "EMBATCH_WEBHOOK_SECRET to the secret that its receiver knows, whsec_… or 24 "
            "characters and more"
        )


def _require_apprise(url: str) -> None:
    scheme = scheme_of(url)
    if not scheme:
        raise InvalidRequestError(
            "--notify wants a URL: https://host/path for a webhook, or one that apprise knows, "
            "such as slack://…, mailto://… or msteams://…"
        )
    if not has_apprise():
        raise ConfigError(
            f"--notify {scheme}://… goes through apprise, which is not installed: "
            "pip install 'embatch[notify]'"
        )
    from embatch.observe.chat import is_understood

    if not is_understood(url):
        raise InvalidRequestError(
            f"--notify {scheme}://… is not a URL that apprise understands: look its form up in "
            "apprise's list of services"
        )


def ways_here(*, signs: bool) -> Sequence[Way]:
    """The ways that are open to this process; messages that go by others wait for another."""
    return [way for way in WAYS if (signs if way == "webhook" else has_apprise())]
