"""The scheduler over many batches: the journal's own calls on a real PostgreSQL, no vectors.

A provider that answers at once leaves what a step costs in the journal. Each size is a run of so
many batches under a cap, driven from planned to published; the larger ones are driven at their
beginning, in their middle and at their end, with what lies between written as a run would have
left it (`--rows N` drives sizes up to N whole; 1,000 unless said). Then 1,000 runs share 100,000
batches.
The database keeps what it confirms (fsync on). `build/scale.json` holds all figures and plans.
"""

import importlib.util
import json
import statistics
import threading
import time
from dataclasses import asdict
from typing import Any

from sqlalchemy import Engine, text

from benchmarks.measuring import ROOT, Figures, Options
from benchmarks.scale_fill import publish_first
from benchmarks.scale_plans import Plan, explain, recording
from benchmarks.scale_steps import Driver
from embatch.journal.connecting import open_engine
from embatch.journal.store import Journal

DESCRIPTION = "what a step costs in the journal, with 1,000 to 100,000 batches on PostgreSQL"
SIZES = (1_000, 10_000, 100_000)
WHOLE = 1_000
"""Sizes up to this are driven from end to end."""
WINDOW = 200
"""Batches driven at each place of a larger run."""
RUNS = 1_000
THREADS = 4
DURABLE = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "256MB"}


def measure(options: Options) -> Figures:
    """Drives all sizes."""
    whole = options.rows or WHOLE
    figures: Figures = {"whole_up_to_batches": whole}
    plans: dict[str, list[dict[str, Any]]] = {}
    with _server()(**DURABLE) as server:
        for size in SIZES:
            url = server.create_journal()
            figures |= _drive_size(url, size, whole, plans)
            server.drop(url)
        url = server.create_journal()
        figures |= _drive_many_runs(url, plans)
        server.drop(url)
        url = server.create_journal()
        figures |= _drive_together(url)
        server.drop(url)
    small, large = figures[f"step_ms_at_{SIZES[0]}"], figures[f"step_ms_at_{SIZES[-1]}"]
    figures["step_growth"] = round(float(large) / float(small), 2)
    figures["table_scans"] = sum(len(plan["scans"]) for found in plans.values() for plan in found)
    path = ROOT / "build" / "scale.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"figures": figures, "plans": plans}, indent=1))
    return figures


def table(figures: Figures) -> str:
    """The figures by size."""
    lines = [
        "| batches | steps/s | ms a step | transactions/s | transactions a batch | KB a batch |"
    ]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    for size in SIZES:
        names = ("steps_per_s", "step_ms", "tx_per_s", "tx_per_batch", "kb_per_batch")
        cells = " | ".join(f"{figures[f'{name}_at_{size}']:,}" for name in names)
        lines.append(f"| {size:,} | {cells} |")
    rest = {name: value for name, value in figures.items() if "_at_" not in name}
    return "\n".join([*lines, "", *(f"{name}: {value}" for name, value in rest.items())])


def _drive_size(url: str, size: int, whole: int, plans: dict[str, Any]) -> Figures:
    journal, engine = Journal.open(url), open_engine(url)
    driver = Driver(journal, "r1")
    began = time.perf_counter()
    driver.enter(size)
    planned_s = time.perf_counter() - began
    _settle_down(engine)
    spent, transactions = 0.0, 0
    windows = [(0, size)] if size <= whole else _windows(size)
    for start, count in windows:
        if start:
            publish_first(engine, "r1", below=start)
            _settle_down(engine)
        before = _transactions(engine)
        began = time.perf_counter()
        driver.drive(until_published=count)
        spent += time.perf_counter() - began
        transactions += _transactions(engine) - before
    plans[str(size)] = [asdict(plan) for plan in plans_of_one_more(journal, engine, size)]
    stored = _bytes(engine)
    journal.close()
    engine.dispose()
    done = sum(count for _, count in windows)
    calls = {f"{_ms(times)} {name}" for name, times in driver.seconds.items()}
    print(f"{size:,} batches: {sorted(calls)}", flush=True)
    return {
        f"steps_per_s_at_{size}": round(driver.steps / spent, 1),
        f"step_ms_at_{size}": round(1000 * spent / driver.steps, 3),
        f"tx_per_s_at_{size}": round(transactions / spent, 1),
        f"tx_per_batch_at_{size}": round(transactions / done, 1),
        f"kb_per_batch_at_{size}": round(stored / 1000 / size, 2),
        f"planned_batches_per_s_at_{size}": round(size / planned_s),
        f"claim_ms_at_{size}": _ms(driver.seconds["claim_step"]),
        f"next_due_ms_at_{size}": _ms(driver.seconds["next_due"]),
        f"has_steps_ms_at_{size}": _ms(driver.seconds["has_steps"]),
    }


def _windows(size: int) -> list[tuple[int, int]]:
    return [(0, WINDOW), (size // 2, WINDOW), (size - WINDOW, WINDOW)]


def _drive_many_runs(url: str, plans: dict[str, Any]) -> Figures:
    journal, engine = Journal.open(url), open_engine(url)
    for number in range(RUNS):
        Driver(journal, f"r{number:04}").enter(SIZES[-1] // RUNS)
    with engine.begin() as connection:
        ids = connection.execute(text("SELECT id FROM runs ORDER BY id")).scalars().all()
    for run_id in ids[: RUNS // 2]:
        publish_first(engine, run_id, below=SIZES[-1] // RUNS // 2)
    _settle_down(engine)
    drivers = [Driver(journal, run_id) for run_id in ids[:: RUNS // 20]]
    began = time.perf_counter()
    for driver in drivers:
        driver.drive(until_published=15)
    spent = time.perf_counter() - began
    plans[f"{RUNS} runs"] = [
        asdict(plan) for plan in plans_of_one_more(journal, engine, 0, run_id=ids[0])
    ]
    journal.close()
    engine.dispose()
    steps = sum(driver.steps for driver in drivers)
    return {
        "thousand_runs_steps_per_s": round(steps / spent, 1),
        "thousand_runs_step_ms": round(1000 * spent / steps, 3),
    }


def _drive_together(url: str) -> Figures:
    """Threads on one run, which take turns, and as many on runs of their own."""
    figures: Figures = {}
    for name, runs in (("one_run", ["r1"] * THREADS), ("own_runs", ["a", "b", "c", "d"])):
        journal, engine = Journal.open(url), open_engine(url)
        for run_id in sorted(set(runs)):
            Driver(journal, run_id).enter(400)
        drivers = [Driver(journal, run_id, owner=f"w{n}") for n, run_id in enumerate(runs)]
        threads = [
            threading.Thread(target=driver.drive, kwargs={"until_published": 60})
            for driver in drivers
        ]
        before, began = _transactions(engine), time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = time.perf_counter() - began
        figures[f"{name}_{THREADS}_threads_tx_per_s"] = round(
            (_transactions(engine) - before) / spent, 1
        )
        journal.close()
        engine.dispose()
    return figures


def plans_of_one_more(
    journal: Journal, engine: Engine, size: int, *, run_id: str = "r1"
) -> list[Plan]:
    """The plans of what one batch more asks for, and of what an idle executor asks."""
    more = Driver(journal, run_id, now=2_000_000.0)
    if size:
        run_id = more.run_id = "more"
        more.enter(2, first=0)
        Driver(journal, "r1").claim()
    pool: Engine = journal._database._engine  # noqa: SLF001 - what is measured
    with recording(pool) as recorded:
        more.drive(until_published=1)
        journal.leases.next_due("r1" if size else run_id)
        journal.leases.has_steps("r1" if size else run_id)
        journal.leases.renew([], lease_s=60)
        journal.leases.waits_for_person("r1" if size else run_id)
        journal.quotas.waits("r1" if size else run_id)
    return explain(engine, recorded)


def _settle_down(engine: Engine) -> None:
    """What autovacuum does to tables of this size within its minute."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _transactions(engine: Engine) -> int:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        time.sleep(1.1)  # other sessions report once a second
        found: Any = connection.execute(
            text("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        ).scalar()
    return int(found)


def _bytes(engine: Engine) -> int:
    with engine.connect() as connection:
        found: Any = connection.execute(
            text("SELECT pg_database_size(current_database())")
        ).scalar()
    return int(found)


def _ms(times: list[float]) -> float:
    return round(1000 * statistics.median(times), 3) if times else 0.0


def _server() -> Any:
    """The tests' PostgreSQL, from the wheel."""
    spec = importlib.util.spec_from_file_location("postgres", ROOT / "tests" / "postgres.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PostgresServer
