"""Routers: who gets a request."""

from __future__ import annotations

import numpy as np
import pytest

from airi._core.sim import Router
from airi.errors import ConfigError
from airi.simulate.batches import joined
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
    with pytest.raises(
        ValueError, match="router must be round_robin, least_loaded, prefix or locality, got 'x'"
    ):
        Router("x", replicas=1)


def test_routing_by_prefixes_finds_more_than_blind_routing() -> None:
    whole = random_batch(21, 600, gap_us=5000)
    rates = {
        router: run(whole, router=router, replicas=4, kv_blocks=24).figures["prefix_hit_rate"]
        for router in ("round_robin", "prefix", "locality")
    }
    assert rates["prefix"] > 1.2 * rates["round_robin"]
    assert rates["locality"] > 1.2 * rates["round_robin"]


@pytest.mark.parametrize("blind", ["round_robin", "least_loaded"])
def test_locality_counts_what_waits_in_time_and_not_in_requests(blind: str) -> None:
    draw = np.random.default_rng(5)
    lengths = np.where(draw.random(400) < 0.25, 2000, 100).tolist()
    arrival = np.cumsum(draw.exponential(220, 400)).astype(np.int64).tolist()
    whole = batch(arrival, lengths, [2] * 400)
    found = {
        router: run(whole, router=router, replicas=4, kv_blocks=1000).figures["ttft_ms"]["mean"]
        for router in ("locality", blind)
    }
    assert found["locality"] < 0.9 * found[blind]


def test_locality_expects_no_hits_without_prefix_caching() -> None:
    whole = batch([i * 5000 for i in range(100)], [330] * 100, [2] * 100, parts=[(1,) * 10] * 100)
    found = run(whole, router="locality", replicas=4, kv_blocks=200, prefix_caching=False)
    assert found.figures["replica_requests"] == [25, 25, 25, 25]


def test_locality_is_told_of_requests_that_are_refused() -> None:
    whole = batch([0] * 400, [330] * 400, [2] * 400, parts=[(1,) * 10] * 400)
    found = run(whole, router="locality", replicas=4, kv_blocks=200, max_queued=10).figures
    assert found["requests"]["refused"] > 300
    later = joined([whole, batch([10**6 + i * 5000 for i in range(40)], [330] * 40, [2] * 40)])
    again = run(later, router="locality", replicas=4, kv_blocks=200, max_queued=10).figures
    assert again["requests"]["refused"] == found["requests"]["refused"]
    before, after = found["replica_requests"], again["replica_requests"]
    assert [b - a for a, b in zip(before, after, strict=True)] == [10] * 4


def test_locality_holds_under_a_limit_on_concurrency() -> None:
    found = run(random_batch(2, 300), router="locality", replicas=3, concurrency=7).figures
    assert found["requests"]["finished"] == 300


def test_locality_has_as_many_replicas_as_the_products_router() -> None:
    with pytest.raises(ConfigError, match="a router has 64 replicas at most"):
        run(batch([0], [8], [1]), router="locality", replicas=65)
    with pytest.raises(ValueError, match="router 'locality' needs replicas that it hears"):
        Router("locality", replicas=2)


def test_round_robin_spreads_evenly() -> None:
    found = run(batch(list(range(100)), [8] * 100, [2] * 100), router="round_robin", replicas=4)
    assert found.figures["replica_requests"] == [25, 25, 25, 25]
