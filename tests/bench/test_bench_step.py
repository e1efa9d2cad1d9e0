"""The workload of bench_step holds what it says: full slots, all policies, memory that is counted."""

from __future__ import annotations

import pytest

from benches.bench_step import Churn, judged, memory_row, row_of


def test_slots_stay_full_while_requests_come_and_go() -> None:
    times = Churn(tenants=16, waiting=64, steps=64).times
    assert len(times.cpu) == len(times.wall) == 64
    # Requests end after 64 tokens on average: some four in each step.
    assert 2 * 64 < len(times.submit) < 6 * 64
    assert min(times.cpu) > 0


def test_requests_that_begin_alike_hit_what_one_of_them_computed() -> None:
    """And the slots fill, though no step has been left out to warm up."""
    churn = Churn(tenants=4, waiting=512, steps=64, one_prefix=True)
    stats = churn._runtime.stats()[0]
    assert stats.hit_tokens > 0.4 * stats.query_tokens
    assert len(churn.times.cpu) == 64


def test_a_row_is_judged_by_every_target() -> None:
    fast = {"cpu_us_p50": 60.0, "cpu_us_p99": 150.0, "submit_us_p50": 15.0}
    assert judged(row_of("x", [fast]))["reached"]
    for name in fast:
        assert not judged(row_of("x", [fast | {name: fast[name] * 1.1}]))["reached"]


@pytest.mark.parametrize(("sizes", "reached"), [((5, 105, 155), True), ((0, 0, 2 << 20), False)])
def test_what_tenants_leave_behind_is_counted(
    sizes: tuple[int, ...], *, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = iter(sizes)
    monkeypatch.setattr("benches.bench_step.resident_bytes", lambda: next(left))
    row = memory_row(600)
    assert (row["first_bytes"], row["second_bytes"]) == (sizes[1] - sizes[0], sizes[2] - sizes[1])
    assert row["reached"] is reached
