"""Whose cached prefixes an engine shares with whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from airi.engine import Engine, EngineOptions, ModelOptions
from airi.engine.isolation import CacheRegions
from airi.errors import ConfigError, RequestError
from airi.sampling_params import SamplingParams
from tests.engine.engine_helpers import make_engine, run

PROMPT = list(range(40, 104))  # four blocks of 16
ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)
Given = tuple[int, bytes | None, int]
"""tenant, salt, where it begins"""


def hits(engine: Engine, *requests: Given, prompt: list[int] = PROMPT) -> list[int]:
    """How much of the prompt each of some requests in a row finds in the cache."""
    found = []
    for number, (tenant, salt, begins) in enumerate(requests):
        engine.add_request(
            number, 0, prompt, ONE_TOKEN, tenant=tenant, cache_salt=salt, cache_salt_from=begins
        )
        found.append(run(engine)[number].num_cached_tokens)
    return found


def test_a_salt_from_a_token_on_shares_the_blocks_before_it(tiny_llama: Path) -> None:
    given: list[Given] = [(0, b"a", 32), (0, b"b", 32), (0, b"b", 33), (0, None, 0), (0, b"a", 32)]
    assert hits(make_engine(tiny_llama), *given) == [0, 32, 32, 32, 48]


def test_isolated_tenants_share_public_prefixes_and_nothing_else(tiny_llama: Path) -> None:
    public = (tuple(PROMPT[:20]), (1, 2, 3))
    model = ModelOptions(path=str(tiny_llama), public_prefixes=public)
    engine = make_engine(tiny_llama, models=(model,), isolate_tenants=True)
    assert hits(engine, (1, None, 0), (2, None, 0), (2, None, 0), (2, b"x", 0)) == [0, 16, 48, 0]


def test_tenants_share_prefixes_unless_isolated(tiny_llama: Path) -> None:
    assert hits(make_engine(tiny_llama), (1, None, 0), (2, None, 0)) == [0, 48]
    assert (
        hits(make_engine(tiny_llama, isolate_tenants=True), (1, None, 0), (2, None, 0), (-1, None, 0))
        == [0] * 3
    )


def test_a_prompt_is_public_as_far_as_some_public_prefix_goes() -> None:
    regions = CacheRegions([(1, 2, 3, 4), (1, 2, 9)], strict=True)
    starts = [
        regions.salts(np.array(prompt, np.int32), 7, None, 0)[0][0]
        for prompt in ([1, 2, 9, 9], [1, 2, 3], [1, 2, 3, 4, 5], [5])
    ]
    assert starts == [3, 3, 4, 0]
    assert CacheRegions([(1,)], strict=False).salts(np.array([1], np.int32), 7, None, 0) == []


@pytest.mark.parametrize("begins", [-1, 65])
def test_a_salt_begins_inside_the_prompt(tiny_llama: Path, begins: int) -> None:
    engine = make_engine(tiny_llama)
    with pytest.raises(
        RequestError, match=f"cache_salt_from is {begins}; it must be a place in the prompt, 0 to 64"
    ):
        hits(engine, (0, b"a", begins))


@pytest.mark.parametrize("prefix", [(), (1, -1), ("a",)])
def test_public_prefixes_are_token_ids(prefix: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="public_prefixes holds something else than token ids"):
        ModelOptions(path="x", public_prefixes=(prefix,))


@pytest.mark.parametrize("gap", [0, 2**40 + 1])
def test_a_fairness_gap_has_bounds(gap: int) -> None:
    with pytest.raises(
        ConfigError, match=f"fairness_gap_tokens is {gap}; it must be a whole number from 1 to "
    ):
        EngineOptions(models=(ModelOptions(path="x"),), fairness_gap_tokens=gap)


@pytest.mark.parametrize(("quota", "kept"), [(None, 0), (0.5, 48)])
def test_a_tenant_keeps_its_cache_within_its_quota(tiny_llama: Path, quota: float | None, kept: int) -> None:
    engine = make_engine(tiny_llama, kv_memory=1 << 20)
    blocks = engine.models[0].num_kv_blocks
    engine.set_tenant(1, 1.0, kv_quota=quota)
    assert hits(engine, (1, None, 0)) == [0]
    for turn in range(1 + blocks // 4):
        hits(engine, (2, None, 0), prompt=[1 + turn % 50, 1 + turn // 50, *PROMPT[2:]])
    assert engine.stats()[0].evictions > 0
    assert hits(engine, (1, None, 0)) == [kept]


@pytest.mark.parametrize("quota", [-0.1, 1.1, float("nan")])
def test_a_quota_is_a_share(tiny_llama: Path, quota: float) -> None:
    with pytest.raises(ConfigError, match=f"kv_quota of tenant 3 is {quota:g}; it must be in"):
        make_engine(tiny_llama).set_tenant(3, 1.0, kv_quota=quota)


def test_quotas_of_all_tenants_together_are_at_most_all(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    engine.set_tenant(1, 1.0, kv_quota=0.7)
    with pytest.raises(
        ConfigError,
        match=r"kv_quota of tenant 2 is 0.5; all together must be at most 1, and other tenants have 0.7$",
    ):
        engine.set_tenant(2, 1.0, kv_quota=0.5)
    engine.set_tenant(1, 1.0, kv_quota=0.5)
    engine.set_tenant(2, 1.0, kv_quota=0.5)
    tenths = make_engine(tiny_llama)
    for tenant in range(10):
        tenths.set_tenant(tenant, 1.0, kv_quota=0.1)


def test_a_tenant_whose_weight_is_refused_gets_no_quota(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    with pytest.raises(ConfigError, match="weight of tenant 1: "):
        engine.set_tenant(1, 5000.0, kv_quota=1.0)
    assert hits(engine, (2, None, 0)) == [0]


def test_more_tenants_with_quotas_than_there_may_be_are_refused(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    for tenant in range(64):
        engine.set_tenant(tenant, 1.0, kv_quota=0.001)
    with pytest.raises(ConfigError, match="kv_quota of tenant 64: at most 64 tenants"):
        engine.set_tenant(64, 1.0, kv_quota=0.001)


def test_a_tenant_beyond_the_gap_makes_way(tiny_llama: Path) -> None:
    """Without the gap, the second tenant waits for a slot until the first has ended."""
    order = {}
    for gap in (None, 16):
        engine = make_engine(tiny_llama, max_num_seqs=1, fairness_gap_tokens=gap)
        long = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
        engine.add_request(1, 0, PROMPT, long, tenant=1)
        for _ in range(5):
            engine.step()
        engine.add_request(2, 0, PROMPT[:16], ONE_TOKEN, tenant=2)
        ended: list[int] = []
        while engine.has_work():
            ended += [output.request_id for output in engine.step() if output.finish_reason]
        order[gap] = ended
    assert order == {None: [1, 2], 16: [2, 1]}
