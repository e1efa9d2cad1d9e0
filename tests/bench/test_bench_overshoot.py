"""How the bench of shared limits judges what clients saw."""

from __future__ import annotations

import math
from pathlib import Path

from airi.config import load
from airi.config.limits import cost_micro, limit_table
from airi.policy.ledger import Scope
from benches.bench_overshoot import INPUT_MICRO, MOST, OUTPUT_MICRO, Answer, config_text, most_in


def test_only_what_certainly_fell_into_a_minute_is_judged() -> None:
    answers = [
        Answer(0.0, 1.0, 5, 2),
        Answer(10.0, 60.0, 3, 1),
        Answer(59.0, 60.5, 7, 7),
        Answer(61.0, 90.0, 1, 1),
    ]
    assert most_in(answers, "requests", 60.0) == 2
    assert most_in(answers[:2], "tokens", 60.0) == 11
    assert most_in(answers, "tokens", 60.0) == 4 + 14
    assert most_in(answers, "money", math.inf) == 16 * INPUT_MICRO + 11 * OUTPUT_MICRO


def test_the_limits_that_are_judged_are_those_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "airi.yaml"
    path.write_text(config_text(tmp_path, 8000, "redis://127.0.0.1:1"))
    file = load(path)
    table = limit_table(file)
    assert table[Scope(tenant="requests")].requests_per_minute == MOST["requests"]
    assert table[Scope(tenant="tokens")].tokens_per_minute == MOST["tokens"]
    budget = table[Scope(tenant="money")].budget
    assert budget is not None
    assert budget.amount_micro == MOST["money"]
    price = file.config.models[0].price
    assert cost_micro(price, input_tokens=10, output_tokens=3) == 10 * INPUT_MICRO + 3 * OUTPUT_MICRO
