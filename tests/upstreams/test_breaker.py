"""The circuit breaker against a model of it, and what it must never do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airi.upstreams.breaker import CircuitBreaker, CircuitState

OPEN_S = 10.0


class Clock:
    """Time that stands still until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock, failures: int = 3) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=failures, open_s=OPEN_S, clock=clock)
    for _ in range(failures):
        assert breaker.allow()
        breaker.failed()
    return breaker


def test_failures_in_a_row_open_it_and_time_lets_one_call_through() -> None:
    clock = Clock()
    breaker = broken(clock)
    assert (breaker.state, breaker.times_opened) == (CircuitState.OPEN, 1)
    assert not breaker.allow()
    clock.now += OPEN_S
    assert str(breaker.state) == "half_open"
    assert [breaker.allow(), breaker.allow()] == [True, False]
    breaker.succeeded()
    assert [breaker.allow(), breaker.allow()] == [True, True]


def test_a_failing_probe_opens_it_again() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S
    assert breaker.allow()
    breaker.failed()
    assert (breaker.state, breaker.times_opened) == (CircuitState.OPEN, 2)
    assert breaker.remaining_s == OPEN_S


def test_a_probe_that_tells_nothing_makes_room_for_the_next() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S
    assert breaker.allow()
    breaker.abandoned()
    assert breaker.allow()


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = CircuitBreaker(failures=2, open_s=OPEN_S, clock=Clock())
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert breaker.state is CircuitState.CLOSED


def test_what_began_before_it_opened_keeps_it_open_no_longer() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S / 2
    breaker.failed()
    assert breaker.remaining_s == OPEN_S / 2


@given(st.lists(st.sampled_from(["fail", "pass", "leave", "wait"]), max_size=60), st.integers(1, 4))
def test_it_always_lets_a_call_through_in_the_end(steps: list[str], failures: int) -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=failures, open_s=OPEN_S, clock=clock)
    row = 0
    for step in steps:
        if step == "wait":
            clock.now += OPEN_S
            continue
        before = breaker.state
        allowed = breaker.allow()
        assert allowed == (before is not CircuitState.OPEN)
        if not allowed:
            continue
        {"fail": breaker.failed, "pass": breaker.succeeded, "leave": breaker.abandoned}[step]()
        row = row + 1 if step == "fail" else 0 if step == "pass" else row
        if before is CircuitState.CLOSED:
            assert (breaker.state is CircuitState.CLOSED) == (row < failures)
        if step == "pass":
            assert breaker.state is CircuitState.CLOSED
    clock.now += OPEN_S
    assert breaker.allow()
