"""`airi serve` on a config that limits device time, with the engine itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from .conftest import events, serve_process

CONFIG = """\
version: 1
server: {{port: 0, state: 'sqlite:///{folder}/airi.db', open: {{metrics: true}}}}
engine: {{device: cpu, threads: 1, max_num_seqs: 4, kv_memory: 64MiB}}
models: [{{name: demo, source: airi-demo}}]
tenants:
  - name: acme
    limits: {{max_device_seconds: 0.05, device_seconds_duration: 365d}}
  - name: lab
    limits:
      models: {{demo: {{max_device_seconds: 3600}}}}
"""
LONG: dict[str, Any] = {"model": "demo", "prompt": [5] * 40, "max_tokens": 400, "ignore_eos": True}


def key_of(tenant: str, config: Path) -> str:
    command = [sys.executable, "-m", "airi", "keys", "create", tenant, "--config", str(config)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def ask(url: str, key: str, **changes: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/v1/completions", json=LONG | changes, headers=headers, timeout=120)


def test_a_tenant_whose_device_time_is_used_up_is_cut_off_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    acme, lab = key_of("acme", path), key_of("lab", path)
    with serve_process(str(path)) as (_, url, _):
        # Streams may end before the budget does, or be cut with less than a step of it left.
        while (response := ask(url, acme, stream=True)).status_code == 200:
            last = events(response.text)[-1]
            assert last.get("error", {}).get("param") in (None, "max_device_seconds")
        assert response.status_code == 429
        message = response.json()["error"]["message"]
        assert re.match(r"max_device_seconds of tenant 'acme' is 0\.05: (0 left|used up); retry in", message)
        assert int(response.headers["retry-after"]) > 0
        assert ask(url, lab, max_tokens=20).status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
    told = re.search(r'airi_request_device_seconds_total\{model_name="demo"\} (\S+)', metrics)
    assert told is not None
    assert float(told[1]) > 0.02
