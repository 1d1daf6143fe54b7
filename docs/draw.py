"""Draws the pages that come from the code: `make docs`."""

from pathlib import Path

from embatch.types.state import (
    BATCH_TRANSITIONS,
    FINAL_RUN_STATES,
    RUN_TRANSITIONS,
    BatchState,
    RunState,
)

STATES = Path(__file__).with_name("states.md")


def states_page() -> str:
    """The state machines of batches and runs, as Mermaid diagrams and tables."""
    batches = {(s.value, e.value): t.value for (s, e), t in BATCH_TRANSITIONS.items()}
    runs = {(s.value, e.value): t.value for (s, e), t in RUN_TRANSITIONS.items()}
    ends = [BatchState.PUBLISHED.value, BatchState.SPLIT.value]
    return "\n".join(
        [
            "# States",
            "",
            "Drawn by `make docs` from the tables in `src/embatch/types/state.py`, which the code",
            "and the journal's own triggers obey.",
            "",
            "## Batches",
            "",
            *_diagram(batches, BatchState.PLANNED.value, ends),
            "",
            *_table(batches),
            "",
            "## Runs",
            "",
            *_diagram(runs, RunState.PLANNING.value, sorted(FINAL_RUN_STATES)),
            "",
            *_table(runs),
            "",
        ]
    )


def _diagram(pairs: dict[tuple[str, str], str], first: str, last: list[str]) -> list[str]:
    arrows = [f"    {source} --> {target}: {event}" for (source, event), target in pairs.items()]
    ends = [f"    {state} --> [*]" for state in last]
    return ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *arrows, *ends, "```"]


def _table(pairs: dict[tuple[str, str], str]) -> list[str]:
    rows = [f"| {source} | {event} | {target} |" for (source, event), target in pairs.items()]
    return ["| from | event | to |", "|---|---|---|", *rows]


if __name__ == "__main__":
    STATES.write_text(states_page(), encoding="utf-8")
