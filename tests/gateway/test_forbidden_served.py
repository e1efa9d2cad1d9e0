"""Forbidden texts in what is served: no answer holds one, each has its certificate, and `airi verify` tells."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airi.cli import main
from airi.gateway.certificates import text_digest

from .conftest import children, events, serve_process, wait_until

CONFIG = """\
version: 1
server: {port: 0}
engine: {threads: 1, kv_memory: 64MiB}
models: [{name: demo, source: airi-demo, aliases: [d]}]
content:
  forbid:
    - {name: letters, regexes: ['[eE]'], words: [you]}
    - {name: keys, detectors: [credentials, email]}
"""
PROMPT = {"model": "demo", "prompt": "The quick brown fox", "max_tokens": 40, "temperature": 4}
FORBIDDEN = re.compile(r"[eE]|(?i:\byou\b)", re.ASCII)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "airi.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def server(config: Path) -> Iterator[tuple[Any, str, list[str]]]:
    with serve_process(str(config), "--log-level", "info") as served:
        yield served


def complete(url: str, **fields: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/completions", json={**PROMPT, **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def verdict(
    answer: Any, config: Path, folder: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> tuple[int, str]:
    path = folder / "answer"
    path.write_text(answer if isinstance(answer, str) else json.dumps(answer))
    capsys.readouterr()
    status = main(["verify", str(path), "--config", str(config), *more])
    return status, capsys.readouterr().out.strip()


def test_answers_hold_no_forbidden_text_and_are_verified(
    server: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url, _ = server
    for fields in (
        {"n": 4},
        {"stop": [" t", "and"], "n": 4},
        {"min_tokens": 20, "model": "d"},
        {"echo": True},
    ):
        answer = complete(url, **fields)
        request = tmp_path / "request.json"
        request.write_text(json.dumps(PROMPT))
        count = len(answer["choices"])
        said = verdict(answer, config, tmp_path, capsys, "--request", str(request))
        assert said == (0, f"verified: {count} certificate{'s' * (count > 1)}")
        assert any(choice["text"] for choice in answer["choices"])
        for choice in answer["choices"]:
            text = choice["text"][choice["certificate"].get("start", 0) :]
            assert not FORBIDDEN.search(text)
            assert choice["certificate"]["tokens"] <= 40


def test_streams_end_with_their_certificates(
    server: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url, _ = server
    messages = [{"role": "user", "content": "Tell me of the sea."}]
    for path, fields in (
        ("completions", PROMPT),
        ("chat/completions", {"model": "demo", "messages": messages}),
    ):
        body = {**fields, "stream": True, "n": 2, "max_tokens": 30, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", f"{url}/v1/{path}", json=body, timeout=60) as response:
            received = "".join(response.iter_text())
        assert sum("certificate" in choice for event in events(received) for choice in event["choices"]) == 2
        assert verdict(received, config, tmp_path, capsys) == (0, "verified: 2 certificates")
        changed = re.sub(r'("(?:text|content)":") ', r"\1#", received, count=1)
        assert changed != received
        status, line = verdict(changed, config, tmp_path, capsys)
        assert status == 1
        assert "text_sha256" in line


def test_logprobs_do_not_say_what_the_text_may_not(
    server: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url, _ = server
    answer = complete(url, logprobs=5, echo=True, n=2)
    request = tmp_path / "request.json"
    request.write_text(json.dumps(PROMPT))
    assert verdict(answer, config, tmp_path, capsys, "--request", str(request))[0] == 0
    for choice in answer["choices"]:
        found = choice["logprobs"]
        taken = [{token} for token in found["tokens"]]
        assert [set(top or taken[0]) for top in found["top_logprobs"]] == taken
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}
    body |= {"logprobs": True, "top_logprobs": 5, "min_tokens": 8}
    chat = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]
    entries = chat["logprobs"]["content"]
    assert len(entries) > 5
    assert not any(entry["top_logprobs"] for entry in entries)
    stream = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": True}, timeout=60).text
    assert '"top_logprobs":[]' in stream
    assert '"top_logprobs":[{' not in stream


def test_answers_in_other_forms_hold_none_either(server: Any) -> None:
    _, url, _ = server
    words = "The quick brown fox"
    asked = {"model": "demo", "temperature": 1}
    response = httpx.post(
        f"{url}/v1/responses", json={**asked, "input": words, "max_output_tokens": 40}, timeout=60
    ).json()
    talk = [{"role": "user", "content": words}]
    message = httpx.post(
        f"{url}/v1/messages", json={**asked, "messages": talk, "max_tokens": 40}, timeout=60
    ).json()
    for answer, text in (
        (response, response["output"][0]["content"][0]["text"]),
        (message, message["content"][0]["text"]),
    ):
        assert text
        assert FORBIDDEN.search(text) is None
        assert answer["certificate"]["text_sha256"] == text_digest(text)


def test_what_differs_is_said_in_a_line(
    server: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url, _ = server
    answer = complete(url)
    choice = answer["choices"][0]
    other = tmp_path / "other.yaml"
    other.write_text(CONFIG.replace("[eE]", "[eEx]"))
    none = tmp_path / "none.yaml"
    none.write_text(CONFIG[: CONFIG.index("content")])
    assert verdict(answer, other, tmp_path, capsys)[1].startswith("choices[0]: policy is ")
    assert verdict(answer, none, tmp_path, capsys) == (
        1,
        "the config forbids no texts of model 'demo' to callers without a tenant; name one",
    )
    cases: list[tuple[dict[str, Any], str]] = [
        ({"text": choice["text"] + "!"}, "choices[0]: text_sha256 is"),
        ({"certificate": {**choice["certificate"], "tokenizer": "0" * 64}}, "choices[0]: tokenizer is 0000"),
        ({"certificate": {**choice["certificate"], "automaton": "0" * 64}}, "choices[0]: automaton is 0000"),
        ({"certificate": {**choice["certificate"], "final_state": "00"}}, "choices[0]: final_state is 00"),
        ({"certificate": None}, "choices[0]: has no certificate"),
    ]
    for change, begins in cases:
        status, line = verdict({**answer, "choices": [{**choice, **change}]}, config, tmp_path, capsys)
        assert (status, line[: len(begins)]) == (1, begins)
    for broken in (
        "",
        "{",
        "[]",
        "data: {",
        '{"error": {"code": "x"}}',
        '{"choices": [{}]}',
        '{"model": "demo"}',
    ):
        status, line = verdict(broken, config, tmp_path, capsys)
        assert status == 1
        assert line
        assert "\n" not in line


def test_forged_texts_are_found_out(
    server: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A text with a match, under a certificate that is right in all else."""
    import hashlib

    _, url, _ = server
    answer = complete(url)
    choice = answer["choices"][0]
    choice["text"] = "he"
    choice["certificate"]["text_sha256"] = hashlib.sha256(b"he").hexdigest()
    assert verdict(answer, config, tmp_path, capsys) == (1, "choices[0]: the text matches letters.regexes[0]")


def test_calls_of_tools_are_verified_by_the_text_that_they_were_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "airi.yaml"
    config.write_text(CONFIG.replace("regexes: ['[eE]'], ", ""))
    none: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Look!"}],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": none}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    with serve_process(str(config)) as (_, url, _):
        for stream in (False, True):
            answer = httpx.post(f"{url}/v1/chat/completions", json=body | {"stream": stream}, timeout=60)
            assert answer.status_code == 200, answer.text
            assert '"tool_calls":[{' in answer.text
            assert verdict(answer.text, config, tmp_path, capsys) == (0, "verified: 1 certificate")
            changed = answer.text.replace('"name":"look"', '"name":"you"')
            said = verdict(changed, config, tmp_path, capsys)
            assert said == (1, "choices[0]: its tool_calls[0].function.name matches letters.words[0]")
            said = verdict(answer.text.replace('look\\"', 'lock\\"'), config, tmp_path, capsys)
            assert (said[0], said[1][:27]) == (1, "choices[0]: text_sha256 is ")
        asked = {key: body[key] for key in ("model", "messages")} | {"max_tokens": 99}
        asked |= {
            "tools": [{"name": "look", "input_schema": none}],
            "tool_choice": {"type": "tool", "name": "look"},
        }
        message = httpx.post(f"{url}/v1/messages", json=asked, timeout=60).json()
        certificate = message["certificate"]
        assert message["stop_reason"] == "tool_use"
        assert certificate["text_sha256"] == text_digest(certificate["text"])


def test_a_form_that_leaves_nothing_ends_the_answer(server: Any) -> None:
    _, url, _ = server
    answer = complete(url, structured_outputs={"choice": ["eel", "ease"]})
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert answer["choices"][0]["text"] == ""
    free = complete(url, structured_outputs={"choice": ["eel", "fish"]})
    assert free["choices"][0]["text"] == "fish"


def test_stop_strings_leave_no_word_standing(server: Any, config: Path, tmp_path: Path, capsys: Any) -> None:
    """What follows a word makes it another one, until it is cut off."""
    _, url, _ = server
    answer = complete(url, structured_outputs={"choice": ["youth"]}, stop=["th"])
    text = answer["choices"][0]["text"]
    assert text in ("yout", "youth", "")
    assert verdict(answer, config, tmp_path, capsys)[0] == 0


def test_a_reload_changes_what_is_forbidden_and_a_restart_does_not(
    server: Any, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process, url, said = server
    before = complete(url)
    config.write_text(CONFIG.replace("[eE]", "[aA]"))
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: any("was reloaded" in line for line in said), "the config is not read again")
    after = complete(url, n=6, min_tokens=20)
    assert before["choices"][0]["certificate"]["policy"] != after["choices"][0]["certificate"]["policy"]
    assert not any(re.search("[aA]", choice["text"]) for choice in after["choices"])
    assert any("e" in choice["text"] for choice in after["choices"]), after
    assert verdict(after, config, tmp_path, capsys)[0] == 0
    config.write_text(CONFIG.replace("[eE]", "[aA"))
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: any("was not reloaded" in line for line in said), "a broken one is not refused")
    assert (
        complete(url)["choices"][0]["certificate"]["policy"] == after["choices"][0]["certificate"]["policy"]
    )
    config.write_text(CONFIG.replace("[eE]", "[aA]"))
    (engine,) = children(process.pid)
    os.kill(engine, signal.SIGKILL)
    restarted = complete(url)
    assert not re.search("[aA]", restarted["choices"][0]["text"])
    assert verdict(restarted, config, tmp_path, capsys)[0] == 0
