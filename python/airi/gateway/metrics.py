"""What Prometheus scrapes. Names follow the field's servers with the prefix `airi_`; lint-clean for `promtool`.

Latencies are measured where the client feels them, in the gateway; queue, cache and prefix numbers come from the
engine's latest snapshot and are read at scrape time only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from airi.transport.messages import EngineStats, ModelStats

if TYPE_CHECKING:
    from airi.lifecycle.observed import Seen

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
_E2E_S = (0.005, 0.05, 0.1, 0.3, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0)

_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ROUTING_S = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1)

StatsSource = Callable[[], EngineStats | None]
EngineSource = tuple[str, StatsSource, Callable[[], bool]]
"""A replica's name, its latest snapshot, and whether it serves."""
_Row = tuple[tuple[str, ...], ModelStats]
"""Labels and counters of a model."""


class _Histogram(Histogram):
    """A histogram that counts many zeros at once: of tokens that come together all but one are 0 s apart."""

    def observe_zeros(self, count: int) -> None:
        """As so many `observe(0.0)`."""
        self._buckets[0].inc(count)


class ModelMetrics:
    """The metrics of one model, looked up once so that a token costs no label look-up.

    *Thread safety*: as prometheus-client's own, any thread may update.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self.time_to_first_token = metrics.ttft.labels(model)
        self.inter_token_latency = metrics.itl.labels(model)
        self.e2e_latency = metrics.e2e.labels(model)
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.generation_tokens = metrics.generation_tokens.labels(model)
        self.device_seconds = metrics.device_seconds.labels(model)

    def content_matched(self, side: str, rule: str, action: str) -> None:
        """Count a match of a content rule in a prompt or an answer."""
        self._metrics.content_matches.labels(self._model, side, rule, action).inc()

    def shadowed(self, outcome: str) -> None:
        """Count an answer that a candidate was to read: "scored", "unscored", "dropped" or "denied"."""
        self._metrics.shadowed.labels(self._model, outcome).inc()

    def overlapped(self, collection: str, version: str, share: float) -> None:
        """Count a search that was made again with vectors of another version."""
        self._metrics.overlap.labels(collection, self._model, version).observe(share)

    def routed(self, route: str) -> None:
        """Count a call that a route gave to the model."""
        self._metrics.route_calls.labels(route, self._model).inc()

    def finished(self, reason: str) -> None:
        """Count a choice that ended with `reason`."""
        self._metrics.success.labels(self._model, reason).inc()


class ChoiceTimer:
    """Times the tokens of one choice: the first one from the request's arrival, the others from each other."""

    __slots__ = ("_last", "_metrics", "_seen", "first")

    def __init__(self, metrics: ModelMetrics, seen: Seen | None = None) -> None:
        """`seen`: what counts them for gates, in milliseconds: tokens that came together share the time before them, as
        how many do depends on how busy this process is.
        """
        self._metrics, self._seen = metrics, seen
        self.first: float | None = None
        """When the first one was ready; None before."""
        self._last: float | None = None

    def tokens(self, count: int, now: float, arrived: float) -> None:
        """`count` tokens were ready at `now` (seconds, monotonic). Those that came together are 0 s apart."""
        seen = self._seen
        if self._last is None:
            self.first = now
            self._metrics.time_to_first_token.observe(now - arrived)
            if seen is not None:
                seen.ttft_ms.add((now - arrived) * 1e3)
        else:
            self._metrics.inter_token_latency.observe(now - self._last)
            if seen is not None:
                seen.itl_ms.add((now - self._last) * 1e3 / count, count)
        self._last = now
        if count > 1:
            self._metrics.inter_token_latency.observe_zeros(count - 1)


class Metrics:
    """All metrics of one gateway, in a registry of their own.

    *Thread safety*: any thread may update or scrape.
    """

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        model = ("model_name",)
        self.ttft = self._histogram("time_to_first_token_seconds", "Time to first token.", model, _TTFT_S)
        self.itl = self._histogram(
            "inter_token_latency_seconds", "Time between tokens of a choice.", model, _ITL_S
        )
        self.e2e = self._histogram("e2e_request_latency_seconds", "Time of a whole request.", model, _E2E_S)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.", model)
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.", model)
        self.device_seconds = self._counter(
            "request_device_seconds", "Time of devices that requests have used.", model
        )
        self.success = self._counter(
            "request_success", "Choices finished, by reason.", ("model_name", "finished_reason")
        )
        self.content_matches = self._counter(
            "content_matches", "Matches of content rules.", ("model_name", "side", "rule", "action")
        )
        self.shadowed = self._counter(
            "shadow_answers", "Answers that a candidate was to read.", ("model_name", "outcome")
        )
        self.overlap = self._histogram(
            "retrieval_overlap",
            "Share of the rows of a search that are also found with vectors of a candidate.",
            ("collection", "model_name", "version"),
            _SHARES,
        )
        self.route_calls = self._counter(
            "route_calls", "Calls that a route gave to a model, as a fallback too.", ("route", "model_name")
        )
        self.failed_conditions = self._counter(
            "route_condition_failures",
            "Conditions of routes that could not be evaluated and counted as false.",
            ("route", "rule"),
        )
        self.classified = self._counter(
            "route_classifications",
            "Questions to classifiers of routes, by their label and what became of them.",
            ("route", "label", "outcome"),
        )
        self._http = self._counter("http_requests", "HTTP requests answered.", ("route", "method", "status"))
        self._disconnects = self._counter("client_disconnects", "Requests whose client hung up.", ())
        info = Gauge("airi_build_info", "1, labelled with the version.", ("version",), registry=self.registry)
        info.labels(version).set(1)
        ProcessCollector(registry=self.registry)
        self._models: dict[str, ModelMetrics] = {}

    def model(self, name: str) -> ModelMetrics:
        """The metrics of the model of this (primary) name."""
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = ModelMetrics(self, name)
        return found

    def watch_engine(self, stats: StatsSource, alive: Callable[[], bool]) -> None:
        """Expose an engine's own counters, read from its latest snapshot when scraped."""
        self.registry.register(_EngineCollector([("", stats, alive)], ()))

    def watch_replicas(self, replicas: Sequence[EngineSource]) -> Callable[[str, float], None]:
        """As `watch_engine`, with a label for the replica. What is returned counts a decision for one, in seconds."""
        self.registry.register(_EngineCollector(replicas, ("replica",)))
        took = self._histogram("routing_decision_seconds", "Time to choose a replica.", (), _ROUTING_S)
        sent = self._counter("routed_requests", "Requests sent to a replica.", ("replica",))

        def decided(replica: str, seconds: float) -> None:
            took.observe(seconds)
            sent.labels(replica).inc()

        return decided

    def watch(self, figures: Collector) -> None:
        """Expose what another part knows, read when scraped."""
        self.registry.register(figures)

    def http_done(self, route: str, method: str, status: int) -> None:
        """Count one answered HTTP request; `route` is a route's pattern, never a path a client made up."""
        self._http.labels(route, method, str(status)).inc()

    def client_gone(self) -> None:
        """Count a client that hung up before its answer was complete."""
        self._disconnects.inc()

    def render(self) -> bytes:
        """The text exposition, without the `_created` series (they double the volume and say little)."""
        text = generate_latest(self.registry)
        kept = [line for line in text.split(b"\n") if not _is_created(line)]
        return b"\n".join(kept)

    def _histogram(
        self, name: str, help: str, labels: Iterable[str], buckets: tuple[float, ...]
    ) -> _Histogram:
        return _Histogram(f"airi_{name}", help, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, help: str, labels: Iterable[str]) -> Counter:
        return Counter(f"airi_{name}", help, labels, registry=self.registry)


class _EngineCollector(Collector):
    """Turns engines' latest snapshots into metric families when Prometheus asks."""

    def __init__(self, engines: Sequence[EngineSource], more: tuple[str, ...]) -> None:
        """`more`: the label that engines are told apart by, where there are several."""
        self._engines = engines
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """One family per number; only `airi_engine_up` while no snapshot has come."""
        up = GaugeMetricFamily("airi_engine_up", "1 while the engine process serves.", labels=self._more)
        rows: list[_Row] = []
        for replica, stats, alive in self._engines:
            more = (replica,) if self._more else ()
            up.add_metric(more, float(alive()))
            latest = stats()
            rows += [((model.name, *more), model) for model in (() if latest is None else latest.models)]
        yield up
        if not rows:
            return
        label = ("model_name", *self._more)
        running = GaugeMetricFamily("airi_requests_running", "Requests being computed.", labels=label)
        waiting = GaugeMetricFamily("airi_requests_waiting", "Requests queued in the engine.", labels=label)
        usage = GaugeMetricFamily(
            "airi_kv_cache_usage_ratio", "Share of KV blocks in use, 0 to 1.", labels=label
        )
        queries = CounterMetricFamily("airi_prefix_cache_queries", "Prompt tokens looked up.", labels=label)
        hits = CounterMetricFamily(
            "airi_prefix_cache_hits", "Prompt tokens found in the cache.", labels=label
        )
        preemptions = CounterMetricFamily("airi_preemptions", "Requests preempted.", labels=label)
        for name, model in rows:
            running.add_metric(name, model.running)
            waiting.add_metric(name, model.waiting)
            usage.add_metric(name, model.kv_blocks_active / max(1, model.kv_blocks_total))
            queries.add_metric(name, model.prefix_query_tokens)
            hits.add_metric(name, model.prefix_hit_tokens)
            preemptions.add_metric(name, model.preemptions)
        yield from (running, waiting, usage, queries, hits, preemptions)
        yield from _attainment(rows, label)
        yield from _tiers(rows, label)


def _attainment(rows: Sequence[_Row], label: tuple[str, ...]) -> Iterator[Metric]:
    """How promised latencies were kept; no sample for a model that promises none."""
    tokens = CounterMetricFamily(
        "airi_slo_tokens", "Tokens with a latency target.", labels=(*label, "token", "outcome")
    )
    requests = CounterMetricFamily(
        "airi_slo_requests", "Finished requests with latency targets.", labels=(*label, "outcome")
    )
    best_effort = CounterMetricFamily(
        "airi_slo_best_effort_requests",
        "Requests that could not be on time and let others pass.",
        labels=label,
    )
    for name, model in rows:
        first, after = model.first_tokens_on_time, model.next_tokens_on_time
        if not (first + model.first_tokens_late + after + model.next_tokens_late):
            continue
        tokens.add_metric((*name, "first", "on_time"), first)
        tokens.add_metric((*name, "first", "late"), model.first_tokens_late)
        tokens.add_metric((*name, "next", "on_time"), after)
        tokens.add_metric((*name, "next", "late"), model.next_tokens_late)
        requests.add_metric((*name, "on_time"), model.requests_on_time)
        requests.add_metric((*name, "late"), model.requests_late)
        best_effort.add_metric(name, model.best_effort_requests)
    yield from (tokens, requests, best_effort)


def _tiers(rows: Sequence[_Row], label: tuple[str, ...]) -> Iterator[Metric]:
    """Copies of KV blocks beside the device; no sample for a model that has no place for any."""
    blocks = GaugeMetricFamily(
        "airi_kv_tier_blocks", "KV blocks that a tier holds a copy of.", labels=(*label, "tier")
    )
    transfers = CounterMetricFamily(
        "airi_kv_transfers", "Blocks copied between tiers.", labels=(*label, "kind")
    )
    failures = CounterMetricFamily(
        "airi_kv_transfer_failures", "Copies of blocks that failed and were computed instead.", labels=label
    )
    dropped = CounterMetricFamily(
        "airi_kv_dropped_stores", "Blocks not copied for want of room in the host tier.", labels=label
    )
    swaps = CounterMetricFamily(
        "airi_swaps", "Preemptions of which the host tier kept the blocks.", labels=label
    )
    for name, model in rows:
        tiers = model.tiers
        if tiers is None:
            continue
        blocks.add_metric((*name, "host"), tiers.host_blocks)
        blocks.add_metric((*name, "disk"), tiers.disk_blocks)
        transfers.add_metric((*name, "store"), tiers.stores)
        transfers.add_metric((*name, "load"), tiers.loads)
        transfers.add_metric((*name, "spill"), tiers.spills)
        transfers.add_metric((*name, "fetch"), tiers.fetches)
        failures.add_metric(name, tiers.failures)
        dropped.add_metric(name, tiers.dropped_stores)
        swaps.add_metric(name, tiers.swaps)
    yield from (blocks, transfers, failures, dropped, swaps)


def _is_created(line: bytes) -> bool:
    name = line.removeprefix(b"# HELP ").removeprefix(b"# TYPE ")
    return name.split(b" ", 1)[0].split(b"{", 1)[0].endswith(b"_created")


def now() -> float:
    """Monotonic seconds: the clock of all durations here."""
    return time.monotonic()
