"""Prometheus metrics of the service and of a supervisor's workers.

Each set has a registry of its own and is rendered when it is asked for. Any thread.
"""

from collections.abc import Iterator, Mapping, Sized
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .answers import Answer

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Restoring(Protocol):
    """What can say how far its restore is."""

    @property
    def recovered(self) -> bool: ...
    def progress(self) -> tuple[int, int]: ...


class ServiceMetrics:
    """Requests by endpoint and status, their durations, readers who wait for news, and the view's progress."""

    def __init__(self, view: Restoring, watchers: Sized) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gokamsg_http_requests", "Requests answered.", ["endpoint", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "gokamsg_http_request_seconds",
            "How long answers took.",
            ["endpoint"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._series: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # labels() looks them up with a lock
        waiting = Gauge("gokamsg_http_waiting", "Readers who wait for news of a feed.", registry=self._registry)
        waiting.set_function(lambda: float(len(watchers)))
        ready = Gauge("gokamsg_view_ready", "1 if feeds can be read.", registry=self._registry)
        ready.set_function(lambda: float(view.recovered))
        records = Gauge("gokamsg_view_records", "Records of the table read so far.", registry=self._registry)
        records.set_function(lambda: float(view.progress()[0]))
        remaining = Gauge("gokamsg_view_remaining_records", "Records of the table to go.", registry=self._registry)
        remaining.set_function(lambda: float(view.progress()[1]))

    def observe(self, endpoint: str, status: int, seconds: float) -> None:
        found = self._series.get((endpoint, status))
        if found is None:
            found = self._requests.labels(endpoint, str(status)), self._seconds.labels(endpoint)
            self._series[endpoint, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def answer(self) -> Answer:
        return Answer(generate_latest(self._registry), 200, CONTENT_TYPE_LATEST)


WORKER_COUNTERS = {
    "records": "Records handled.",
    "emitted": "Records emitted.",
    "table_writes": "Table rows written.",
    "bad_records": "Records that could not be processed.",
    "commits": "Commits made.",
    "table_reads": "Changelog records applied, restores included.",
    "aborts": "Transactions given up.",
}
WORKER_GAUGES = {
    "partitions": "Partitions assigned and restored.",
    "records_per_s": "Records handled a second, lately.",
    "lag": "Records behind the ends of the inputs.",
    "table_lag": "Changelog records behind, over all tables that are followed.",
    "parked_records": "Records in quarantine.",
    "parked_keys": "Keys with records in quarantine.",
    "commit_ms": "Duration of the last commit in milliseconds.",
    "restoring": "1 while tables are being restored.",
}


class WorkerMetrics:
    """The latest status of every worker, by the worker's name (role/number)."""

    def __init__(self, statuses: Mapping[str, Mapping[str, Any]]) -> None:
        self._statuses = statuses
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        statuses = dict(self._statuses)
        for name, text in WORKER_COUNTERS.items():
            counter = CounterMetricFamily(f"gokamsg_worker_{name}", text, labels=("worker",))
            for worker, status in statuses.items():
                counter.add_metric((worker,), float(status.get(name, 0)))
            yield counter
        for name, text in WORKER_GAUGES.items():
            gauge = GaugeMetricFamily(f"gokamsg_worker_{name}", text, labels=("worker",))
            for worker, status in statuses.items():
                gauge.add_metric((worker,), gauge_value(status.get(name)))
            yield gauge

    def answer(self) -> Answer:
        return Answer(generate_latest(self._registry), 200, CONTENT_TYPE_LATEST)


def gauge_value(value: Any) -> float:
    """A status entry as a number: lists by their length, what is there or not as 1 or 0."""
    if isinstance(value, list):
        return float(len(value))
    return float(bool(value)) if value is None or isinstance(value, dict) else float(value)
