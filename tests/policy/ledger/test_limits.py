"""Limits as data: what is accepted, when periods begin, which scopes a call falls under."""

from __future__ import annotations

import datetime
from dataclasses import fields

import pytest

from airi.policy.ledger import Budget, Demand, LimitName, Limits, LimitTable, Scope
from airi.policy.ledger.limits import MAX_AMOUNT, MAX_LIMIT, MICRO


def us(text: str) -> int:
    return int(datetime.datetime.fromisoformat(text).timestamp()) * MICRO


def test_a_day_starts_at_midnight_utc_and_a_week_on_monday() -> None:
    day, week = Budget(amount_micro=1, period_s=86_400), Budget(amount_micro=1, period_s=7 * 86_400)
    noon = us("2026-11-25T12:00:00+00:00")  # a Wednesday
    assert day.period_end(day.period_index(noon)) == us("2026-11-26T00:00:00+00:00")
    assert week.period_end(week.period_index(noon)) == us("2026-11-30T00:00:00+00:00")


def test_a_period_ends_where_the_next_begins() -> None:
    budget = Budget(amount_micro=1, period_s=3600)
    end = budget.period_end(7)
    assert end is not None
    assert (budget.period_index(end - 1), budget.period_index(end)) == (7, 8)


def test_a_budget_without_periods_never_ends() -> None:
    budget = Budget(amount_micro=1)
    assert budget.period_index(us("2026-11-25T12:00:00+00:00")) == 0
    assert budget.period_end(0) is None


@pytest.mark.parametrize("value", [-1, 1.5, True, "600", MAX_LIMIT + 1])
def test_limits_are_whole_numbers_from_0(value: object) -> None:
    for field in fields(Limits)[:5]:
        with pytest.raises(ValueError, match=f"{field.name} is {value!r}; accepted: a whole number"):
            Limits(**{field.name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="amount_micro"):
        Budget(amount_micro=value)  # type: ignore[arg-type]


def test_a_period_is_at_least_a_second() -> None:
    with pytest.raises(ValueError, match="period_s is 0"):
        Budget(amount_micro=1, period_s=0)


@pytest.mark.parametrize("name", ["requests", "input_tokens", "output_tokens", "cost_micro"])
@pytest.mark.parametrize("value", [-1, MAX_AMOUNT + 1])
def test_a_demand_has_bounds(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        Demand(**{name: value})


def test_a_request_takes_one_place_or_none() -> None:
    with pytest.raises(ValueError, match="parallel is 2"):
        Demand(parallel=2)


def test_each_limit_has_its_value_by_name() -> None:
    limits = Limits(
        requests_per_minute=1,
        tokens_per_minute=2,
        input_tokens_per_minute=3,
        output_tokens_per_minute=4,
        max_parallel_requests=5,
        budget=Budget(amount_micro=6),
        device_seconds=Budget(amount_micro=7),
    )
    assert [limits.value(name) for name in LimitName] == [1, 2, 3, 4, 5, 6, 7]
    assert [Limits().value(name) for name in LimitName] == [None] * 7


def test_a_call_falls_under_every_scope_that_matches_the_widest_first() -> None:
    everything = Scope(tenant="a")
    of_model = Scope(tenant="a", model="m")
    of_class = Scope(tenant="a", priority_class="c")
    both = Scope(tenant="a", model="m", priority_class="c")
    table = LimitTable(dict.fromkeys((both, of_class, of_model, everything, Scope(tenant="b")), Limits()))
    assert table.scopes_for("a", "m", "c") == (everything, of_model, of_class, both)
    assert table.scopes_for("a", "m", None) == (everything, of_model)
    assert table.scopes_for("a", "other", "c") == (everything, of_class)
    assert table.scopes_for("a", None, None) == (everything,)
    assert table.scopes_for("nobody", "m", "c") == ()


def test_a_scope_says_whose_it_is() -> None:
    assert str(Scope(tenant="a", model="m", priority_class="c")) == "tenant 'a', model 'm', class 'c'"
