"""Replicas with host memory and a disk: what copies bring, what they take, and that nobody waits for ever."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from airi.errors import ConfigError
from airi.simulate import Batch, Report, Simulation, SimulationOptions, StepTime
from airi.simulate.step_time import Piece
from tests.sim.samples import FAST, batch, random_batch, run

# One block of 16 tokens, 1000 bytes each: 1 us at 16 GB/s.
COPIES: dict[str, Any] = {"kv_bytes_per_token": 1000, "host_kv_gb_per_s": 16.0, "disk_kv_gb_per_s": 16.0}
NEVER: dict[str, Any] = {"kv_bytes_per_token": 2**30, "host_kv_gb_per_s": 1e-9, "disk_kv_gb_per_s": 1e-9}


def in_turns(
    prompts: int, rounds: int, *, parts: int = 8, gap_us: int = 10_000, output_tokens: int = 3
) -> Batch:
    """Prompts of so many parts of 32 tokens and 5 of their own, one after the other, again and again."""
    count = prompts * rounds
    ids = [tuple(100 * (i % prompts) + part for part in range(parts)) for i in range(count)]
    arrivals = [i * gap_us for i in range(count)]
    return batch(arrivals, [32 * parts + 5] * count, [output_tokens] * count, parts=ids)


def rows_of(batches: Batch, **options: Any) -> np.ndarray[Any, Any]:
    settings: dict[str, Any] = {"step_time": FAST, "part_tokens": 32, "keep_rows": True, **options}
    simulation = Simulation(SimulationOptions(**settings))
    simulation.feed(batches)
    while simulation.drain():
        simulation._core.check_invariants()
    rows = simulation.take_rows()
    return rows[np.argsort(rows["request_id"])]


def figures(report: Report) -> dict[str, Any]:
    """All but what depends on the wall or only says which tiers there are."""
    hidden = ("wall_s", "tiers", "settings")
    return {k: v for k, v in report.figures.items() if k not in hidden} | {"timeline": report.timeline}


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_fast_copies_find_again_what_the_device_could_not_hold(steps_ahead: int) -> None:
    # 10 prompts of 17 blocks on 40 blocks: an LRU has forgotten each when it comes again.
    turns = in_turns(10, 20)
    without = run(turns, kv_blocks=40, steps_ahead=steps_ahead).figures
    found = run(turns, kv_blocks=40, host_kv_blocks=400, steps_ahead=steps_ahead, **COPIES).figures
    enough = run(turns, kv_blocks=1000, steps_ahead=steps_ahead).figures
    assert without["cached_tokens"] == 0
    assert enough["prefix_hit_rate"] > 0.9
    # Nothing is loaded before the scheduler has learnt what computing costs.
    assert 0.6 < found["prefix_hit_rate"] <= enough["prefix_hit_rate"]
    assert found["loaded_tokens"] == found["cached_tokens"]
    assert found["tiers"]["loads"] * 16 == found["loaded_tokens"]
    assert found["busy"] < without["busy"]
    assert found["ttft_ms"]["p50"] < without["ttft_ms"]["p50"]
    assert found["output_tokens"] == without["output_tokens"]


@pytest.mark.parametrize("steps_ahead", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_copies_that_never_end_change_nothing(seed: int, steps_ahead: int) -> None:
    whole = random_batch(seed, 300, gap_us=200)
    options: dict[str, Any] = {"kv_blocks": 24, "max_num_seqs": 6, "steps_ahead": steps_ahead}
    without = run(whole, **options)
    never = run(whole, host_kv_blocks=50, disk_kv_blocks=50, **options, **NEVER)
    assert without.figures["preemptions"] > 0
    assert figures(never) == figures(without)
    assert never.figures["tiers"]["stores"] == never.figures["tiers"]["loads"] == 0


@pytest.mark.parametrize("router", ["round_robin", "prefix", "locality"])
def test_the_same_input_gives_the_same_figures_with_tiers(router: str) -> None:
    options: dict[str, Any] = {"replicas": 3, "kv_blocks": 20, "host_kv_blocks": 30, "disk_kv_blocks": 60}
    found = [
        json.dumps(
            figures(run(random_batch(7, 500, gap_us=150), router=router, threads=n, **options, **COPIES)),
            default=str,
        )
        for n in (1, 1, 3)
    ]
    assert found[0] == found[1] == found[2]


def test_the_disk_has_what_leaves_host_memory() -> None:
    turns = in_turns(10, 30)
    tiers: dict[str, Any] = {"kv_blocks": 40, "host_kv_blocks": 60, **COPIES}
    host_only = run(turns, **tiers).figures
    found = run(turns, disk_kv_blocks=400, **tiers).figures
    assert host_only["tiers"]["spills"] == host_only["tiers"]["fetches"] == 0
    assert found["tiers"]["spills"] > 0
    assert found["tiers"]["fetches"] > 0
    assert found["prefix_hit_rate"] > host_only["prefix_hit_rate"] + 0.3
    assert 0 < found["tiers"]["disk_kv_blocks_used"] <= found["tiers"]["disk_kv_blocks"] == 400
    assert 0 < found["tiers"]["host_kv_blocks_used"] <= found["tiers"]["host_kv_blocks"] == 60


def test_a_lone_request_waits_for_its_copies_and_for_nothing_else() -> None:
    rows = rows_of(in_turns(10, 20), kv_blocks=40, host_kv_blocks=400, **COPIES)
    loaded = rows[rows["cached_tokens"] > 0]
    assert len(loaded) > 100
    blocks = loaded["cached_tokens"] // 16
    computed = loaded["prompt_tokens"] - loaded["cached_tokens"]
    # Copies of 1 us each, then one step of 100 us and 1 us a token.
    assert (loaded["first_token_us"] - loaded["arrival_us"] == blocks + 100 + computed).all()


def test_the_prefix_router_knows_what_tiers_hold() -> None:
    # 11 prompts of 17 blocks on two replicas of 40: what a device holds is forgotten, what its host holds is not.
    turns = in_turns(11, 10)
    found = rows_of(turns, kv_blocks=40, host_kv_blocks=400, replicas=2, router="prefix", **COPIES)
    seen = found["replica"].reshape(10, 11)
    assert (seen == seen[0]).all()
    assert set(seen[0].tolist()) == {0, 1}


def test_copies_of_one_kind_run_one_after_the_other() -> None:
    # Two prompts at once: the second one's blocks come after those of the first.
    turns = in_turns(10, 30)
    turns.arrival_us[1::2] = turns.arrival_us[::2]
    slow: dict[str, Any] = {**COPIES, "host_kv_gb_per_s": 4.0}
    rows = rows_of(turns, kv_blocks=40, host_kv_blocks=400, **slow)[200:]
    assert (rows["cached_tokens"] == 256).all()
    first, second = (rows[i::2]["first_token_us"] - rows[i::2]["arrival_us"] for i in (0, 1))
    assert (np.maximum(first, second) >= 2 * 16 * 4).all()


def test_a_load_that_takes_too_long_is_given_up() -> None:
    # Loading 16 blocks takes 640 us, computing them ten times as long; nobody waits longer than 300 us.
    slow = StepTime(memory=Piece(step_us=100.0), arithmetic=Piece(step_us=100.0, token_us=25.0))
    tiers: dict[str, Any] = {
        **COPIES,
        "host_kv_gb_per_s": 0.4,
        "kv_blocks": 40,
        "host_kv_blocks": 400,
        "step_time": slow,
    }
    turns = in_turns(10, 20)
    patient = rows_of(turns, **tiers)
    hasty = rows_of(turns, runtime={"load_timeout_us": 300}, **tiers)
    assert patient["cached_tokens"][-50:].min() == 256
    assert len(hasty) == 200
    assert hasty["cached_tokens"].max() < 256
    waited = hasty["first_token_us"] - hasty["arrival_us"]
    computing = 100 + 25 * (256 + 5)
    assert waited.min() >= computing
    assert waited.max() <= computing + 100 + 640


@pytest.mark.parametrize("seed", range(6))
def test_every_request_ends_with_tiers_of_any_size_and_speed(seed: int) -> None:
    draw = np.random.default_rng(seed)
    options = SimulationOptions(
        step_time=FAST,
        kv_blocks=int(draw.integers(14, 40)),
        host_kv_blocks=int(draw.integers(1, 60)),
        disk_kv_blocks=int(draw.integers(0, 60)),
        replicas=2,
        part_tokens=32,
        max_num_seqs=6,
        steps_ahead=seed % 2,
        kv_bytes_per_token=1000,
        host_kv_gb_per_s=float(10 ** draw.uniform(-2, 2)),
        disk_kv_gb_per_s=float(10 ** draw.uniform(-2, 2)),
    )
    simulation = Simulation(options)
    whole = random_batch(seed, 600, gap_us=400)
    for i in range(0, 600, 20):
        simulation.feed(whole.take(np.arange(i, i + 20)))
        simulation._core.check_invariants()
    while simulation.drain():
        simulation._core.check_invariants()
    results = simulation.results()
    assert results["counts"]["finished"] == 600
    assert (results["fleet"]["running"], results["fleet"]["waiting"]) == (0, 0)
    assert results["counts"]["generated_tokens"] == whole.output_tokens.sum()


def test_preempted_requests_come_back_from_host_memory() -> None:
    long = batch([i * 50 for i in range(60)], [100] * 60, [120] * 60)
    slow = StepTime(memory=Piece(step_us=100.0), arithmetic=Piece(step_us=100.0, token_us=25.0))
    found = run(long, kv_blocks=60, host_kv_blocks=400, step_time=slow, **COPIES).figures
    assert found["preemptions"] >= found["tiers"]["swaps"] > 0
    assert found["requests"]["finished"] == 60


def test_a_preset_knows_what_its_tokens_take() -> None:
    # Llama 3 8B in 16 bits: 128 KiB a token, 2 MiB a block, 42 us at 50 GB/s.
    config = SimulationOptions(host_kv_blocks=1)
    assert config._tiers()["host_bytes_per_us"] == pytest.approx(4096 / (2**21 / 50e3))
    assert config._tiers()["disk_bytes_per_us"] == pytest.approx(4096 / (2**21 / 6e3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host_kv_blocks": -1}, "host_kv_blocks is -1; it must be a whole number from 0 to"),
        ({"disk_kv_blocks": 5}, "host_kv_blocks is 0; the disk is reached through host memory"),
        ({"host_kv_gb_per_s": 0.0}, r"host_kv_gb_per_s is 0.0; it must be a number in \(0, 1e6\]"),
        ({"disk_kv_gb_per_s": float("nan")}, "disk_kv_gb_per_s is nan; it must be a number"),
        ({"kv_bytes_per_token": 0}, "kv_bytes_per_token is 0; it must be a whole number from 1"),
        ({"host_kv_blocks": 5, "prefix_caching": False}, "host_kv_blocks is 5; it must be 0 without prefix"),
        (
            {"host_kv_blocks": 5, "model": {"enable_prefix_caching": False}},
            "host_kv_blocks is 5; it must be 0 without prefix",
        ),
        ({"host_kv_blocks": 2**31 - 1}, "with those of device and disk it makes"),
        ({"host_kv_blocks": 5, "step_time": FAST}, "kv_bytes_per_token must be given with host_kv_blocks"),
    ],
)
def test_tiers_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SimulationOptions(**options)


@pytest.mark.parametrize(
    ("field", "settings", "said"),
    [
        ("model", {"min_slabs": 1}, "takes no setting min_slabs: a replica has one model"),
        ("model", {"share": 0.5}, "takes no setting share: a replica has one model"),
        ("model", {"device_weight": 2.0}, "takes no setting device_weight: a replica has one model"),
        ("model", {"block_size": 32}, "takes no setting block_size: give block_size itself"),
        ("runtime", {"host_bytes": 4096}, "takes no setting host_bytes: give host_kv_blocks"),
        ("runtime", {"arena_bytes": 4096}, "takes no setting arena_bytes: give kv_blocks"),
        ("runtime", {"num_bands": 1}, "takes no setting num_bands: it has one for each priority"),
        ("runtime", {"aging_us": None, "bypass_tokens": "x"}, "bypass_tokens is 'x'; RuntimeConfig takes no"),
    ],
)
def test_settings_that_a_replica_cannot_use_are_refused(
    field: str, settings: dict[str, Any], said: str
) -> None:
    options: dict[str, Any] = {field: settings}
    with pytest.raises(ConfigError, match=said) as refused:
        Simulation(SimulationOptions(**options))
    assert "\n" not in str(refused.value)
