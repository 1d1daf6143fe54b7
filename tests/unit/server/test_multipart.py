"""A multipart upload in any pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embatch.server.multipart import Multipart
from embatch.server.wire import ApiError

TYPE = 'multipart/related; boundary="limit"'


def body(content: bytes, *, head: bytes = b'{"file":{"display_name":"d"}}') -> bytes:
    return (
        b"--limit\r\nContent-Type: application/json; charset=utf-8\r\n\r\n" + head
        + b"\r\n--limit\r\ncontent-type: application/jsonl\r\n\r\n" + content + b"\r\n--limit--\r\n"
    )  # fmt: skip


def read(parts: Multipart, pieces: list[bytes]) -> bytes:
    return b"".join([parts.feed(piece) for piece in pieces]) + parts.finish()


@given(
    st.binary(max_size=3000) | st.just(b"\r\n--limi\r\n--" * 90),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_the_content_comes_out_whole_whatever_the_pieces(content: bytes, sizes: list[int]) -> None:
    """Byte for byte, with what was told of it."""
    whole = body(content)
    pieces, at = [], 0
    while at < len(whole):
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(whole[at : at + size])
        at += size
    parts = Multipart(TYPE)
    assert read(parts, pieces) == content
    assert parts.asked == {"file": {"display_name": "d"}}
    assert parts.mime_type == "application/jsonl"


def test_little_is_held_back() -> None:
    """A large content passes through: only what may be the boundary waits."""
    parts = Multipart(TYPE)
    parts.feed(body(b"")[:-13])
    passed = sum(len(parts.feed(b"x" * 100_000)) for _ in range(10))
    assert passed > 990_000


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no boundary at all",
        body(b"content")[:-12],
        b"--limit\r\n\r\n{}\r\n--limit--\r\n",
        body(b"content", head=b"not json"),
        body(b"content", head=b"[]"),
        b"--limit" + b"x" * 70_000,
    ],
)
def test_a_broken_body_is_refused(broken: bytes) -> None:
    """400."""
    with pytest.raises(ApiError) as refused:
        read(Multipart(TYPE), [broken])
    assert refused.value.code == 400


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/related", "text/x; boundary=a"]
)
def test_a_boundary_is_needed(kind: str) -> None:
    """400 names the header."""
    with pytest.raises(ApiError, match="Content-Type"):
        Multipart(kind)
