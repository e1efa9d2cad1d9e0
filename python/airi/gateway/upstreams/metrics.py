"""What Prometheus is told of upstreams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from airi.upstreams.breaker import CircuitState

if TYPE_CHECKING:
    from airi.gateway.metrics import Metrics
    from airi.upstreams.client import UpstreamClient

__all__ = ["UpstreamMetrics"]

_MODEL = ("model_name",)


class UpstreamMetrics:
    """Counts attempts as they end; the rest is read when it is scraped.

    *Thread safety*: any thread may scrape.
    """

    def __init__(self, metrics: Metrics) -> None:
        """Only made where there are upstreams: others have no such metrics."""
        self._registry = metrics.registry
        self._attempts = Counter(
            "airi_upstream_attempts",
            "Attempts to have an upstream answer, by how they ended.",
            (*_MODEL, "outcome"),
            registry=metrics.registry,
        )
        self._retries = Counter(
            "airi_upstream_retries", "Attempts that repeat one.", _MODEL, registry=metrics.registry
        )

    def of(self, model: str) -> _Observer:
        """What a client tells of one model's attempts."""
        return _Observer(self._attempts, self._retries, model)

    def watch(self, clients: Sequence[UpstreamClient]) -> None:
        """Exposes how these upstreams are."""
        self._registry.register(_Collector(clients))


class _Observer:
    def __init__(self, attempts: Counter, retries: Counter, model: str) -> None:
        self._attempts, self._model = attempts, model
        self._retries = retries.labels(model)

    def attempted(self, outcome: str) -> None:
        self._attempts.labels(self._model, outcome).inc()

    def retried(self) -> None:
        self._retries.inc()


class _Collector(Collector):
    def __init__(self, clients: Sequence[UpstreamClient]) -> None:
        self._clients = clients

    def collect(self) -> Iterator[Metric]:
        """One family per number."""
        up = GaugeMetricFamily("airi_upstream_up", "1 while an upstream may well answer.", labels=_MODEL)
        state = GaugeMetricFamily(
            "airi_upstream_circuit_state",
            "1 for the state of the circuit breaker.",
            labels=(*_MODEL, "state"),
        )
        opened = CounterMetricFamily(
            "airi_upstream_circuit_opened", "Times that a circuit breaker opened.", labels=_MODEL
        )
        for client in self._clients:
            name = client.options.name
            up.add_metric((name,), float(client.is_up))
            opened.add_metric((name,), client.breaker.times_opened)
            now = client.breaker.state
            for each in CircuitState:
                state.add_metric((name, each), float(each is now))
        yield from (up, state, opened)
