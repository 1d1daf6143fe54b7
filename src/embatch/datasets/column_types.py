"""Which Arrow types hold texts, and the plain form in which columns are kept."""

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

KEPT_TEXT: Final = "kept:text"
"""A kept column `text` travels under this name: `text` is what is embedded."""


def block_name(column: str) -> str:
    """The name of a kept column in blocks and stages."""
    return KEPT_TEXT if column == "text" else column


def kept_name(name: str) -> str:
    """The user's name of a kept column of blocks and stages."""
    return "text" if name == KEPT_TEXT else name


def is_text(kind: pa.DataType) -> bool:
    """Values of this type are strings; a column of nulls alone counts too."""
    kind = plain_type(kind)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    )


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without what Arrow files cannot carry between batches: dictionaries, views."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    return kind


def plain_schema(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """The named columns in their plain types, all of them nullable."""
    return pa.schema([pa.field(name, plain_type(schema.field(name).type)) for name in names])
