"""A rollout before two engines: a candidate is on both, also on one that starts again under it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import httpx

from airi import builtin
from airi.transport.stub import StubEngine, StubOptions
from tests.gateway.conftest import serve_process, stub_engine, wait_until

CONFIG = """\
version: 1
server: {port: 0, state: "sqlite:///FOLDER/airi.db"}
models:
  - name: general
    versions: [{id: g1, source: airi-demo}, {id: g2, source: airi-demo}]
rollouts:
  general:
    candidate: g2
    steps: [{set_weight: 50}, {pause: {}}, {set_weight: 100}, {pause: {}}]
"""


def test_a_candidate_is_on_all_replicas(tmp_path: Path, endpoints: list[str]) -> None:
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    asked = 0

    def ask(http: httpx.Client, release: str) -> str:
        nonlocal asked
        asked += 1
        messages = [{"role": "user", "content": f"{asked} and what follows from it"}]
        body = {"model": "general", "messages": messages, "max_tokens": 4}
        answer = http.post("/v1/chat/completions", json=body, headers={"x-airi-release": release})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-airi-model"] == f"general@{release}"
        return answer.headers["x-airi-replica"]

    def begin(stack: ExitStack, endpoint: str) -> StubEngine:
        options = StubOptions(endpoint=endpoint, model_path=str(builtin.path()), name="general@g1")
        return stack.enter_context(stub_engine(options))

    with ExitStack() as first, ExitStack() as second, ExitStack() as third:
        begin(first, endpoints[0])
        begin(second, endpoints[1])
        engines = ("--engine", endpoints[0], "--engine", endpoints[1])
        _, url, _ = third.enter_context(serve_process(str(path), *engines))
        http = third.enter_context(httpx.Client(base_url=url, timeout=30))

        def weight() -> int:
            (line,) = http.get("/admin/rollouts").json()["data"]
            return int(line["weight"])

        assert http.post("/admin/rollouts/general/start", json={}).status_code == 200
        wait_until(lambda: weight() == 50, "the candidate gets no traffic")
        for release in ("g1", "g2"):
            assert {ask(http, release) for _ in range(8)} == {"0", "1"}
        second.close()
        for release in ("g1", "g2"):
            assert {ask(http, release) for _ in range(8)} == {"0"}
        back = begin(second, endpoints[1])
        wait_until(lambda: {ask(http, "g2") for _ in range(4)} == {"0", "1"}, "it did not get the candidate")
        assert back.asked["general@g2"] > 0
        assert {ask(http, "g1") for _ in range(8)} == {"0", "1"}
