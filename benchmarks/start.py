"""How long `import embatch` and `embatch --help` take, Python's own start included and apart."""

import statistics
import subprocess
import sys
import time

from benchmarks.measuring import Figures, Options, machine

DESCRIPTION = "import embatch and embatch --help, against bare Python"
COMMANDS = {
    "python": ["-c", "pass"],
    "import_embatch": ["-c", "import embatch"],
    "embatch_help": ["-m", "embatch", "--help"],
}


def measure(options: Options) -> Figures:
    """Interleaved starts of each command; medians in milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(max(options.rounds, 11)):
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    figures: Figures = dict(machine())
    bare = statistics.median(seconds["python"])
    for name, values in seconds.items():
        figures[f"{name}_ms"] = round(1000 * statistics.median(values))
        if name != "python":
            figures[f"{name}_without_python_ms"] = round(1000 * (statistics.median(values) - bare))
    return figures


def table(figures: Figures) -> str:
    """The figures as people read them."""
    return (
        f"python {figures['python_ms']} ms; import embatch {figures['import_embatch_ms']} ms "
        f"(its own {figures['import_embatch_without_python_ms']}); embatch --help "
        f"{figures['embatch_help_ms']} ms (its own {figures['embatch_help_without_python_ms']})"
    )
