"""`airi serve` on a config whose models other servers run."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx

from .conftest import serve_process, wait_until
from .upstream import CHAT, GOOD, content, hostile

CONFIG = """\
version: 1
server: {{port: 0}}
models:
  - name: far
    upstream: {{base_url: '{url}', model: there, max_model_len: 512, api_key: plain-key, max_retries: 0}}
    price: {{input_per_1m: {price}, output_per_1m: 2}}
observability: {{audit: audit.jsonl}}
"""


def test_a_server_without_an_engine_serves_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "airi.yaml"
    with hostile(GOOD) as server:
        path.write_text(CONFIG.format(url=server.url, price=1))
        with serve_process(str(path)) as (process, url, said), httpx.Client(base_url=url, timeout=60) as http:
            told = http.post("/v1/chat/completions", json=CHAT)
            assert content(told) == "Hello there"
            assert server.asked[0].body["model"] == "there"
            assert "airi_engine_up" not in http.get("/metrics").text
            asleep = http.post("/admin/models/far/sleep", json={})
            assert 400 <= asleep.status_code < 500
            assert "run by another server" in asleep.text

            path.write_text(CONFIG.format(url=server.url, price=3))
            os.kill(process.pid, signal.SIGHUP)
            wait_until(lambda: "models.far.price.input_per_1m" in "".join(said), "the price is not taken")
            path.write_text(CONFIG.format(url="http://other/v1", price=3))
            os.kill(process.pid, signal.SIGHUP)
            wait_until(lambda: "base_url is other than what is served" in "".join(said), "the address is")
            shown = http.get("/admin/config").json()["config"]["models"][0]["upstream"]
            assert shown["api_key"] == "***"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert "Model::far" in [line["resource"] for line in lines]
    assert "plain-key" not in "".join(said)
