"""Which Arrow types hold texts, and the plain form in which columns are kept."""

from collections.abc import Sequence

import pyarrow as pa


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
