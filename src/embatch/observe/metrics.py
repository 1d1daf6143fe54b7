"""Metrics for Prometheus: the journal's figures, read at each scrape, and this process's steps."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from embatch.errors import ConfigError, JournalError
from embatch.observe.durations import BOUNDS_S, STEPS, StepClock
from embatch.observe.figures import Figures, ModelFigures, QuotaFigures, RunFigures

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Read = Callable[[], Figures]
"""Reads the figures; raises JournalError where the journal is away."""


def render(read: Read, steps: StepClock = STEPS) -> tuple[bytes, str]:
    """A page of everything in the text format of Prometheus, and its content type."""
    return generate_latest(_registry(read, steps)), CONTENT_TYPE


@contextmanager
def serve(read: Read, *, host: str, port: int, steps: StepClock = STEPS) -> Iterator[int]:
    """Serves the page on a port while the block lasts; gives the port, chosen where it is 0.

    ConfigError when it cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=_registry(read, steps))
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on {host}:{port} ({error.strerror}): give another "
            "--metrics-port, or 0 for any"
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _registry(read: Read, steps: StepClock) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Journal(read))
    registry.register(_Steps(steps))
    return registry


class _Steps(Collector):
    def __init__(self, steps: StepClock) -> None:
        self._steps = steps

    def collect(self) -> Iterable[Metric]:
        """The steps that this process has taken."""
        family = HistogramMetricFamily(
            "embatch_step_seconds",
            "Seconds that steps of this process took, by the state in which they found their "
            "batch (or planning, or finish), and by what came of them.",
            labels=["step", "outcome"],
        )
        bounds = [*(str(bound) for bound in BOUNDS_S), "+Inf"]
        for one in self._steps.read():
            pairs = list(zip(bounds, accumulate(one.buckets), strict=True))
            family.add_metric([one.step, one.outcome], buckets=pairs, sum_value=one.seconds)
        yield family


class _Journal(Collector):
    def __init__(self, read: Read) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """The journal now; where it is away, that alone."""
        try:
            figures = self._read()
        except JournalError:
            yield _up(0)
            return
        yield _up(1)
        yield from _of_journal(figures)
        yield from _of_models(figures.models)
        yield from _of_runs(figures.open_runs)
        yield from _of_quotas(figures.quotas)


def _up(value: int) -> Metric:
    return GaugeMetricFamily(
        "embatch_journal_up", "1 when the journal could be read for this page, else 0.", value=value
    )


def _of_journal(figures: Figures) -> Iterable[Metric]:
    yield _gauge("embatch_runs", "Runs by state.", ["state"], sorted(figures.runs.items()))
    retries = CounterMetricFamily(
        "embatch_retries",
        "Times that something had to be done again, by what went wrong: batches refused, lost, "
        "failed, expired or misaligned, parts lost, and failed rows tried again by a person.",
        labels=["reason"],
    )
    for reason, count in sorted(figures.retries.items()):
        retries.add_metric([reason], count)
    yield retries
    for name, words, value in (
        ("notifications_waiting", "Notifications that have not arrived.", "waiting"),
        (
            "notifications_given_up",
            "Notifications that were given up within the last day.",
            "given_up",
        ),
    ):
        count = getattr(figures, f"notifications_{value}")
        yield GaugeMetricFamily(f"embatch_{name}", words, value=count)
    yield GaugeMetricFamily(
        "embatch_workers_alive",
        "Processes that take steps and were seen lately.",
        value=figures.workers_alive,
    )


def _of_models(models: Iterable[ModelFigures]) -> Iterable[Metric]:
    labels, models = ["provider", "model"], list(models)
    yield _gauge(
        "embatch_batches",
        "Batches of all runs, by state.",
        [*labels, "state"],
        [
            (m.provider, m.model, state, count)
            for m in models
            for state, count in sorted(m.batches.items())
        ],
    )
    yield _gauge(
        "embatch_rows",
        "Rows of all runs, by where they stand.",
        [*labels, "state"],
        [(m.provider, m.model, state, count) for m in models for state, count in m.rows.items()],
    )
    for name, words, field in (
        (
            "embatch_oldest_pending_seconds",
            "Age of the batch that has been at the provider for the longest time.",
            "oldest_pending_s",
        ),
        ("embatch_spent_usd", "US dollars spent, settled in the ledger.", "spent_usd"),
        ("embatch_reserved_usd", "US dollars that open purchases may cost.", "reserved_usd"),
        ("embatch_saved_usd", "US dollars saved against the interactive price.", "saved_usd"),
    ):
        known = [(m.provider, m.model, getattr(m, field)) for m in models]
        yield _gauge(name, words, labels, [one for one in known if one[-1] is not None])


def _of_runs(runs: Iterable[RunFigures]) -> Iterable[Metric]:
    labels, runs = ["run", "provider", "model"], list(runs)
    yield _gauge(
        "embatch_run_rows",
        "Rows of each run that is not over, by where they stand.",
        [*labels, "state"],
        [
            (run.id, run.provider, run.model, state, count)
            for run in runs
            for state, count in run.rows.items()
        ],
    )
    yield _gauge(
        "embatch_run_expected_rows",
        "Rows of the dataset of each run that is not over.",
        labels,
        [
            (run.id, run.provider, run.model, run.expected_rows)
            for run in runs
            if run.expected_rows is not None
        ],
    )


def _of_quotas(quotas: Iterable[QuotaFigures]) -> Iterable[Metric]:
    labels, quotas = ["provider", "account", "model"], list(quotas)
    for name, words, field in (
        ("embatch_inflight_tokens", "Tokens that count against the quota.", "tokens"),
        ("embatch_inflight_jobs", "Jobs that count against the quota.", "jobs"),
        ("embatch_ceiling_tokens", "Learned ceiling of tokens in flight.", "ceiling_tokens"),
        ("embatch_ceiling_jobs", "Learned ceiling of jobs in flight.", "ceiling_jobs"),
        ("embatch_quota_wait_seconds", "Seconds until a batch may be created again.", "wait_s"),
    ):
        known = [(q.provider, q.account, q.model, getattr(q, field)) for q in quotas]
        yield _gauge(name, words, labels, [one for one in known if one[-1] is not None])
    creates = CounterMetricFamily(
        "embatch_creates",
        "Batches that the provider was asked to create, by its answer.",
        labels=[*labels, "outcome"],
    )
    for q in quotas:
        creates.add_metric([q.provider, q.account, q.model, "accepted"], q.accepted)
        creates.add_metric([q.provider, q.account, q.model, "refused"], q.refused)
    yield creates


def _gauge(name: str, words: str, labels: list[str], rows: Iterable[Any]) -> Metric:
    """A gauge of rows that hold the labels and, last, the value."""
    family = GaugeMetricFamily(name, words, labels=labels)
    for *values, value in rows:
        family.add_metric([str(one) for one in values], float(value))
    return family
