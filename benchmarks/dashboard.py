"""Each page of the dashboard over a large journal, and fifty browsers that listen."""

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.dashboard_journal import Built, Size, build
from benchmarks.measuring import ROOT, Figures, Options, environment

DESCRIPTION = "pages over 1,000 runs, 100,000 batches, 1 million events; 50 browsers that listen"
BROWSERS: Final = 50
LISTEN_S: Final = 20.0
ROUNDS: Final = 5
_DATABASES: Final = ("sqlite", "postgresql")


def measure(options: Options) -> Figures:
    """The figures of both databases; `--rows` is the number of events, 1,000,000 unless said."""
    share = (options.rows or 1_000_000) / 1_000_000
    size = Size(
        runs=max(20, round(1_000 * share)),
        batches=max(200, round(100_000 * share)),
        largest=max(20, round(10_000 * share)),
    )
    figures: Figures = {}
    for name in _DATABASES:
        with _database(name) as url:
            begun = time.perf_counter()
            built = build(url, size)
            figures |= {
                f"{name}_runs": built.runs,
                f"{name}_batches": built.batches,
                f"{name}_events": built.events,
                f"{name}_build_s": time.perf_counter() - begun,
            }
            with _dashboard(url) as (address, pid):
                for what, seconds, first, cpu, html, twin in _pages(address, pid, built):
                    figures |= {
                        f"{name}_{what}_first_ms": first * 1000,
                        f"{name}_{what}_ms": seconds * 1000,
                        f"{name}_{what}_cpu_ms": cpu * 1000,
                        f"{name}_{what}_html_kb": html / 1000,
                        f"{name}_{what}_json_kb": twin / 1000,
                    }
                heard = _listen(address, pid, url, built)
                figures |= {f"{name}_{what}": value for what, value in heard.items()}
    return figures


def table(figures: Figures) -> str:
    """Markdown."""
    lines = []
    for name in _DATABASES:
        runs, batches, events = (
            f"{figures[f'{name}_{what}']:,} {what}" for what in ("runs", "batches", "events")
        )
        lines += [f"{name}: {runs}, {batches}, {events}", ""]
        lines += [
            "| page | first, ms | median, ms | own CPU, ms | HTML, kB | JSON, kB |",
            "|---|---|---|---|---|---|",
        ]
        for what in _PATHS:
            cells = [
                f"{figures[f'{name}_{what}_{unit}']:,.1f}"
                for unit in ("first_ms", "ms", "cpu_ms", "html_kb", "json_kb")
            ]
            lines.append(f"| {what} | {' | '.join(cells)} |")
        lines += [
            "",
            f"{figures[f'{name}_browsers']} browsers listened {figures[f'{name}_listened_s']:.0f} s"
            f" and heard {figures[f'{name}_heard']:,} changes, each"
            f" {figures[f'{name}_behind_ms']:,.0f} ms (median) and at most"
            f" {figures[f'{name}_behind_most_ms']:,.0f} ms behind the journal; memory"
            f" {figures[f'{name}_before_mb']:.1f} MB before, {figures[f'{name}_begun_mb']:.1f} MB"
            f" with all of them at the beginning, {figures[f'{name}_end_mb']:.1f} MB at the end,"
            f" {figures[f'{name}_after_mb']:.1f} MB after them",
            "",
        ]
    return "\n".join(lines)


_PATHS: Final = ("runs", "runs_search", "largest_run", "open_run", "batch", "workers", "events")


def _paths(built: Built) -> Mapping[str, str]:
    return {
        "runs": "/",
        "runs_search": "/?q=catalogue&tag=team%3Dt3",
        "largest_run": f"/runs/{built.largest}",
        "open_run": f"/runs/{built.open}",
        "batch": f"/runs/{built.largest}/batches/17",
        "workers": "/workers",
        "events": f"/runs/{built.largest}?before={built.events // 2 * 2}",
    }


def _pages(
    address: str, pid: int, built: Built
) -> Iterator[tuple[str, float, float, float, int, int]]:
    """Name, median and first seconds, CPU seconds, bytes of HTML and of JSON, page by page.

    The CPU is the dashboard's own, not that of a database server beside it.
    """
    _get(address, "/login")  # templates and modules are loaded once a process
    for name, path in _paths(built).items():
        spent, before = [], _cpu_s(pid)
        for _ in range(ROUNDS):
            # Past the moment for which a page that was read is given again.
            time.sleep(0.4 + 4.0 * (spent[-1] if spent else 0.0))
            begun = time.perf_counter()
            html = _get(address, path)
            spent.append(time.perf_counter() - begun)
        cpu = (_cpu_s(pid) - before) / ROUNDS
        twin = _get(address, path, accept="application/json")
        yield name, statistics.median(spent), spent[0], cpu, len(html), len(twin)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _listen(address: str, pid: int, url: str, built: Built) -> Figures:
    """Fifty streams while a run moves four times a second; how late each heard, and the memory."""
    from embatch.journal.store import Journal

    before = _memory_mb(pid)
    moments: dict[int, float] = {}
    delays: list[float] = []
    stop = threading.Event()
    listeners = [_Listener(address, stop) for _ in range(BROWSERS)]
    for one in listeners:
        one.start()
    time.sleep(3.0)
    begun_mb = _memory_mb(pid)
    journal = Journal.open(url)
    until, changes = time.monotonic() + LISTEN_S, 0
    while time.monotonic() < until:
        journal.add_event(built.open, "looked", now=time.time())
        moments[changes] = time.monotonic()
        changes += 1
        time.sleep(1.5)
    time.sleep(1.5)
    end_mb = _memory_mb(pid)
    journal.close()
    stop.set()
    for one in listeners:
        one.join()
    for at in moments.values():
        for one in listeners:
            later = [heard for heard in one.heard if heard >= at]
            if later:
                delays.append(min(later) - at)
    time.sleep(2.0)
    return {
        "browsers": BROWSERS,
        "listened_s": LISTEN_S,
        "heard": sum(len(one.heard) for one in listeners),
        "behind_ms": statistics.median(delays) * 1000,
        "behind_most_ms": max(delays) * 1000,
        "before_mb": before,
        "begun_mb": begun_mb,
        "end_mb": end_mb,
        "after_mb": _memory_mb(pid),
    }


class _Listener(threading.Thread):
    """One browser's stream."""

    def __init__(self, address: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        where = urlsplit(address)
        self._connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=30)
        self._over = stop
        self.heard: list[float] = []

    def run(self) -> None:
        """Listens until it is told to stop."""
        self._connection.request("GET", "/live")
        answer = self._connection.getresponse()
        while not self._over.is_set():
            line = answer.readline()
            if not line:
                break
            if line.strip() == b"event: changed":
                self.heard.append(time.monotonic())
        self._connection.close()


def _get(address: str, path: str, *, accept: str = "text/html") -> bytes:
    where = urlsplit(address)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=120)
    connection.request("GET", path, headers={"Accept": accept})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200 and path != "/login":
        raise RuntimeError(f"{path} answered {answer.status}: {body[:500]!r}")
    return body


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} is gone")


@contextmanager
def _dashboard(url: str) -> Iterator[tuple[str, int]]:
    """A dashboard as a process of its own: its address and its id."""
    command = [sys.executable, "-m", "embatch", "dashboard", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--journal", url],
        stdout=subprocess.PIPE,
        env={**environment(), "EMBATCH_HOME": tempfile.gettempdir()},
        cwd=tempfile.gettempdir(),
        text=True,
    )
    try:
        assert process.stdout is not None
        told: dict[str, Any] = json.loads(process.stdout.readline())
        yield str(told["url"]), int(told["pid"])
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _database(name: str) -> Iterator[str]:
    """An empty database's URL."""
    folder = Path(tempfile.mkdtemp(prefix="embatch-bench-"))
    try:
        if name == "sqlite":
            yield f"sqlite:///{folder / 'journal.db'}"
        else:
            sys.path.insert(0, os.fspath(ROOT / "tests"))
            from postgres import PostgresServer

            with PostgresServer() as server:
                yield server.create_empty()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
