"""Runs one benchmark, or all: `python -m benchmarks [NAME] [--json]`."""

import argparse
import importlib
import json

from benchmarks.measuring import Options

BENCHMARKS = {
    "client_requests": "benchmarks.client_requests",
    "client_results": "benchmarks.client_results",
    "cloud": "benchmarks.cloud",
    "dashboard": "benchmarks.dashboard",
    "engine": "benchmarks.engine",
    "run": "benchmarks.run",
    "scale": "benchmarks.scale",
    "serve": "benchmarks.serve",
    "start": "benchmarks.start",
    "workers": "benchmarks.workers",
}
"""Each module has DESCRIPTION, measure(Options) -> Figures and table(Figures) -> str."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run; all unless said")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--json", action="store_true", help="print one JSON object of figures")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--texts", type=int, default=2000, help="texts a round (default 2000)")
    parser.add_argument(
        "--rows",
        type=int,
        help="of a round of cloud, or batches that scale drives whole",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - BENCHMARKS.keys()
    if unknown:
        parser.error(
            f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}"
        )
    names = arguments.names or list(BENCHMARKS)
    modules = {name: importlib.import_module(BENCHMARKS[name]) for name in names}
    if arguments.list:
        for name, module in modules.items():
            print(f"{name:16} {module.DESCRIPTION}")
        return
    options = Options(rounds=arguments.rounds, texts=arguments.texts, rows=arguments.rows)
    results = {name: module.measure(options) for name, module in modules.items()}
    if arguments.json:
        print(json.dumps(results[names[0]] if len(names) == 1 else results))
        return
    for name, module in modules.items():
        print(f"\n{name}: {module.DESCRIPTION}\n\n{module.table(results[name])}")


if __name__ == "__main__":
    main()
