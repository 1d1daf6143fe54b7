"""How a result row is spelled: Gemini's files, its inline answers, and Vertex's two kinds."""

from typing import Any, Protocol

import orjson

from embatch.testing.cloud.answers import GRPC_STATUS
from embatch.testing.cloud.rows import Line

_STATUS_WORDS = {number: word for word, number in GRPC_STATUS.values()}


class Dialect(Protocol):
    """Spells result rows; `echo`, `success` and `failure` give members without braces."""

    end: bytes
    """What follows a row."""

    def echo(self, row: Line) -> bytes:
        """What comes back of the request row."""
        ...

    def success(
        self, row: Line, values: bytes, tokens: int | None, shape: str | None, truncated: bool
    ) -> bytes:
        """A vector: `values` is its JSON array; `shape` says how it is missing, if it is."""
        ...

    def failure(self, row: Line, error: dict[str, Any]) -> bytes:
        """A google.rpc.Status in place of a vector."""
        ...

    def keyed(self, key: Any) -> Line:
        """A request row that bears nothing but a key."""
        ...


def embedding_member(values: bytes, shape: str | None) -> bytes:
    """`"embedding":…`, or what stands there when it is missing."""
    if shape is None:
        return b'"embedding":{"values":' + values + b"}"
    return {"null": b'"embedding":null', "empty": b'"embedding":{"values":[]}'}.get(shape, b"")


def _echoed(row: Line, *names: str) -> bytes:
    return b",".join(
        orjson.dumps(name) + b":" + orjson.dumps(row[name]) for name in names if name in row
    )


class GeminiFile:
    """Lines of `files/batch-…`."""

    end = b"\n"
    _names: tuple[str, ...] = ("key", "metadata")

    def echo(self, row: Line) -> bytes:
        """The key, and metadata if there was any."""
        return _echoed(row, *self._names)

    def success(
        self, row: Line, values: bytes, tokens: int | None, shape: str | None, truncated: bool
    ) -> bytes:
        """`"response":{"embedding":…,"usageMetadata":…}`."""
        del row, truncated
        if shape == "no_response":
            return b'"response":null'
        usage = b"" if tokens is None else b'"usageMetadata":{"promptTokenCount":%d}' % tokens
        members = [member for member in (embedding_member(values, shape), usage) if member]
        return b'"response":{' + b",".join(members) + b"}"

    def failure(self, row: Line, error: dict[str, Any]) -> bytes:
        """`"error":{…}`."""
        del row
        return b'"error":' + orjson.dumps(error)

    def keyed(self, key: Any) -> Line:
        """A line with this key."""
        return {"key": key}


class GeminiInline(GeminiFile):
    """Items of `inlinedResponses`: metadata only, separated by commas."""

    end = b","
    _names = ("metadata",)

    def keyed(self, key: Any) -> Line:
        """A key of unknown kind goes under the name that most clients use."""
        return {"metadata": key if isinstance(key, dict) else {"key": key}}


class VertexGemini:
    """Lines of Vertex for gemini-embedding models."""

    end = b"\n"

    def echo(self, row: Line) -> bytes:
        """The key and the request."""
        return _echoed(row, "key", "request")

    def success(
        self, row: Line, values: bytes, tokens: int | None, shape: str | None, truncated: bool
    ) -> bytes:
        """`"response":{"embedding":…,"tokenCount":"2"}`."""
        del row, truncated
        if shape == "no_response":
            return b'"response":null'
        usage = b"" if tokens is None else b'"tokenCount":"%d"' % tokens
        members = [member for member in (embedding_member(values, shape), usage) if member]
        return b'"response":{' + b",".join(members) + b"}"

    def failure(self, row: Line, error: dict[str, Any]) -> bytes:
        """`"status":"WORD: message"`."""
        del row
        return b'"status":' + orjson.dumps(_status_text(error))

    def keyed(self, key: Any) -> Line:
        """A line with this key."""
        return {"key": key, "request": {}}


class VertexLegacy:
    """Lines of Vertex for text-embedding-* models: matched by the instance, not by a key."""

    end = b"\n"

    def echo(self, row: Line) -> bytes:
        """The whole request row as `instance`."""
        return b'"instance":' + orjson.dumps(row)

    def success(
        self, row: Line, values: bytes, tokens: int | None, shape: str | None, truncated: bool
    ) -> bytes:
        """`"predictions":[{"embeddings":…}],"status":""`."""
        del row
        if shape == "no_response":
            return b'"predictions":[],"status":""'
        written = {"null": b"null", "empty": b"[]"}.get(shape or "", values)
        statistics = {"token_count": tokens or 0, "truncated": truncated}
        return (
            b'"predictions":[{"embeddings":{"statistics":'
            + orjson.dumps(statistics)
            + b',"values":'
            + written
            + b'}}],"status":""'
        )

    def failure(self, row: Line, error: dict[str, Any]) -> bytes:
        """`"predictions":[],"status":"WORD: message"`."""
        del row
        return b'"predictions":[],"status":' + orjson.dumps(_status_text(error))

    def keyed(self, key: Any) -> Line:
        """A row whose content is the key."""
        return {"content": str(key)}


def _status_text(error: dict[str, Any]) -> str:
    word = _STATUS_WORDS.get(error["code"], "UNKNOWN")
    return f"{word}: {error['message']}" if "message" in error else word
