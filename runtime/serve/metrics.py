"""What a server measures, as Prometheus reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.engine import Engine
from runtime.serve.admission import Admission

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Of one server; no other shares its registry."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "braid_requests", "Requests by what became of them.", ["path", "status"], registry=self._registry
        )
        self.first_token = Histogram(
            "braid_first_token_seconds",
            "From a request to the first tokens of its answer.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.seconds = Histogram(
            "braid_request_seconds", "From a request to its end.", buckets=_SECONDS, registry=self._registry
        )
        self._registry.register(_Now(engine, admission))

    def written(self) -> bytes:
        """What /metrics answers."""
        return generate_latest(self._registry)


class Clock:
    """Of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = time.perf_counter()
        self._has_told = False

    def told(self, tokens: int) -> None:
        """So many tokens have come."""
        if tokens and not self._has_told:
            self._has_told = True
            self._metrics.first_token.observe(time.perf_counter() - self._began)

    def ended(self, path: str, status: str) -> None:
        self._metrics.requests.labels(path, status).inc()
        self._metrics.seconds.observe(time.perf_counter() - self._began)


class _Now(Collector):
    """What engine and queue have when they are asked."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission

    def collect(self) -> Iterator[Metric]:
        statistics, admission = self._engine.statistics, self._admission
        gauges = {
            "requests_running": (admission.answered, "Requests that are answered now."),
            "requests_waiting": (admission.waiting, "Requests that wait for a place."),
            "threads_open": (statistics.open_threads, "Reasoning threads that are open."),
            "threads_waiting": (statistics.waiting, "Threads that wait for a row of the page table."),
            "tokens_in_flight": (statistics.in_flight, "Tokens between two ticks."),
            "pages_used": (statistics.pages_used, "Pages of keys and values that threads refer to."),
            "pages": (statistics.num_pages, "Pages in the pool."),
        }
        for name, (value, what) in gauges.items():
            yield GaugeMetricFamily(f"braid_{name}", what, value)
        counters = {
            "ticks": "Calls of the device.",
            "generated": "Tokens sampled.",
            "computed": "Tokens computed.",
            "iterations": "Token-iterations of the core block.",
            "recomputed": "Tokens computed again after eviction.",
            "prompt_tokens": "Received tokens that were needed.",
            "cached_tokens": "Received tokens whose pages were shared.",
        }
        for name, what in counters.items():
            yield CounterMetricFamily(f"braid_{name}", what, getattr(statistics, name))
