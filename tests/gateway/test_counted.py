"""Whoever is over a limit of requests has nothing done, and what is refused for another reason was a request."""

from __future__ import annotations

import re

import pytest

from airi.gateway.gate import Government
from airi.policy.ledger import Limits

from .conftest import StartGateway
from .content import BLOCK_CARDS, CARD, content_part
from .test_governed import BODIES, ask, limited


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_a_call_about_tokens_is_a_request(start_gateway: StartGateway, path: str) -> None:
    gateway = start_gateway(govern=limited(Limits(requests_per_minute=2, max_parallel_requests=1)))
    first = gateway.http.post(path, json=BODIES[path])
    assert (first.status_code, first.headers["x-ratelimit-remaining-requests"]) == (200, "1")
    assert gateway.http.post(path, json=BODIES[path] | {"prompt": None, "tokens": [10**6]}).status_code == 400
    assert gateway.http.post(path, json=BODIES[path]).status_code == 429
    assert ask(gateway).status_code == 429


def test_what_is_refused_is_a_request_and_nothing_is_looked_at_without_one(
    start_gateway: StartGateway,
) -> None:
    async def govern() -> Government:
        government = await limited(Limits(requests_per_minute=2, tokens_per_minute=400))()
        government.content = content_part(input=[BLOCK_CARDS])
        return government

    gateway = start_gateway(govern=govern)
    card = [{"role": "user", "content": CARD}]
    answers = [ask(gateway, messages=card) for _ in range(3)]
    assert [each.status_code for each in answers] == [400, 400, 429]
    assert answers[0].json()["error"]["code"] == "content_filter"
    assert answers[2].json()["error"]["param"] == "rpm_limit"
    assert len(answers[2].headers.get_list("x-ratelimit-limit-requests")) == 1
    found = re.findall(r"airi_content_matches_total{.*} (.*)", gateway.http.get("/metrics").text)
    assert found == ["2.0"], "the third was not looked at"


def test_a_call_over_a_limit_of_tokens_was_a_request(start_gateway: StartGateway) -> None:
    limits = Limits(requests_per_minute=1, tokens_per_minute=100, max_parallel_requests=1)
    gateway = start_gateway(govern=limited(limits))
    answers = [ask(gateway, max_tokens=300) for _ in range(2)]
    assert [each.json()["error"]["param"] for each in answers] == ["tpm_limit", "rpm_limit"]
    assert len(answers[0].headers.get_list("x-ratelimit-limit-tokens")) == 1


def test_a_call_that_leaves_its_length_open_is_told_what_that_reserves(start_gateway: StartGateway) -> None:
    gateway = start_gateway(govern=limited(Limits(tokens_per_minute=100)))
    body = {"model": "tiny", "prompt": [5, 6, 7]}
    message = gateway.http.post("/v1/completions", json=body).json()["error"]["message"]
    assert message == (
        "tpm_limit of tenant 'anyone' is 100: 100 left, 512 needed; waiting does not help; "
        "give max_tokens: as none was given, 509 are reserved for the answer"
    )
    given = gateway.http.post("/v1/completions", json=body | {"max_tokens": 509}).json()["error"]["message"]
    assert given == "tpm_limit of tenant 'anyone' is 100: 100 left, 512 needed; waiting does not help"
