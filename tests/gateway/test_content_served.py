"""`airi serve` on a config with content rules, with the engine itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx

from .conftest import serve_process, wait_until

CONFIG = """\
version: 1
server: {port: 0}
engine: {device: cpu, threads: 1, max_num_seqs: 4, kv_memory: 64MiB}
models: [{name: demo, source: airi-demo}]
content:
  input:
    - {name: no-cards, detectors: [payment_card], action: block}
    - {name: harm, judge: demo, action: annotate}
  output:
    - {name: letters, regexes: ['[aeiou]'], action: redact, replacement: _}
    - {name: ends, regexes: ['[.!?]'], action: annotate}
observability: {audit: audit.jsonl}
"""
VOWELS = set("aeiou")


def say(url: str, content: str, **fields: object) -> httpx.Response:
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], "max_tokens": 40, **fields}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def test_a_config_with_content_rules_is_served_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG)
    with serve_process(str(path)) as (process, url, said):
        refused = say(url, "Is 4111 1111 1111 1111 mine?")
        assert refused.status_code == 400
        assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (
            "messages[0].content",
            "content_filter",
        )
        answer = say(url, "Hello! How are you?", temperature=0).json()["choices"][0]
        text = answer["message"]["content"]
        assert "_" in text
        assert not VOWELS & set(text)
        told = answer["content_filter_results"]
        assert told["letters"] == {
            "filtered": True,
            "detected": True,
            "matches": {"regexes[0]": text.count("_")},
        }
        assert not told.get("ends", {"filtered": False})["filtered"]
        streamed = say(url, "Hello! How are you?", temperature=0, stream=True).text
        assert not VOWELS & set("".join(part.split('"')[0] for part in streamed.split('"content":"')[1:]))

        path.write_text(CONFIG.replace("letters", "vowels").replace("replacement: _", "replacement: '*'"))
        os.kill(process.pid, signal.SIGHUP)

        def changed() -> bool:
            return (
                "*"
                in say(url, "Hello! How are you?", temperature=0).json()["choices"][0]["message"]["content"]
            )

        wait_until(changed, f"the rules of the new config do not hold: {said}")
    lines = (tmp_path / "audit.jsonl").read_text()
    assert '"rule":"no-cards"' in lines
    assert '"rule":"vowels"' in lines
    assert "4111 1111" not in lines
    # The engine itself holds the judge to a verdict, whatever the model is worth as one.
    assert '"action":"judge","resource":"Model::demo","allowed":true' in lines
    assert "no verdict" not in "".join(said)
