"""What content rules cost at most: of texts that are too long, and of many matches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from airi.gateway.content import MOST_NOTED
from airi.policy.content import ContentRules

from .conftest import StartGateway
from .content import ALL, AUDIT_NUMBERS, BLOCK_CARDS, CARD, ruled
from .test_content import chat, complete


def test_what_no_window_holds_is_read_by_no_rule(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = start_gateway(govern=ruled(input=ALL))
    scanned: list[int] = []
    check = ContentRules.check

    def counting(rules: ContentRules, text: str) -> Any:
        scanned.append(len(text))
        return check(rules, text)

    monkeypatch.setattr(ContentRules, "check", counting)
    text = f"{CARD} " * 5000
    for response, field in (
        (chat(strict, text), "messages"),
        (chat(strict, [{"type": "text", "text": text[:20_000]}] * 2), "messages"),
        (complete(strict, text), "prompt"),
        (complete(strict, ["x", text]), "prompt"),
        (complete(strict, [7] * 50_000), "prompt"),
    ):
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (
            400,
            "context_length_exceeded",
            field,
        )
    assert scanned == []
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1})
    assert strict.http.post("/v1/chat/completions", content=body + " " * 20_000).status_code == 200
    assert scanned == [1]


def test_of_many_matches_in_a_text_the_audit_log_has_the_first_and_a_number(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    gateway = start_gateway(govern=ruled(audit, input=[AUDIT_NUMBERS, BLOCK_CARDS]), max_model_len=4096)
    messages = [{"role": "user", "content": "7 " * count} for count in (MOST_NOTED, MOST_NOTED + 23)]
    assert chat(gateway, messages=messages, max_tokens=4).status_code == 200
    assert chat(gateway, messages=[*messages, {"role": "user", "content": CARD}]).status_code == 400
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    for request_id in {line["request_id"] for line in lines}:
        found = [line for line in lines if line["request_id"] == request_id and "side" in line]
        where = Counter(line["where"] for line in found if line.get("rule") == "numbers")
        assert where["messages[0].content"] == where["messages[1].content"] == MOST_NOTED
        (rest,) = [line for line in found if "more" in line]
        assert rest | {"time": "", "request_id": ""} == {
            "time": "",
            "request_id": "",
            "tenant": "anyone",
            "model": "tiny",
            "side": "input",
            "where": "messages[1].content",
            "more": 23,
        }
