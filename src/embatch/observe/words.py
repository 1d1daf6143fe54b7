"""A notification for people: a title, a few lines, and what to type."""

from collections.abc import Mapping
from typing import Any, Final, Literal

Tone = Literal["success", "warning", "failure", "info"]

_TITLES: Final[Mapping[str, tuple[str, Tone]]] = {
    "run.completed": ("is complete", "success"),
    "run.completed_with_failures": ("is complete, with failed rows", "warning"),
    "run.failed": ("failed", "failure"),
    "run.over_budget": ("stopped at its budget", "warning"),
    "run.needs_person": ("needs you", "warning"),
    "run.low_success_rate": ("has too many failed rows", "warning"),
    "run.stuck": ("does not move", "warning"),
    "test": ("can reach you", "info"),
}
_COMMANDS: Final[Mapping[str, str]] = {
    "run.completed_with_failures": "embatch failures {run}",
    "run.low_success_rate": "embatch failures {run}",
    "run.failed": "embatch resume {run}",
    "run.over_budget": "embatch resume {run} --max-cost USD",
    "run.needs_person": "embatch status {run}",
    "run.stuck": "embatch status {run}",
}


def title_of(payload: Mapping[str, Any]) -> str:
    """One line that says what happened to which run."""
    words, _ = _TITLES.get(payload["type"], (str(payload["type"]), "info"))
    data = payload["data"]
    run = data.get("run")
    if run is None:
        return f"embatch {words}"
    name = f"{data['name']} ({run})" if data.get("name") else run
    return f"embatch: run {name} {words}"


def tone_of(payload: Mapping[str, Any]) -> Tone:
    """How grave it is."""
    return _TITLES.get(payload["type"], ("", "info"))[1]


def body_of(payload: Mapping[str, Any]) -> str:
    """The facts, line by line, and what to type."""
    data = payload["data"]
    lines = [line for line in (_rows(data), _money(data)) if line]
    lines += [str(data[name]) for name in ("waiting", "error") if data.get(name)]
    if not data.get("error") and data.get("error_code"):
        lines.append(f"{data['error_code']}: its words may name data, and stay in the journal")
    command = _COMMANDS.get(payload["type"])
    if command is not None:
        lines.append(command.format(run=data["run"]))
    return "\n".join(lines) or "This is a test: notifications arrive here."


def _rows(data: Mapping[str, Any]) -> str:
    if data.get("rows") is None:
        return ""
    rate = data.get("success_pct")
    share = "" if rate is None else f" ({rate:.1f} % succeeded)"
    return (
        f"{data['rows']:,} rows: {data['written']:,} written, {data['failed']:,} failed{share}, "
        f"{_span(data['elapsed_s'])}"
    )


def _money(data: Mapping[str, Any]) -> str:
    if data.get("spent_usd") is None:
        return ""
    cap = "" if data.get("max_cost_usd") is None else f" of ${data['max_cost_usd']:,.2f}"
    return f"${data['spent_usd']:,.4f} spent{cap}"


def _span(seconds: float) -> str:
    for least, size, unit in ((172_800.0, 86_400.0, "days"), (5400.0, 3600.0, "h")):
        if seconds >= least:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60.0:.0f} min" if seconds >= 90.0 else f"{seconds:.0f} s"
