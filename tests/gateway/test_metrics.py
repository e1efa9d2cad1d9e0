"""The metrics page: the names, the lint rules of Prometheus, and that the numbers are those of the requests."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from airi.gateway.metrics import ChoiceTimer, Metrics
from airi.transport import EngineStats, ModelStats, TierStats

from .conftest import Gateway, StartGateway

NAMES = {
    "airi_time_to_first_token_seconds": "histogram",
    "airi_inter_token_latency_seconds": "histogram",
    "airi_e2e_request_latency_seconds": "histogram",
    "airi_prompt_tokens": "counter",
    "airi_generation_tokens": "counter",
    "airi_request_device_seconds": "counter",
    "airi_request_success": "counter",
    "airi_requests_running": "gauge",
    "airi_requests_waiting": "gauge",
    "airi_kv_cache_usage_ratio": "gauge",
    "airi_prefix_cache_queries": "counter",
    "airi_prefix_cache_hits": "counter",
    "airi_preemptions": "counter",
    "airi_slo_tokens": "counter",
    "airi_slo_requests": "counter",
    "airi_slo_best_effort_requests": "counter",
    "airi_kv_tier_blocks": "gauge",
    "airi_kv_transfers": "counter",
    "airi_kv_transfer_failures": "counter",
    "airi_kv_dropped_stores": "counter",
    "airi_swaps": "counter",
    "airi_http_requests": "counter",
    "airi_client_disconnects": "counter",
    "airi_engine_up": "gauge",
    "airi_build_info": "gauge",
    "process_cpu_seconds": "counter",
}
# Units that Prometheus wants in their base form, and words that a name must not hold.
NOT_BASE_UNITS = ("milliseconds", "microseconds", "ms", "minutes", "hours", "kilobytes", "percent", "bits")


def scrape(gateway: Gateway) -> str:
    response = gateway.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return response.text


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(text: str, sample: str, **labels: str) -> float:
    for family in text_string_to_metric_families(text):
        for found in family.samples:
            if found.name == sample and labels.items() <= found.labels.items():
                return float(found.value)
    raise AssertionError(f"{sample}{labels} is not there")


def used(gateway: Gateway) -> str:
    """A page on which every metric has something to show."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "What?"}], "max_tokens": 6}
    gateway.http.post("/v1/chat/completions", json=body)
    while "airi_requests_running" not in scrape(gateway):
        time.sleep(0.05)
    return scrape(gateway)


def test_every_metric_is_there_with_its_type(gateway: Gateway) -> None:
    found = {name: family.type for name, family in families(used(gateway)).items()}
    assert NAMES.items() <= found.items()


def test_the_page_follows_the_lint_rules(gateway: Gateway) -> None:
    text = used(gateway)
    for name, family in families(text).items():
        assert family.documentation, f"{name} has no help"
        assert re.fullmatch(r"[a-z_][a-z0-9_]*", name), "no colons, no capitals"
        assert not set(name.split("_")) & {*NOT_BASE_UNITS, "counter", "gauge", "histogram", "total"}, name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            if family.type != "histogram":
                assert not sample.name.endswith(("_count", "_sum", "_bucket")), sample.name
            assert "le" not in sample.labels or family.type == "histogram"
    assert "_created" not in text
    assert text.endswith("\n")


@pytest.mark.slow  # a moment only, but it needs one of the tools that `make test-all` asks for
def test_promtool_has_nothing_to_say(gateway: Gateway) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian package prometheus)")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=used(gateway), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_numbers_are_those_of_the_requests(start_gateway: StartGateway) -> None:
    gateway = start_gateway()
    body = {"model": "tiny-alias", "prompt": [[5, 6, 7], [8, 9]], "n": 2, "max_tokens": 10}
    for stream in (False, True):
        gateway.http.post("/v1/completions", json={**body, "stream": stream}).read()
    gateway.http.post("/v1/completions", json={**body, "temperature": -1})
    text = scrape(gateway)
    assert value(text, "airi_prompt_tokens_total", model_name="tiny") == 10
    assert value(text, "airi_generation_tokens_total", model_name="tiny") == 80
    assert value(text, "airi_request_success_total", finished_reason="length") == 8
    assert value(text, "airi_time_to_first_token_seconds_count", model_name="tiny") == 8
    assert value(text, "airi_inter_token_latency_seconds_count", model_name="tiny") == 72
    assert value(text, "airi_e2e_request_latency_seconds_count", model_name="tiny") == 2
    assert value(text, "airi_http_requests_total", route="/v1/completions", status="200") == 2
    assert value(text, "airi_http_requests_total", route="/v1/completions", status="400") == 1


def test_paths_that_clients_make_up_are_one_label(gateway: Gateway) -> None:
    for path in ("/a", "/b", "/v1/models/x", "/v1/models/y"):
        gateway.http.get(path)
    text = scrape(gateway)
    routes = {
        sample.labels["route"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "route" in sample.labels
    }
    assert not routes & {"/a", "/b", "/v1/models/x"}
    assert {"other", "/v1/models/{model:path}"} <= routes


def test_engine_numbers_come_from_its_latest_snapshot() -> None:
    metrics = Metrics("1")
    model = ModelStats(
        name="m",
        running=3,
        waiting=4,
        kv_blocks_total=8,
        kv_blocks_active=2,
        prefix_query_tokens=100,
        prefix_hit_tokens=60,
        preemptions=1,
    )
    stats: list[EngineStats | None] = [None]
    metrics.watch_engine(lambda: stats[0], lambda: stats[0] is not None)
    assert value(metrics.render().decode(), "airi_engine_up") == 0
    stats[0] = EngineStats([model])
    text = metrics.render().decode()
    expected = {
        "airi_requests_running": 3,
        "airi_requests_waiting": 4,
        "airi_kv_cache_usage_ratio": 0.25,
        "airi_prefix_cache_queries_total": 100,
        "airi_prefix_cache_hits_total": 60,
        "airi_preemptions_total": 1,
    }
    for name, number in expected.items():
        assert value(text, name, model_name="m") == number
    assert value(text, "airi_engine_up") == 1


def test_attainment_is_that_of_the_models_that_promise_something() -> None:
    metrics = Metrics("1")
    kept = ModelStats(
        name="kept",
        first_tokens_on_time=5,
        first_tokens_late=2,
        next_tokens_on_time=90,
        next_tokens_late=7,
        requests_on_time=4,
        requests_late=3,
        best_effort_requests=1,
    )
    metrics.watch_engine(lambda: EngineStats([kept, ModelStats(name="free")]), lambda: True)
    text = metrics.render().decode()
    tokens = {("first", "on_time"): 5, ("first", "late"): 2, ("next", "on_time"): 90, ("next", "late"): 7}
    for (token, outcome), number in tokens.items():
        found = value(text, "airi_slo_tokens_total", model_name="kept", token=token, outcome=outcome)
        assert found == number
    assert value(text, "airi_slo_requests_total", model_name="kept", outcome="on_time") == 4
    assert value(text, "airi_slo_requests_total", model_name="kept", outcome="late") == 3
    assert value(text, "airi_slo_best_effort_requests_total", model_name="kept") == 1
    assert not re.search(r'airi_slo_\w+{.*model_name="free"', text)


@pytest.mark.parametrize(
    "field", ["first_tokens_on_time", "first_tokens_late", "next_tokens_on_time", "next_tokens_late"]
)
def test_a_promise_that_was_only_kept_or_only_broken_is_seen(field: str) -> None:
    metrics = Metrics("1")
    counts: dict[str, Any] = {field: 3}
    metrics.watch_engine(lambda: EngineStats([ModelStats(name="m", **counts)]), lambda: True)
    token, _, outcome = field.partition("_tokens_")
    text = metrics.render().decode()
    assert value(text, "airi_slo_tokens_total", model_name="m", token=token, outcome=outcome) == 3


def test_tiers_are_counted_for_the_models_that_have_some() -> None:
    metrics = Metrics("1")
    tiers = TierStats(
        host_blocks=7,
        disk_blocks=30,
        stores=50,
        loads=20,
        spills=31,
        fetches=9,
        failures=2,
        dropped_stores=4,
        swaps=3,
    )
    models = [ModelStats(name="kept", tiers=tiers), ModelStats(name="plain")]
    metrics.watch_engine(lambda: EngineStats(models), lambda: True)
    text = metrics.render().decode()
    for tier, number in {"host": 7, "disk": 30}.items():
        assert value(text, "airi_kv_tier_blocks", model_name="kept", tier=tier) == number
    for kind, number in {"store": 50, "load": 20, "spill": 31, "fetch": 9}.items():
        assert value(text, "airi_kv_transfers_total", model_name="kept", kind=kind) == number
    assert value(text, "airi_kv_transfer_failures_total", model_name="kept") == 2
    assert value(text, "airi_kv_dropped_stores_total", model_name="kept") == 4
    assert value(text, "airi_swaps_total", model_name="kept") == 3
    assert not re.search(r'airi_(kv_t|kv_d|swaps)\w+{.*model_name="plain"', text)


def test_times_between_tokens_add_up_to_the_time_they_took() -> None:
    metrics = Metrics("1")
    timer = ChoiceTimer(metrics.model("m"))
    timer.tokens(1, now := 10.0, now - 2.0)
    timer.tokens(3, now + 0.5, now - 2.0)
    timer.tokens(1, now + 0.75, now - 2.0)
    text = metrics.render().decode()
    assert value(text, "airi_time_to_first_token_seconds_sum") == 2.0
    assert value(text, "airi_inter_token_latency_seconds_sum") == 0.75
    assert value(text, "airi_inter_token_latency_seconds_count") == 4
