"""What responses say of limits."""

from __future__ import annotations

import pytest

from airi.policy.ledger import (
    Budget,
    Demand,
    Limits,
    LimitTable,
    LocalLedger,
    Refused,
    Reservation,
    Scope,
    ratelimit_headers,
)
from airi.policy.ledger.headers import format_duration

WIDE, NARROW = Scope(tenant="a"), Scope(tenant="a", model="m")
NOW = 1_790_000_000_250_000


def decide(wide: Limits, demand: Demand, *, before: Demand | None = None) -> Reservation | Refused:
    """The outcome for `demand` a second after `before`, under a wide scope and one without limits."""
    ledger = LocalLedger(LimitTable({WIDE: wide, NARROW: Limits()}))
    if before is not None:
        assert isinstance(ledger.reserve((WIDE, NARROW), before, NOW - 1_000_000), Reservation)
    return ledger.reserve((WIDE, NARROW), demand, NOW)


def test_a_granted_request_says_what_is_left_and_when_all_is_free_again() -> None:
    limits = Limits(requests_per_minute=60, tokens_per_minute=1000)
    outcome = decide(limits, Demand(input_tokens=100, output_tokens=50))
    assert ratelimit_headers(outcome) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1m0.75s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "850",
        "x-ratelimit-reset-tokens": "1m0.75s",
    }


def test_without_limits_there_are_no_headers() -> None:
    assert ratelimit_headers(decide(Limits(), Demand(input_tokens=1))) == {}


def test_of_several_limits_of_tokens_the_tightest_is_told() -> None:
    limits = Limits(tokens_per_minute=1000, input_tokens_per_minute=300, output_tokens_per_minute=900)
    headers = ratelimit_headers(decide(limits, Demand(input_tokens=100, output_tokens=50)))
    assert headers["x-ratelimit-limit-tokens"] == "300"
    assert headers["x-ratelimit-remaining-tokens"] == "200"


def test_a_refusal_says_when_to_come_back() -> None:
    limits = Limits(requests_per_minute=1)
    refused = decide(limits, Demand(), before=Demand())
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == 59.75
    assert ratelimit_headers(refused) == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "59.75s",
        "retry-after": "60",
    }
    assert refused.message == "rpm_limit of tenant 'a' is 1: 0 left, 1 needed; retry in 60 s"


def test_who_waits_for_another_request_to_end_is_not_sent_away_for_a_lease() -> None:
    refused = decide(Limits(max_parallel_requests=1), Demand(), before=Demand())
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == 29
    assert ratelimit_headers(refused)["retry-after"] == "1"


def test_a_demand_that_never_fits_is_told_so() -> None:
    refused = decide(Limits(budget=Budget(amount_micro=1_500_000, period_s=60)), Demand(cost_micro=2_000_000))
    assert isinstance(refused, Refused)
    assert refused.never_fits
    assert refused.retry_after_s is None
    assert ratelimit_headers(refused) == {}
    assert refused.message == "max_budget of tenant 'a' is 1.5: 1.5 left, 2 needed; waiting does not help"


def test_a_budget_that_is_spent_says_when_the_next_period_begins() -> None:
    limits = Limits(budget=Budget(amount_micro=2, period_s=86_400))
    refused = decide(limits, Demand(cost_micro=1), before=Demand(cost_micro=2))
    assert isinstance(refused, Refused)
    assert refused.retry_after_s is not None
    assert (NOW + refused.retry_after_s * 1e6) % (86_400 * 1e6) == 0


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (120_000, "120ms"),
        (999_001, "1s"),
        (1_500_000, "1.5s"),
        (59_999_500, "1m0s"),
        (360_000_000, "6m0s"),
        (3_723_004_000, "1h2m3.004s"),
    ],
)
def test_durations_are_written_as_openai_does(us: int, text: str) -> None:
    assert format_duration(us) == text
