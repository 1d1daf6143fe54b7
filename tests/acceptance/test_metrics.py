"""A worker serves metrics of the runs that it works on, equal to what `status` says."""

import signal
import time
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

DEADLINE_S = 60.0


def scrape(url: str) -> dict[tuple[str, ...], float]:
    """Samples by name and the values of their labels."""
    with urllib.request.urlopen(url) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (one.name, *(value for _, value in sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def test_a_worker_serves_metrics_of_what_it_does(shell: Any) -> None:
    """The rows that it wrote, as `status` counts them, and the durations of its own steps."""
    shell.write_rows("texts.jsonl", [{"text": f"text {n}"} for n in range(300)] + [{"text": ""}])
    submitted = shell.type(
        *("run", "texts.jsonl", "-o", "out", "--max-batch-items", "50", "--no-wait", "--json"),
        delay_s=1.0,
    )
    assert submitted.json["state"] == "running"
    run = submitted.json["id"]
    worker = shell.start("worker", "--metrics-port", "0")
    try:
        assert worker.stderr is not None
        url = ""
        while not url:
            line = worker.stderr.readline()
            assert line, "the worker ended"
            url = line.removeprefix("metrics: ").strip() if line.startswith("metrics: ") else ""
        deadline = time.monotonic() + DEADLINE_S
        found = scrape(url)
        while found["embatch_runs", "completed_with_failures"] < 1 and time.monotonic() < deadline:
            time.sleep(0.1)
            found = scrape(url)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=DEADLINE_S)
    assert worker.returncode == 143
    status = shell.type("status", run, "--json").json
    rows = {key[-1]: value for key, value in found.items() if key[0] == "embatch_rows"}
    assert rows["written"] == status["written"] == 300
    assert rows["failed"] == status["failed"] == 1
    batches = {key[-1]: value for key, value in found.items() if key[0] == "embatch_batches"}
    assert batches == status["batches"]
    steps = {key[-1] for key in found if key[0] == "embatch_step_seconds_count"}
    assert "finish" in steps, "the worker took the last step"
    assert found["embatch_journal_up",] == 1
