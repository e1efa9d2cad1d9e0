"""How the bench of limits judges a log of what was granted."""

from __future__ import annotations

from benches.bench_limits import BUDGET, SECOND, Grant, most_in_a_minute, most_in_a_period


def grant(at: int, **used: int) -> Grant:
    return {"tenant": "t", "at": at, **used}


def test_sixty_seconds_hold_both_their_ends() -> None:
    start = 1_790_000_000_500_000
    grants = [
        grant(start + after, tokens=tokens)
        for after, tokens in ((60 * SECOND, 4), (0, 3), (60 * SECOND + 1, 5))
    ]
    assert most_in_a_minute(grants, "tokens") == 9
    assert most_in_a_minute(grants[:2], "tokens") == 7


def test_money_is_judged_by_periods() -> None:
    end = BUDGET.period_end(BUDGET.period_index(1_790_000_000 * SECOND))
    assert end is not None
    grants = [grant(end - 1, money=3), grant(end, money=4), grant(end + 5, money=2), grant(end - 9, money=2)]
    assert most_in_a_period(grants) == 6
