"""The body that makes a batch: its inline rows are read one by one, as they are asked for. Pure."""

import codecs
from collections.abc import Iterator
from typing import Any, Final

from embatch.server.settings import MAX_ROW_BYTES
from embatch.server.wire import ApiError, invalid, parse_json, snake

try:
    import simdjson
except ImportError:  # no wheel for this Python yet: the whole body is read at once
    simdjson = None  # type: ignore[assignment]

_MOST_MESSAGES: Final = 1 << 20
"""Messages and lists, about, of a body that is made into objects at once."""
_PATH: Final = ("batch", "inputConfig", "requests", "requests")
"""Where the rows stand."""


class Rows:
    """Rows of a body that is parsed, but not made into objects of Python yet."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __iter__(self) -> Iterator[Any]:
        return map(_whole, self._array)


def read_create(raw: bytes) -> dict[str, Any]:
    """An AsyncBatchEmbedContentRequest; its inline rows are `Rows`, or a list.

    Twenty megabytes of rows made into objects at once would hold all other threads up for a
    second. ApiError 400 for a body that is no JSON object.
    """
    raw = raw.removeprefix(codecs.BOM_UTF8)  # as some programs write it
    if simdjson is None or not raw.strip():
        return _at_once(raw)
    try:
        document = simdjson.Parser().parse(raw)
        if isinstance(document, simdjson.Object):
            return _opened(document, _PATH)
    except ApiError:
        raise
    except (ValueError, RuntimeError, KeyError):
        pass  # numbers or names that this reader does not take, or no JSON
    return _at_once(raw)


def _at_once(raw: bytes) -> dict[str, Any]:
    if raw.count(b"[") + raw.count(b"{") > _MOST_MESSAGES:
        raise invalid("The request has too many messages: give the rows as a file.")
    return parse_json(raw)


def _opened(message: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """A message down to the rows. Raises KeyError for a name that cannot be looked up surely."""
    name, *rest = path
    shown = {}
    for field in message.keys():  # noqa: SIM118 - no dict; items() would make all of it objects
        if field in shown or "\0" in field:  # the first of its name, or up to the zero
            raise KeyError(field)
        value = message[field]
        if field not in (name, snake(name)):
            shown[field] = _whole(value)
        elif rest and isinstance(value, simdjson.Object):
            shown[field] = _opened(value, tuple(rest))
        elif not rest and isinstance(value, simdjson.Array):
            shown[field] = Rows(value)
        else:
            shown[field] = _whole(value)
    return shown


def _whole(value: Any) -> Any:
    if isinstance(value, (simdjson.Object, simdjson.Array)) and len(value.mini) > MAX_ROW_BYTES:
        raise invalid(f"A request or another field is longer than {MAX_ROW_BYTES} bytes.")
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value
