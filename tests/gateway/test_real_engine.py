"""What goes wrong under a real engine: clients that hang up, huge prompts, SIGTERM while streams run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from .conftest import children, events, serve_process, wait_until

SERVE = ("--threads", "1", "--kv-memory", "64MiB", "--log-level", "info")
# The built-in model's window is 1,024 tokens.
LONG: dict[str, Any] = {"model": "airi-demo", "prompt": "Hello", "max_tokens": 1000, "ignore_eos": True}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the built-in model."""
    with serve_process(*SERVE) as (process, url, _):
        yield url
        process.terminate()
        assert process.wait(60) == 0


def gauge(url: str, name: str) -> float:
    """The sum over all samples of a metric; 0 for a counter that has not counted yet."""
    families = list(text_string_to_metric_families(httpx.get(f"{url}/metrics").text))
    assert any(name.removesuffix("_total") == family.name for family in families), f"{name} is not there"
    return sum(s.value for family in families for s in family.samples if s.name == name)


def test_clients_that_hang_up_mid_stream_leave_no_work_and_no_blocks(url: str) -> None:
    def begin_and_leave(seed: int) -> None:
        body = {**LONG, "seed": seed, "temperature": 1, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
            assert response.status_code == 200
            next(response.iter_text())

    def ended() -> float:
        """Requests whose client has left, and those that were through before it could."""
        return gauge(url, "airi_client_disconnects_total") + gauge(url, "airi_request_success_total")

    left, before = gauge(url, "airi_client_disconnects_total"), ended()
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(begin_and_leave, range(20)))
    wait_until(lambda: ended() == before + 20, "a hang-up is not noticed")
    assert gauge(url, "airi_client_disconnects_total") > left
    wait_until(lambda: gauge(url, "airi_requests_running") == 0, "the engine goes on for nobody")
    assert gauge(url, "airi_kv_cache_usage_ratio") == 0
    done = httpx.post(f"{url}/v1/completions", json={**LONG, "max_tokens": 3}, timeout=60).json()
    assert done["usage"]["completion_tokens"] == 3


def test_prompts_of_ten_megabytes_are_refused_while_a_stream_goes_on(url: str) -> None:
    text = "The quick brown fox. " * 500_000
    ids = [5] * 3_000_000
    messages = [{"role": "user", "content": text}]
    huge: list[tuple[str, dict[str, Any]]] = [
        ("completions", {"prompt": text}),
        ("completions", {"prompt": ids}),
        ("completions", {"prompt": "x" * 10_000_000}),
        ("chat/completions", {"messages": messages}),
    ]
    with httpx.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as response:
        pieces = response.iter_text()
        received = next(pieces)
        for path, fields in huge:
            body = {"model": "airi-demo", "max_tokens": 4, **fields}
            refused = httpx.post(f"{url}/v1/{path}", json=body, timeout=60)
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert events(received + "".join(pieces))[-1]["choices"][0]["finish_reason"] == "length"


def test_a_terminated_server_finishes_its_streams_and_leaves_no_process() -> None:
    with serve_process(*SERVE) as (process, url, said):
        begun = threading.Barrier(21)

        def stream(seed: int) -> str:
            body = {**LONG, "max_tokens": 300, "seed": seed, "temperature": 1, "stream": True}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as response:
                pieces = response.iter_text()
                text = next(pieces)
                begun.wait(60)
                return text + "".join(pieces)

        with ThreadPoolExecutor(20) as pool:
            streams = [pool.submit(stream, seed) for seed in range(20)]
            begun.wait(60)
            (engine,) = children(process.pid)
            process.terminate()
            ended = [events(received.result()) for received in streams]
        assert [received[-1]["choices"][0]["finish_reason"] for received in ended] == ["length"] * 20
        assert process.wait(60) == 0
        assert not Path(f"/proc/{engine}").exists(), "the engine outlives its server"
    assert not any("Traceback" in line for line in said), "".join(said)


def test_a_body_that_ends_early_is_refused(url: str) -> None:
    body = json.dumps({**LONG, "max_tokens": 2}).encode()
    with httpx.Client(base_url=url, timeout=60) as http:
        for cut in (1, len(body) // 2, len(body) - 1):
            refused = http.post("/v1/completions", content=body[:cut])
            assert refused.status_code == 400
            assert refused.json()["error"]["type"] == "invalid_request_error"
        assert http.post("/v1/completions", content=body).status_code == 200
