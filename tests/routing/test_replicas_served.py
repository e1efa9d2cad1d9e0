"""A gateway before several engines: over HTTP, with processes that are killed."""

from __future__ import annotations

import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from airi import builtin
from airi.cli import main
from tests.gateway.conftest import children, serve_process, wait_until

from .conftest import StartStub

DEMO = str(builtin.path())
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}


def ask(url: str, content: str, max_tokens: int = 4) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def series(url: str, name: str) -> dict[str, float]:
    """The values of a metric by replica."""
    text = httpx.get(f"{url}/metrics").text
    found = re.findall(rf'^{name}{{[^}}]*replica="(\d)"[^}}]*}} (\S+)$', text, re.M)
    return {replica: float(value) for replica, value in found}


def test_a_gateway_before_three_engines_outlives_two_of_them(
    endpoints: list[str], start_stub: StartStub
) -> None:
    stub = ("--model-path", DEMO, "--name", "demo", "--step-us", "3000")
    processes = [start_stub(endpoint, *stub) for endpoint in endpoints]
    flags = [flag for endpoint in endpoints for flag in ("--engine", endpoint)]
    with serve_process(*flags) as (_, url, _):
        answers = [ask(url, f"{i} and what follows from it") for i in range(9)]
        assert {answer.headers["x-airi-replica"] for answer in answers} == {"0", "1", "2"}
        assert series(url, "airi_engine_up") == {"0": 1, "1": 1, "2": 1}
        assert sum(series(url, "airi_routed_requests_total").values()) == 9
        assert "airi_routing_decision_seconds_count 9.0" in httpx.get(f"{url}/metrics").text
        began: list[int] = []
        ends: list[tuple[str, str]] = []

        def stream(i: int) -> None:
            body = {**CHAT, "max_tokens": 1000, "stream": True}
            body["messages"] = [{"role": "user", "content": f"{i} " * 30}]
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
                lines = answer.iter_lines()
                text = [next(lines)]
                began.append(i)
                text += lines
                ends.append((answer.headers["x-airi-replica"], "\n".join(text)[-400:]))

        threads = [threading.Thread(target=stream, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(began) == 12, "not all have begun")
        processes[0].kill()
        for thread in threads:
            thread.join()
        assert len(ends) == 12
        for replica, end in ends:
            assert end.rstrip().endswith("data: [DONE]")
            assert ("error" in end) == (replica == "0")
            assert "engine_unavailable" in end or '"finish_reason":"length"' in end, end
        assert {replica for replica, _ in ends} == {"0", "1", "2"}
        processes[1].kill()
        wait_until(lambda: series(url, "airi_engine_up") == {"0": 0, "1": 0, "2": 1}, "it is not known")
        assert httpx.get(f"{url}/ready").status_code == 200
        assert ask(url, "still there?").headers["x-airi-replica"] == "2"
        processes[2].kill()
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 503, "it is still ready")
        assert httpx.get(f"{url}/health").status_code == 200
        with ThreadPoolExecutor() as pool:
            held = pool.submit(ask, url, "back?")
            start_stub(endpoints[1], *stub)
            assert held.result().headers["x-airi-replica"] == "1", "which one is known when it has answered"


def test_replicas_are_started_again_and_share_the_machine(tmp_path: Path) -> None:
    config = tmp_path / "airi.yaml"
    config.write_text(
        f"version: 1\nserver: {{port: 0, state: 'sqlite:///{tmp_path}/airi.db'}}\n"
        "engine: {device: cpu, replicas: 2, kv_memory: 64MiB, threads: 2}\n"
        "models: [{name: demo, source: airi-demo}]\n"
    )
    with serve_process(str(config)) as (process, url, said):
        engines = children(process.pid)
        assert len(engines) == 2
        answers = [ask(url, f"{i} and what follows from it " * 4) for i in range(6)]
        assert {answer.headers["x-airi-replica"] for answer in answers} == {"0", "1"}
        os.kill(engines[0], signal.SIGKILL)
        assert [ask(url, f"{i}").status_code for i in range(6)] == [200] * 6
        wait_until(lambda: set(series(url, "airi_engine_up").values()) == {1.0}, "it was not started again")
        wait_until(lambda: any("serves again" in line for line in said), "nothing was said")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    for pid in engines:
        assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--engine", "ipc:///x", "--engine", "ipc:///x"), "--engine: ipc:///x is given twice"),
        (("--engine", "ipc:///x", "--replicas", "2"), "replicas does not go with --engine"),
        (("--replicas", "0"), "replicas is 0; accepted: from 1 to 64"),
        (("--engine", "nowhere", "--engine", "ipc:///x"), "endpoint is 'nowhere'; give ipc://PATH"),
    ],
)
def test_mistakes_are_one_line(flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", *flags]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
