"""Cuts lists into pages, with the oddities that are asked for."""

import re
from typing import TYPE_CHECKING

from embatch.testing.cloud.answers import ApiError, Request
from embatch.testing.cloud.faults import FaultKind
from embatch.testing.cloud.store import Doc

if TYPE_CHECKING:
    from embatch.testing.cloud.core import Core

# A token holds characters that must be encoded in a URL: a client that does not is refused.
_TOKEN = re.compile(r"\+/(-?\d+)([pe])=$")


def cut_page(
    core: "Core", request: Request, docs: list[Doc], *, default: int, most: int
) -> tuple[list[Doc], str | None]:
    """One page of `docs` (any order in, newest first out) and the next page's token."""
    size = _page_size(request, default, most)
    small = core.board.strike(FaultKind.SMALL_PAGES, core.door.facts)
    if small:
        size = min(size, int(small.arg("size")))
    token = request.query.get("pageToken") or request.query.get("page_token")
    below, after_empty = _read_token(token)
    empty = core.board.strike(FaultKind.EMPTY_PAGES, core.door.facts)
    if empty and not after_empty and (token is None or not empty.arg("first_only")):
        return [], f"+/{below or 0}e="
    newest = sorted(docs, key=lambda doc: -int(doc["seq"]))
    left = [doc for doc in newest if not below or doc["seq"] < below]
    page = left[:size]
    if len(left) <= size:
        return page, None
    return page, f"+/{page[-1]['seq']}p="


def _page_size(request: Request, default: int, most: int) -> int:
    asked = request.query.get("pageSize") or request.query.get("page_size")
    if not asked:
        return default
    if not asked.isdigit():
        raise ApiError(400, "page_size: not a positive number.")
    return min(int(asked) or default, most)


def _read_token(token: str | None) -> tuple[int | None, bool]:
    if not token:
        return None, False
    caught = _TOKEN.match(token)
    if caught is None:
        raise ApiError(400, "Invalid page token.")
    return int(caught[1]) or None, caught[2] == "e"
