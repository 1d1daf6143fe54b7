"""What the server counts, for Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from embatch.server.service import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_ServiceFigures(service))
        self._requests = Counter(
            "embatch_serve_requests",
            "Requests answered.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "embatch_serve_request_seconds",
            "Seconds from a request's head to the last byte of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )

    def observe(self, *, route: str, method: str, status: int, seconds: float) -> None:
        """Counts one answered request."""
        self._requests.labels(route=route, method=method, status=str(status)).inc()
        self._seconds.labels(route=route).observe(seconds)

    def page(self) -> bytes:
        """Everything in the text format of Prometheus. Reads the database."""
        return generate_latest(self._registry)


class _ServiceFigures(Collector):
    """What the service itself knows, read when it is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """The figures now."""
        service = self._service
        batches = GaugeMetricFamily(
            "embatch_serve_batches", "Batches kept, by the service's state.", labels=["state"]
        )
        for state, count in service.store.count_states().items():
            batches.add_metric([state], count)
        yield batches
        yield GaugeMetricFamily(
            "embatch_serve_batches_unfinished",
            "Batches that have not ended for their callers.",
            value=len(service.finisher.open_models()),
        )
        engines = service.catalogue.engines()
        yield CounterMetricFamily(
            "embatch_serve_rows_embedded",
            "Texts embedded since the start, of batches and of interactive calls.",
            value=sum(engine.texts for engine in engines),
        )
        yield CounterMetricFamily(
            "embatch_serve_tokens_read",
            "Tokens that the models read since the start.",
            value=sum(engine.tokens for engine in engines),
        )
        yield CounterMetricFamily(
            "embatch_serve_rows_redone",
            "Rows computed again after a process died, over all batches of the data folder.",
            value=service.store.items_redone(),
        )
        yield GaugeMetricFamily(
            "embatch_serve_files_bytes",
            "Bytes of the uploaded files kept.",
            value=service.shelf.size_bytes(),
        )
        struck = CounterMetricFamily(
            "embatch_serve_faults_struck",
            "Strikes of simulated faults since the start.",
            labels=["fault", "kind"],
        )
        for strikes in service.weather.strikes():
            struck.add_metric([strikes.fault, strikes.kind], strikes.count)
        yield struck
        yield GaugeMetricFamily(
            "embatch_serve_healthy",
            "1 while the worker works, else 0.",
            value=0 if service.trouble() else 1,
        )

    def describe(self) -> Iterable[Metric]:
        """Nothing is collected when the registry is made."""
        return []
