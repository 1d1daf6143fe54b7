"""Who may call: the API key, by header, query or bearer token."""

import hmac

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


def is_own_upload(request: Request) -> bool:
    """The request goes on with an upload, whose id is its secret."""
    return bool(request.query_params.get("upload_id"))


__all__ = ["ApiError", "check_key", "is_own_upload"]
