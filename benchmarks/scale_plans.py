"""What a database does for each statement of a step: nodes, pages, and whether it scans a table."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, event

LARGE = ("batches", "events", "jobs", "ledger", "failures", "audits")
"""Tables that grow with the number of batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How one statement is carried out."""

    statement: str
    nodes: str
    """Scans and look-ups, innermost last."""
    pages: int
    """8 KiB pages touched, cached or not; SQLite does not count them: 0."""
    scans: tuple[str, ...]
    """Large tables that are read from end to end."""


class Recorded(list[tuple[str, Any]]):
    """Statements with their parameters, each once."""


@contextmanager
def recording(engine: Engine) -> Iterator[Recorded]:
    """Notes what is sent to the database."""
    seen: dict[str, Any] = {}
    found = Recorded()

    def note(_: Any, __: Any, statement: str, parameters: Any, ___: Any, many: bool) -> None:
        if not many and statement.split()[0] in ("SELECT", "UPDATE", "INSERT", "WITH"):
            if statement not in seen:
                found.append((statement, parameters))
            seen[statement] = parameters

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


def explain(engine: Engine, recorded: Recorded) -> list[Plan]:
    """The plans, as they are carried out now; nothing that they change is kept."""
    if engine.dialect.name == "sqlite":
        return [_sqlite(engine, *one) for one in recorded]
    return [_postgres(engine, *one) for one in recorded]


def _postgres(engine: Engine, statement: str, parameters: Any) -> Plan:
    with engine.connect() as connection:
        transaction = connection.begin()
        found: Any = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
        ).scalar()
        transaction.rollback()
    plan = (json.loads(found) if isinstance(found, str) else found)[0]["Plan"]
    nodes = list(_walk(plan))
    pages = plan.get("Shared Hit Blocks", 0) + plan.get("Shared Read Blocks", 0)
    scans = [
        node["Relation Name"]
        for node in nodes
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
    ]
    named = [
        f"{node['Node Type']} {node.get('Index Name') or node.get('Relation Name')}"
        for node in nodes
        if "Scan" in node["Node Type"] and ("Index Name" in node or "Relation Name" in node)
    ]
    return Plan(
        statement=_short(statement),
        nodes=", ".join(dict.fromkeys(named)) or plan["Node Type"],
        pages=int(pages),
        scans=tuple(scans),
    )


def _walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for inner in node.get("Plans", []):
        yield from _walk(inner)


def _sqlite(engine: Engine, statement: str, parameters: Any) -> Plan:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
        connection.rollback()
    details = [str(row[3]) for row in rows]
    scans = [
        words[1]
        for words in (detail.split() for detail in details)
        if words[0] == "SCAN" and words[1] in LARGE and "USING" not in words
    ]
    return Plan(
        statement=_short(statement),
        nodes=", ".join(dict.fromkeys(details)),
        pages=0,
        scans=tuple(scans),
    )


def _short(statement: str) -> str:
    words = " ".join(statement.split())
    if words.startswith("SELECT") and " FROM " in words:
        before, after = words.split(" FROM ", 1)
        return f"{before[:40]}… FROM {after}"[:150]
    return words[:150]
