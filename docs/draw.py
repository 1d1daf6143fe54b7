"""Draws the pages that come from the code: `make docs`."""

import re
from pathlib import Path

import numpy as np

from embatch.runs.config import DEFAULT_AUDIT
from embatch.runs.sampling import (
    RAISED_ROWS,
    chance_in_a_run,
    chance_of_catching,
    drawn,
    rows_to_audit,
)
from embatch.types.state import (
    BATCH_TRANSITIONS,
    FINAL_RUN_STATES,
    RUN_TRANSITIONS,
    BatchState,
    RunState,
)

STATES = Path(__file__).with_name("states.md")
ALIGNMENT = Path(__file__).with_name("alignment.md")
SHARES = (0.02, 0.10, 0.60)
"""Of a batch's rows that stand on the wrong texts."""
SIMULATED = 2_000


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


def alignment_page(page: str) -> str:
    """The page with its tables of chances as they are computed and simulated now."""
    for name, lines in (("batches", _chances_of_batches()), ("runs", _chances_of_runs())):
        mark = f"<!-- drawn by make docs: {name} -->"
        table = "\n".join([mark, *lines, "<!-- end -->"])
        page = re.sub(rf"{re.escape(mark)}.*?<!-- end -->", table, page, count=1, flags=re.DOTALL)
    return page


def _chances_of_batches() -> list[str]:
    sizes = [(rows, None) for rows in (250, 800, 5_000, 50_000)] + [(5_000, RAISED_ROWS)]
    lines = []
    for rows, raised in sizes:
        sample = rows_to_audit(DEFAULT_AUDIT, rows, raised=raised)
        cells = [_chance(rows, round(rows * share), sample) for share in SHARES]
        after = ", after a mismatch" if raised else ""
        lines.append(f"| {rows:,}{after} | {sample} | {' | '.join(cells)} |")
    shares = " | ".join(f"{share:.0%} wrong" for share in SHARES)
    return [f"| rows of the batch | audited | {shares} |", "|---|---|---|---|---|", *lines]


def _chance(rows: int, wrong: int, sample: int) -> str:
    computed = chance_of_catching(rows=rows, wrong=wrong, sample=sample)
    everything = np.arange(rows)
    caught = sum(
        bool((drawn(f"batch {number}", everything, sample) < wrong).any())
        for number in range(SIMULATED)
    )
    return f"{_percent(computed)} / {caught / SIMULATED:.1%}"


def _percent(chance: float) -> str:
    """A sample is never certain to hold a wrong row, however near a figure comes to it."""
    return "> 99.9%" if chance > 0.999 else f"{chance:.1%}"


def _chances_of_runs() -> list[str]:
    rows = 5_000
    sample = rows_to_audit(DEFAULT_AUDIT, rows)
    lines = []
    for batches in (1, 5, 20, 100):
        cells = [
            chance_in_a_run(
                chance_of_catching(rows=rows, wrong=round(rows * share), sample=sample), batches
            )
            for share in SHARES
        ]
        lines.append(f"| {batches} | {' | '.join(map(_percent, cells))} |")
    shares = " | ".join(f"{share:.0%} wrong in each" for share in SHARES)
    return [f"| misaligned batches of {rows:,} rows | {shares} |", "|---|---|---|---|", *lines]


if __name__ == "__main__":
    STATES.write_text(states_page(), encoding="utf-8")
    ALIGNMENT.write_text(alignment_page(ALIGNMENT.read_text(encoding="utf-8")), encoding="utf-8")
