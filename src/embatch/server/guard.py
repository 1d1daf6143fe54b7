"""Who may call: the API key, by header, query or bearer token; without one, this machine alone."""

import hmac
import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import Request

from embatch.config import Secret
from embatch.server.wire import ApiError, api_key_invalid, api_key_missing


def check_key(request: Request, key: Secret | None) -> None:
    """ApiError 400 for a wrong key, 403 for none; nothing when the server asks for no key."""
    if key is None:
        return
    shown = _shown_keys(request)
    if not shown:
        raise api_key_missing()
    wanted = key.reveal().encode()
    fits = [hmac.compare_digest(one.encode(errors="replace"), wanted) for one in shown]
    if not all(fits):
        raise api_key_invalid()


def _shown_keys(request: Request) -> list[str]:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    shown = [
        request.headers.get("x-goog-api-key", ""),
        request.query_params.get("key", ""),
        token.strip() if kind.lower() == "bearer" else "",
    ]
    return [one for one in shown if one]


def check_place(request: Request, allowed: Collection[str]) -> None:
    """ApiError 403 for a call that a web page may have had a browser make.

    A name that leads here (DNS rebinding) stands in `Host`, a page of another site in `Origin`.
    Loopback addresses, localhost and the names `allowed` pass. For servers without a key.
    """
    host = request.headers.get("host")
    if host is not None and not _is_known(_name_of(f"//{host}"), allowed):
        raise ApiError(
            403,
            "This server asks for no API key, so it answers to 127.0.0.1, [::1] and localhost "
            "only, and the Host header names another. Start it with --allow-host NAME, or with "
            "an API key.",
        )
    origin = request.headers.get("origin")
    if origin is not None and not _is_known(_name_of(origin), allowed):
        raise ApiError(
            403,
            "This server asks for no API key, so it answers no web page of another site, and the "
            "Origin header names one. Start it with --allow-host NAME, or with an API key.",
        )


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_known(name: str | None, allowed: Collection[str]) -> bool:
    if name is None:
        return False
    if name == "localhost" or name in allowed:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_own_upload(request: Request) -> bool:
    """The request goes on with an upload, whose id is its secret."""
    return bool(request.query_params.get("upload_id"))


__all__ = ["ApiError", "check_key", "check_place", "is_own_upload"]
