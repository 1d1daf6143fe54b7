"""Text as the journal stores it: any string at all, on databases that take not all of them."""

import re
from typing import Any, Final

from sqlalchemy import Dialect, Text, TypeDecorator

_MARK: Final = "\x1a"
"""SUBSTITUTE, which four hexadecimal digits follow."""
_REFUSED: Final = re.compile("[\0\x1a\ud800-\udfff]")
"""PostgreSQL takes no NUL, no database a lone surrogate; the mark stands for itself."""
_REPLACED: Final = re.compile("\x1a([0-9a-f]{4})")


class AnyText(TypeDecorator[str]):
    """Strings with NUL or lone surrogates go in and come out unchanged, and compare so."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """A string that every database takes."""
        return None if value is None else _REFUSED.sub(_replace, value)

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002 - SQLAlchemy's signature
        """The string that was stored."""
        if value is None or _MARK not in value:
            return None if value is None else str(value)
        return _REPLACED.sub(lambda found: chr(int(found[1], 16)), value)


def _replace(found: re.Match[str]) -> str:
    return f"{_MARK}{ord(found[0]):04x}"
