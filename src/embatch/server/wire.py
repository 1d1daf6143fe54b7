"""What every call shares on the wire: google.rpc errors, fields by either name, pages, times.

Pure: no HTTP library, no disk. Source of all shapes: the Gemini API, read 2026-11.
"""

import codecs
import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final

import orjson

VERSIONS: Final = ("v1", "v1beta", "v1alpha")

GRPC_STATUS: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    416: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
"""The status word that goes with an HTTP code, where nothing else is said."""

CANCELLED, INVALID_ARGUMENT, INTERNAL = 1, 3, 13
"""Numbers of google.rpc.Code, as rows and operations bear them."""

_RPC: Final = "type.googleapis.com/google.rpc."
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
_TOKEN: Final = re.compile(r"p[0-9]{1,18}", re.ASCII)
_LONG_NUMBER: Final = re.compile(rb"[0-9]{19}")
_DIGITS: Final = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)


class ApiError(Exception):
    """An answer that is a google.rpc error. `message` holds no key and no user's text."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: str | None = None,
        details: list[dict[str, Any]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        """The HTTP status."""
        self.message = message
        self.status = status or GRPC_STATUS[code]
        self.details = details
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The error as JSON."""
        error: dict[str, Any] = {
            "code": self.code,
            "message": self.message,
            "status": self.status,
        }
        if self.details:
            error["details"] = self.details
        return orjson.dumps({"error": error})


def invalid(message: str) -> ApiError:
    """400 INVALID_ARGUMENT."""
    return ApiError(400, message)


def api_key_invalid() -> ApiError:
    """What a wrong key gets: a 400, as the real service says it."""
    message = "API key not valid. Please pass a valid API key."
    return ApiError(
        400,
        message,
        details=[
            {
                "@type": _RPC + "ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            },
            {"@type": _RPC + "LocalizedMessage", "locale": "en-US", "message": message},
        ],
    )


def api_key_missing() -> ApiError:
    """What a call without any key gets."""
    return ApiError(
        403,
        "Method doesn't allow unregistered callers (callers without established identity). "
        "Please use API Key or other form of API consumer identity to call this API.",
    )


def too_many_batches(most: int) -> ApiError:
    """429 of a create: a Help detail and no hint when to try again, as the real one."""
    return ApiError(
        429,
        f"You exceeded your current quota: {most} batches are unfinished already. "
        "Wait for some of them to end.",
        details=[
            {
                "@type": _RPC + "Help",
                "links": [
                    {
                        "description": "Learn more about Gemini API quotas",
                        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
                    }
                ],
            }
        ],
    )


def unknown_model(model: str, version: str, method: str) -> ApiError:
    """404 of a model that is not served."""
    return ApiError(
        404,
        f"models/{model} is not found for API version {version}, or is not supported for {method}. "
        "Call ListModels to see the list of available models and their supported methods.",
    )


def too_large(limit_bytes: int) -> ApiError:
    """400 of a body over the limit."""
    return invalid(f"Request payload size exceeds the limit: {limit_bytes} bytes.")


def load_json(raw: bytes) -> Any:
    """A JSON value with its numbers whole. Raises ValueError."""
    value = orjson.loads(raw)
    if _LONG_NUMBER.search(raw):
        # orjson reads integers beyond 64 bits as floats, and they must come back as they are.
        try:
            return json.loads(raw)
        except RecursionError:
            raise ValueError("nested too deeply") from None
    return value


def dump_json(value: Any) -> bytes:
    """A JSON value that `load_json` gave. ApiError 400 when it is nested too deeply."""
    try:
        return orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits, or more levels than orjson writes
        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        except RecursionError:
            raise invalid("metadata: nested too deeply.") from None


def parse_json(raw: bytes) -> dict[str, Any]:
    """A request's body; an empty one is {}. ApiError 400 for anything that is no JSON object."""
    raw = raw.removeprefix(codecs.BOM_UTF8)  # as some programs write it
    if not raw.strip():
        return {}
    try:
        value = load_json(raw)
    except ValueError as error:
        where = ""
        if isinstance(error, orjson.JSONDecodeError):
            where = f" at line {error.lineno} column {error.colno}"
        raise invalid(f"Invalid JSON payload received{where}.") from None
    if not isinstance(value, dict):
        raise invalid("Invalid JSON payload received. Root element must be a message.")
    return value


@cache
def snake(camel: str) -> str:
    """The snake_case name of a field."""
    return re.sub(r"([A-Z])", lambda caught: "_" + caught[1].lower(), camel)


def field_of(body: Mapping[str, Any], camel: str) -> Any:
    """A field under its camelCase or snake_case name; null counts as absent, which is None."""
    value = body.get(camel)
    return body.get(snake(camel)) if value is None else value


def message_of(body: Mapping[str, Any], camel: str) -> dict[str, Any]:
    """A field that is a message; {} when absent."""
    value = field_of(body, camel)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{snake(camel)}: a message is required.")
    return value


def messages_of(body: Mapping[str, Any], camel: str) -> list[dict[str, Any]]:
    """A field that is a list of messages; one message stands for itself, [] when absent."""
    value = field_of(body, camel)
    if value is None:
        return []
    listed = [value] if isinstance(value, dict) else value
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise invalid(f"{snake(camel)}: a list of messages is required.")
    return listed


def text_of(body: Mapping[str, Any], camel: str) -> str:
    """A field that is a string; "" when absent."""
    value = field_of(body, camel)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid(f"{snake(camel)}: a string is required.")
    return value


def integer_of(body: Mapping[str, Any], camel: str) -> int | None:
    """An integer of 64 bits as number or string; None when absent."""
    value = field_of(body, camel)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise invalid(f"{snake(camel)}: an integer is required.")
    if isinstance(value, str) and not _DIGITS.fullmatch(value):
        raise invalid(f"{snake(camel)}: an integer is required.")
    number = int(value)
    if not _MIN_INT64 <= number <= _MAX_INT64:
        raise invalid(f"{snake(camel)}: an integer of 64 bits is required.")
    return number


def query_of(query: Mapping[str, str], camel: str) -> str:
    """A query parameter under either name; "" when absent."""
    return query.get(camel) or query.get(snake(camel)) or ""


def page_size(query: Mapping[str, str], *, default: int, most: int) -> int:
    """`pageSize`, at most `most`. ApiError 400 for what is no number from 0."""
    asked = query_of(query, "pageSize")
    if not asked:
        return default
    if not (asked.isascii() and asked.isdigit() and len(asked) <= 10):
        raise invalid("page_size: a number from 0 is required.")
    return min(int(asked) or default, most)


def build_page_token(seq: int) -> str:
    """The token for the page that goes on behind `seq`."""
    return f"p{seq}"


def parse_page_token(query: Mapping[str, str]) -> int | None:
    """The `seq` of `pageToken`; None for the first page. ApiError 400 for a foreign token."""
    token = query_of(query, "pageToken")
    if not token:
        return None
    if not _TOKEN.fullmatch(token):
        raise invalid("Invalid page token.")
    return int(token[1:])


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
