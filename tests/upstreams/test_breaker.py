"""The circuit breaker against a model of it, and what it must never do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airi.upstreams.breaker import CircuitBreaker, CircuitState, Permit

OPEN_S = 10.0


class Clock:
    """Time that stands still until it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken(clock: Clock, failures: int = 3) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=failures, open_s=OPEN_S, clock=clock)
    for _ in range(failures):
        breaker.failed(allowed(breaker))
    return breaker


def allowed(breaker: CircuitBreaker) -> Permit:
    permit = breaker.allow()
    assert permit is not None
    return permit


def test_failures_in_a_row_open_it_and_time_lets_one_call_through() -> None:
    clock = Clock()
    breaker = broken(clock)
    assert (breaker.state, breaker.times_opened) == (CircuitState.OPEN, 1)
    assert breaker.allow() is None
    clock.now += OPEN_S
    assert str(breaker.state) == "half_open"
    assert [breaker.allow() is None, breaker.allow() is None] == [False, True]
    breaker.succeeded()
    assert [breaker.allow() is None, breaker.allow() is None] == [False, False]


def test_a_failing_probe_opens_it_again() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S
    breaker.failed(allowed(breaker))
    assert (breaker.state, breaker.times_opened) == (CircuitState.OPEN, 2)
    assert breaker.remaining_s == OPEN_S


def test_a_probe_that_tells_nothing_makes_room_for_the_next() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S
    breaker.abandoned(allowed(breaker))
    assert breaker.allow() is not None


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = CircuitBreaker(failures=2, open_s=OPEN_S, clock=Clock())
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert breaker.state is CircuitState.CLOSED


def test_what_began_before_it_opened_keeps_it_open_no_longer() -> None:
    clock = Clock()
    breaker = CircuitBreaker(failures=1, open_s=OPEN_S, clock=clock)
    before = allowed(breaker), allowed(breaker)
    breaker.failed(allowed(breaker))
    clock.now += OPEN_S / 2
    breaker.failed(before[0])
    assert breaker.remaining_s == OPEN_S / 2
    clock.now += OPEN_S / 2
    allowed(breaker)
    breaker.failed(before[0])
    breaker.abandoned(before[1])
    assert breaker.state is CircuitState.HALF_OPEN
    assert breaker.allow() is None  # the probe is still under way


def test_an_answer_that_has_begun_makes_room_and_the_next_failure_opens_it_again() -> None:
    clock = Clock()
    breaker = broken(clock)
    clock.now += OPEN_S
    probe = allowed(breaker)
    breaker.began()
    other = allowed(breaker)
    breaker.failed(probe)
    assert (breaker.state, breaker.times_opened) == (CircuitState.OPEN, 2)
    breaker.failed(other)
    assert breaker.times_opened == 2


def test_beginning_well_ends_no_row_of_failures() -> None:
    breaker = CircuitBreaker(failures=3, open_s=OPEN_S, clock=Clock())
    for _ in range(3):
        permit = allowed(breaker)
        breaker.began()
        breaker.failed(permit)
    assert breaker.state is CircuitState.OPEN


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
        permit = breaker.allow()
        assert (permit is None) == (before is CircuitState.OPEN)
        if permit is None:
            continue
        if step == "pass":
            breaker.succeeded()
        else:
            (breaker.failed if step == "fail" else breaker.abandoned)(permit)
        row = row + 1 if step == "fail" else 0 if step == "pass" else row
        if before is CircuitState.CLOSED:
            assert (breaker.state is CircuitState.CLOSED) == (row < failures)
        if step == "pass":
            assert breaker.state is CircuitState.CLOSED
    clock.now += OPEN_S
    assert breaker.allow() is not None
