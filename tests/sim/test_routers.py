"""Routers: who gets a request."""

from __future__ import annotations

import numpy as np
import pytest

from airi._core.sim import Router
from tests.sim.samples import batch, random_batch, run


def test_round_robin_takes_turns() -> None:
    router = Router("round_robin", replicas=3)
    assert [router.pick([], [9, 0, 0]) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_least_loaded_takes_the_least_and_of_equals_the_longest_unchosen() -> None:
    router = Router("least_loaded", replicas=4)
    assert router.pick([], [3, 1, 2, 1]) == 1
    assert router.pick([], [1, 1, 2, 1]) == 0
    assert router.pick([], [1, 1, 2, 1]) == 3
    assert router.pick([], [1, 1, 1, 1]) == 2


def test_prefix_sends_a_prompt_where_its_beginning_went() -> None:
    router = Router("prefix", replicas=3, kv_tokens=10**6)
    first = router.pick([1, 2, 3], [0, 0, 0])
    other = router.pick([9], [0, 0, 0])
    assert other != first
    assert router.pick([1, 2, 4], [1, 1, 1]) == first
    assert router.pick([9, 5], [1, 1, 1]) == other
    # Parts count from the beginning only.
    assert router.pick([2, 3], [4, 4, 0]) not in (first, other)


def test_prefix_prefers_the_longer_match() -> None:
    router = Router("prefix", replicas=2, kv_tokens=10**6)
    first = router.pick([1], [0, 0])
    other = 1 - first
    busy = [0, 0]
    busy[first] = 1000
    assert router.pick([1, 2], busy) == other  # the guard sends it there
    assert router.pick([1, 2, 3], [0, 0]) == other


@pytest.mark.parametrize("guard", [1.0, 1.5, 4.0])
def test_prefix_never_overloads_a_replica(guard: float) -> None:
    router = Router("prefix", replicas=5, kv_tokens=10**6, load_guard=guard)
    draw = np.random.default_rng(3)
    load = [0] * 5
    for _ in range(2000):
        limit = guard * sum(load) / 5 + 4
        chosen = router.pick([0, int(draw.integers(0, 2))], load)
        assert load[chosen] <= limit
        load[chosen] += 1
        for i in range(5):
            load[i] -= int(load[i] > 0 and draw.random() < 0.15)


def test_prefix_forgets_what_no_longer_fits() -> None:
    router = Router("prefix", replicas=2, part_tokens=512, kv_tokens=3 * 512)
    first = router.pick([1], [0, 0])
    load = [100, 100]
    load[first] = 99
    for i in range(10, 14):
        assert router.pick([i], load) == first
    load[first] = 101
    assert router.pick([1], load) == 1 - first


def test_an_unknown_router_is_refused() -> None:
    with pytest.raises(ValueError, match="router must be round_robin, least_loaded or prefix, got 'x'"):
        Router("x", replicas=1)


def test_prefix_routing_finds_more_than_blind_routing() -> None:
    whole = random_batch(21, 600, gap_us=5000)
    rates = {
        router: run(whole, router=router, replicas=4, kv_blocks=24).figures["prefix_hit_rate"]
        for router in ("round_robin", "prefix")
    }
    assert rates["prefix"] > 1.2 * rates["round_robin"]


def test_round_robin_spreads_evenly() -> None:
    found = run(batch(list(range(100)), [8] * 100, [2] * 100), router="round_robin", replicas=4)
    assert found.figures["replica_requests"] == [25, 25, 25, 25]
