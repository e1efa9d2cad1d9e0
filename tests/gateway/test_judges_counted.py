"""What judges use is within the limits of whom they are asked about, and nobody over a limit has any asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from airi.gateway.gate import Government
from airi.gateway.governing import decider_of
from airi.gateway.limits import Limiter
from airi.policy.ledger import Budget, LimitName, Limits, LimitTable, ProcessLedger, Scope
from airi.text import Tokenizer

from .conftest import Gateway, StartGateway, wait_until
from .content import content_part
from .test_content import chat, complete, length
from .test_server import requests_of

SCOPE = Scope(tenant="anyone")
MOST = Budget(amount_micro=1 << 40)
TOKEN_US = 1000


class Judged:
    """A gateway whose model says one word, under limits and with judges; a token costs one millionth."""

    def __init__(self, start: StartGateway, tokenizer: Tokenizer, limits: Limits, **content: Any) -> None:
        self.table = LimitTable({SCOPE: limits})
        self.ledger = ProcessLedger(self.table)
        self._content = content_part(**content)
        self.gateway: Gateway = start(
            answer="safe",
            stop_after=length(tokenizer, "safe") + 1,
            max_model_len=2048,
            device_us=TOKEN_US,
            govern=self._govern,
        )

    async def _govern(self) -> Government:
        await self.ledger.set_limits(self.table)
        limiter = Limiter(self.ledger, self.table, lambda _, prompt, answer: prompt + answer)
        return Government(decider_of(None, ("tiny",)), limiter, content=self._content)

    def used(self) -> dict[LimitName, int]:
        asked = asyncio.run_coroutine_threadsafe(self.ledger.remaining([SCOPE]), self.gateway.loop)
        return {one.name: one.limit - one.remaining for one in asked.result(10)}


def judged(action: str) -> dict[str, Any]:
    return {"name": "harm", "judge": "tiny-alias", "action": action}


@pytest.mark.parametrize("side", ["input", "output"])
def test_a_call_over_a_limit_has_no_judge_asked(
    start_gateway: StartGateway, tokenizer: Tokenizer, side: str
) -> None:
    limits = Limits(requests_per_minute=1, max_parallel_requests=1)
    gateway = Judged(start_gateway, tokenizer, limits, **{side: [judged("block")]}).gateway
    statuses = [chat(gateway, "A thing").status_code for _ in range(20)]
    assert statuses == [200] + [429] * 19
    assert gateway.stub.num_requests == 2


def test_what_judges_use_is_charged_to_whom_they_are_asked_about(
    start_gateway: StartGateway, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(
        requests_per_minute=1000,
        input_tokens_per_minute=1 << 40,
        output_tokens_per_minute=1 << 40,
        max_parallel_requests=9,
        budget=MOST,
        device_seconds=MOST,
    )
    served = Judged(start_gateway, tokenizer, limits, input=[judged("block")], output=[judged("annotate")])
    seen = requests_of(served.gateway, monkeypatch)
    assert complete(served.gateway, ["A thing", "Another"]).status_code == 200
    assert len(seen) == 6
    prompts, answers = sum(request.num_tokens for request in seen), served.gateway.stub._generated
    # The stub takes no time for the first token of an answer beside its prompt.
    device_us = TOKEN_US * (prompts + answers - len(seen))
    charged = {
        LimitName.REQUESTS: 1,
        LimitName.INPUT_TOKENS: prompts,
        LimitName.OUTPUT_TOKENS: answers,
        LimitName.PARALLEL: 0,
        LimitName.BUDGET: prompts + answers,
        LimitName.DEVICE: device_us,
    }
    wait_until(lambda: served.used() == charged, "something else is charged")


@pytest.mark.parametrize("action", ["block", "audit"])
@pytest.mark.parametrize("side", ["input", "output"])
def test_a_call_whose_judge_is_over_a_limit_is_refused_by_its_name(
    start_gateway: StartGateway, tokenizer: Tokenizer, side: str, action: str
) -> None:
    limits = Limits(tokens_per_minute=100)
    served = Judged(start_gateway, tokenizer, limits, **{side: [judged(action)]})
    response = complete(served.gateway, "A thing")
    assert response.status_code == 429
    assert response.json()["error"]["param"] == "tpm_limit"
    assert served.gateway.stub.num_requests == (side == "output")
