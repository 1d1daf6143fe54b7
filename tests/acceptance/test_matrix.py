"""Faults and kill -9 together: every key once, every vector right, every row paid for once."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from faults import LINES, Line, merged
from proof import Proof, Size, Verdict

from embatch.testing.cloud import CloudProcess

pytestmark = pytest.mark.timeout(600)

SMALL = Size(rows=240, batch_items=40, kills=2, probe=False)
WHOLE = Size(rows=320, batch_items=40, kills=10)
SEED = 20_261_123
SOAK_SEEDS = (1, 2, 3)
TABLE = Path(__file__).parents[2] / "build" / "matrix.md"

PAIRS = [(line, on) for line in LINES for on in line.on]
GROUPS: dict[str, tuple[str, ...]] = {
    "outages": ("500", "503", "504"),
    "quotas": ("nothing", "429 under a hidden token ceiling", "spurious 429"),
    "connections": ("reset before a create", "reset after a create", "small list pages"),
    "files": (
        *("broken upload chunk", "broken upload", "truncated download", "late result files"),
        *("results in several files", "no usage told"),
    ),
    "vanishing": ("vanished files", "input lost", "tokens that end"),
    "rows on wrong keys": (
        *("results shuffled", "values under wrong keys", "doubled rows", "unknown rows"),
        *("rows doubled with other values", "rows of another job"),
    ),
    "rows": (
        *("missing rows", "NaN", "wrong dims", "zero vectors", "no vectors", "broken lines"),
        *("transient row errors", "permanent row errors"),
    ),
    "ends": (
        *("expired", "failed by quota", "failed by quota with partial results"),
        *("cancelled with partial results", "unknown state word", "GET 503 while the list works"),
    ),
    "stuck": ("stuck",),
    "stuck and cancelled": ("stuck, cancelled with partial results",),
    "SUCCEEDED with failed rows": ("SUCCEEDED with failed rows",),
    "all together": ("all together",),
}
"""Lines that share a run where time is short. The whole matrix runs each by itself."""
ON_VERTEX = ("connections", "files", "vanishing", "SUCCEEDED with failed rows")
"""Groups that run there too, since the client's work differs most."""
SEEDED = [
    *(merged(name, "gemini", names) for name, names in GROUPS.items()),
    *(merged(name, "vertex", GROUPS[name]) for name in ON_VERTEX),
]


def test_every_line_has_its_group() -> None:
    """Nothing of the matrix is left to the long form alone."""
    assert {name for names in GROUPS.values() for name in names} == {line.name for line in LINES}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    """One cloud for one run after the other; each has texts of its own."""
    with CloudProcess(
        state=tmp_path_factory.mktemp("cloud") / "state", seed=SEED, job_duration_s=0.1
    ) as process:
        yield process


@pytest.mark.parametrize(
    "line", SEEDED, ids=[f"{line.name}-{line.on[0]}".replace(" ", "-") for line in SEEDED]
)
def test_faults_and_kills_cost_nothing(line: Line, cloud: CloudProcess, tmp_path: Path) -> None:
    """Each fault with two kills, and all of them at once."""
    (on,) = line.on
    proof = Proof(folder=tmp_path, line=line, on=on, seed=SEED, size=SMALL, cloud=cloud)
    verdict = proof.judged()
    assert verdict.problems == ()
    assert verdict.kills > 0


def table(verdicts: Sequence[Verdict]) -> str:
    """Markdown, a line for each fault and cloud, all seeds added up."""
    head = (
        *("fault", "on", "runs", "kills", "rows", "failures", "rows billed", "billed twice"),
        *("bought again, as reported", "requests", "outcome"),
    )
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, on in dict.fromkeys((one.name, one.on) for one in verdicts):
        runs = [one for one in verdicts if (one.name, one.on) == (name, on)]
        again = [one.again for one in runs if one.again is not None]
        outcomes = dict.fromkeys(one.outcome for one in runs)
        cells: list[object] = [name, on, len(runs)]
        cells += [sum(getattr(one, count) for one in runs) for count in _COUNTS]
        cells += [sum(again) if again else "-", sum(one.requests for one in runs)]
        cells.append("; ".join(outcomes))
        lines.append(" | ".join(map(str, cells)))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


_COUNTS = ("kills", "rows", "failures", "billed", "twice")


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_whole_matrix(tmp_path: Path) -> None:
    """Ten kills for each fault on both clouds, under several seeds; prints the table."""
    verdicts: list[Verdict] = []
    for seed in SOAK_SEEDS:
        state = tmp_path / f"cloud-{seed}"
        with CloudProcess(state=state, seed=seed, job_duration_s=0.1) as cloud:
            for number, (line, on) in enumerate(PAIRS):
                folder = tmp_path / f"{seed}-{number}"
                folder.mkdir()
                proof = Proof(
                    folder=folder,
                    line=line,
                    on=on,
                    seed=seed,
                    size=WHOLE,
                    cloud=cloud,
                )
                verdicts.append(proof.judged())
    shown = table(verdicts)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(shown)
    print(f"\n{shown}")
    assert [one for one in verdicts if one.problems] == []
