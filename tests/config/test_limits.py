"""Limits and prices of a config, as the ledger takes them."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from airi.config.limits import cost_micro, limit_table
from airi.config.models import Price
from airi.config.tenants import Limits as GivenLimits
from airi.policy.ledger import Budget, LimitName, Limits, Scope

from .conftest import config

TEXT = """\
version: 1
models: [{name: a, source: x, price: {input_per_1m: 1}}]
tenants:
  - name: acme
    limits:
      rpm_limit: 1
      tpm_limit: 2
      input_tpm_limit: 3
      output_tpm_limit: 4
      max_parallel_requests: 5
      max_budget: 6.5
      budget_duration: 30d
      max_device_seconds: 7
      models: {a: {rpm_limit: 8}}
      classes: {sheddable: {max_device_seconds: 0.5, device_seconds_duration: 1h}, critical: {}}
  - {name: lab}
"""


def test_every_limit_reaches_its_scope() -> None:
    assert dict(limit_table(config(TEXT))) == {
        Scope(tenant="acme"): Limits(
            requests_per_minute=1,
            tokens_per_minute=2,
            input_tokens_per_minute=3,
            output_tokens_per_minute=4,
            max_parallel_requests=5,
            budget=Budget(amount_micro=6_500_000, period_s=30 * 86400),
            device_seconds=Budget(amount_micro=7_000_000),
        ),
        Scope(tenant="acme", model="a"): Limits(requests_per_minute=8),
        Scope(tenant="acme", priority_class="sheddable"): Limits(
            device_seconds=Budget(amount_micro=500_000, period_s=3600)
        ),
    }


def test_limits_are_called_as_the_ledger_calls_them() -> None:
    periods = {"budget_duration", "device_seconds_duration"}
    assert set(GivenLimits.model_fields) - periods == set(LimitName)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(0, 10**7), st.integers(0, 10**7))
def test_costs_are_rounded_up_once(
    input_price: float, output_price: float, inputs: int, outputs: int
) -> None:
    price = Price(input_per_1m=input_price, output_per_1m=output_price)
    exact = Fraction(input_price) * inputs + Fraction(output_price) * outputs
    cost = cost_micro(price, input_tokens=inputs, output_tokens=outputs)
    # A price is kept to the millionth of a millionth for a token.
    assert abs(cost - exact) <= 1 + Fraction(inputs + outputs, 10**6)
    assert cost_micro(None, input_tokens=inputs, output_tokens=outputs) == 0


def test_a_price_per_million_is_the_millionths_of_a_token() -> None:
    price = Price(input_per_1m=0.18, output_per_1m=0.42)
    assert cost_micro(price, input_tokens=1_000_000, output_tokens=0) == 180_000
    assert cost_micro(price, input_tokens=1, output_tokens=1) == 1
    assert cost_micro(price, input_tokens=0, output_tokens=0) == 0
