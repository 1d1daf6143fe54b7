"""The log's line of each event, written once the event is durable and never before."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

log = logging.getLogger("embatch.journal")

_KEY: Final = "embatch_lines"
_TOLD: Final = (
    *("attempt", "label", "remote_name", "part", "succeeded", "failed", "failures", "children"),
    *("rows", "batches", "error_code"),
)
"""What of an event's data the log may hold: names of ours and counts, never words or keys."""

Fields = dict[str, Any]


def open_lines(connection: Connection) -> list[Fields]:
    """Begins to gather the lines of a transaction; `tell` them when it is durable."""
    lines: list[Fields] = []
    connection.info[_KEY] = lines
    return lines


def add_line(
    connection: Connection,
    *,
    run_id: str,
    kind: str,
    batch_id: int | None,
    number: int | None,
    source: str | None,
    target: str | None,
    data: Mapping[str, Any] | None,
) -> None:
    """Adds the line of an event that the transaction writes."""
    lines: list[Fields] | None = connection.info.get(_KEY)
    if lines is None or not log.isEnabledFor(logging.INFO):
        return
    told = data or {}
    fields = {
        "event": str(kind),
        "run": run_id,
        "batch": number,
        "batch_id": batch_id,
        "from": None if source is None else str(source),
        "to": None if target is None else str(target),
        **{name: told.get(name) for name in _TOLD},
    }
    lines.append({name: value for name, value in fields.items() if value is not None})


def tell(lines: list[Fields]) -> None:
    """Writes the lines of a transaction that is durable, one an event."""
    for fields in lines:
        log.info("%s", _words(fields), extra={"fields": fields})


def _words(fields: Fields) -> str:
    what = f"run {fields['run']}"
    if "batch" in fields:
        what += f" batch {fields['batch']}"
    elif "batch_id" in fields:
        what += f" batch id {fields['batch_id']}"
    change = fields["event"]
    if "from" in fields:
        change = f"{fields['from']} → {fields['to']} ({change})"
    elif "to" in fields:
        change = f"{change}, {fields['to']}"
    facts = [f"{name} {fields[name]}" for name in _TOLD if name in fields]
    return f"{what}: {', '.join([change, *facts])}"
