"""Simulations: nothing is lost, nothing depends on the run, and the cache is the one of the core."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from airi import _core
from airi.errors import ConfigError
from airi.simulate import Batch, Simulation, SimulationOptions, simulate
from tests.sim.samples import FAST, batch, random_batch, run


def figures(report: Any) -> dict[str, Any]:
    """Everything but the time that the simulation took."""
    return {**report.figures, "wall_s": None, "timeline": report.timeline}


@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "prefix", "locality"])
@pytest.mark.parametrize("seed", range(4))
def test_every_request_ends_or_is_refused(seed: int, router: str) -> None:
    found = run(
        random_batch(seed, 300, gap_us=150),
        router=router,
        replicas=3,
        kv_blocks=14,
        max_queued=4,
        max_num_seqs=4,
    ).figures["requests"]
    assert found["read"] == 300
    assert found["accepted"] == found["finished"]
    assert found["failed"] == 0
    assert found["refused_by_reason"]["queue_full"] > 0
    assert found["accepted"] + found["refused"] == 300


def test_tokens_are_conserved() -> None:
    whole = random_batch(5, 200)
    found = run(whole, replicas=2).figures
    assert found["output_tokens"] == whole.output_tokens.sum()
    assert found["prompt_tokens"] == whole.input_tokens.sum()
    assert sum(t["output_tokens"] for t in found["tenants"]) == found["output_tokens"]
    assert sum(t["prompt_tokens"] for t in found["tenants"]) == found["prompt_tokens"]
    assert sum(found["replica_requests"]) == 200
    computed = found["prompt_tokens"] - found["cached_tokens"]
    assert sum(t["service"] for t in found["tenants"]) == computed + 2 * found["output_tokens"]


@pytest.mark.parametrize("steps_ahead", [0, 1])
@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "prefix", "locality"])
def test_the_same_input_gives_the_same_figures(router: str, steps_ahead: int) -> None:
    options: dict[str, Any] = {
        "router": router,
        "replicas": 4,
        "kv_blocks": 24,
        "steps_ahead": steps_ahead,
        "ttft_ms": 5.0,
        "itl_ms": 0.4,
    }
    first, second = (figures(run(random_batch(9, 400, gap_us=300), **options)) for _ in range(2))
    assert json.dumps(first, default=str) == json.dumps(second, default=str)


def test_figures_do_not_depend_on_how_requests_are_batched() -> None:
    whole = random_batch(3, 200, gap_us=700)
    pieces = [whole.take(np.arange(i, min(i + 7, 200))) for i in range(0, 200, 7)]
    assert figures(run(whole, replicas=2)) == figures(run(pieces, replicas=2))


@pytest.mark.parametrize("gap_us", [200, 20_000_000])
@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "prefix", "locality"])
def test_figures_do_not_depend_on_the_number_of_threads(router: str, gap_us: int) -> None:
    whole = random_batch(6, 500, gap_us=gap_us)
    pieces = [whole.take(np.arange(i, min(i + 90, 500))) for i in range(0, 500, 90)]
    found = []
    for threads in (1, 2, 5):
        options = SimulationOptions(
            step_time=FAST,
            kv_blocks=40,
            replicas=5,
            router=router,
            part_tokens=32,
            keep_rows=True,
            threads=threads,
        )
        rows: list[Any] = []
        report = simulate(pieces, options, on_rows=lambda taken, to=rows: to.extend(taken.tolist()))  # type: ignore[misc]
        found.append((figures(report), rows))
    assert found[0] == found[1] == found[2]
    assert len(found[0][1]) == 500


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "prefix", "locality"])
@pytest.mark.parametrize("place", [0, 29])
def test_a_request_that_the_core_refuses_to_read_is_named_by_any_thread(
    router: str, threads: int, place: int
) -> None:
    whole = random_batch(8, 30, gap_us=100)
    whole.band[place] = 99
    simulation = Simulation(SimulationOptions(step_time=FAST, replicas=3, router=router, threads=threads))
    with pytest.raises(ValueError, match="99"):
        simulation.feed(whole)


def test_invariants_hold_and_all_memory_comes_back() -> None:
    simulation = Simulation(
        SimulationOptions(step_time=FAST, kv_blocks=20, replicas=2, part_tokens=32, max_num_seqs=8)
    )
    whole = random_batch(11, 120, gap_us=400)
    for i in range(0, 120, 5):
        simulation.feed(whole.take(np.arange(i, i + 5)))
        simulation._core.check_invariants()
    while simulation.drain():
        simulation._core.check_invariants()
    fleet = simulation.results()["fleet"]
    assert (fleet["running"], fleet["waiting"]) == (0, 0)


def test_a_lone_request_takes_the_time_that_its_steps_take() -> None:
    # 100 us and 1 us a token: 300 tokens in chunks of 128, then 4 decodes.
    found = run(batch([0], [300], [5]), max_batch_tokens=128, steps_ahead=0).figures
    prefill = 228 + 228 + 144
    assert found["ttft_ms"]["p50"] == prefill / 1000
    assert found["itl_ms"]["p50"] == 0.101
    assert found["e2e_ms"]["p50"] == (prefill + 4 * 101) / 1000
    assert found["steps"] == 7
    assert found["simulated_s"] == (prefill + 404) / 1e6


def test_a_request_that_arrives_as_a_step_ends_is_in_the_next_one() -> None:
    # The first step ends after 116 us, when the second request arrives; one step computes it and a decode.
    options = SimulationOptions(step_time=FAST, kv_blocks=64, keep_rows=True, steps_ahead=0)
    rows: list[Any] = []
    simulate([batch([0, 116], [16, 16], [2, 1])], options, on_rows=lambda found: rows.extend(found.tolist()))
    ends = {row[0]: row[4] for row in rows}
    assert ends == {0: 116 + 117, 1: 116 + 117}


def test_rows_are_exact_and_agree_with_the_histograms() -> None:
    options = SimulationOptions(step_time=FAST, kv_blocks=40, replicas=2, part_tokens=32, keep_rows=True)
    rows: list[Any] = []
    whole = random_batch(4, 150, gap_us=900)
    report = simulate([whole], options, on_rows=rows.append)
    table = np.concatenate(rows)
    table = table[np.argsort(table["request_id"])]
    assert table["request_id"].tolist() == list(range(150))
    assert table["arrival_us"].tolist() == whole.arrival_us.tolist()
    assert table["generated_tokens"].tolist() == whole.output_tokens.tolist()
    ttft = np.sort(table["first_token_us"] - table["arrival_us"])
    for name, q in (("p50", 0.5), ("p99", 0.99)):
        exact = ttft[int(np.ceil(q * len(ttft))) - 1] / 1000
        assert report.figures["ttft_ms"][name] == pytest.approx(exact, rel=0.01)
    assert report.figures["e2e_ms"]["mean"] == pytest.approx(
        (table["end_us"] - table["arrival_us"]).mean() / 1000, rel=1e-5
    )
    assert table["cached_tokens"].sum() == report.figures["cached_tokens"]


def naive_hit_tokens(requests: Batch, block_size: int, part_tokens: int, capacity: int) -> int:
    """One request at a time over an LRU of full blocks: of one prompt the deeper block goes first, a hit leaves
    a token to compute, and what a request generates takes blocks as well."""
    cache: OrderedDict[tuple[object, ...], None] = OrderedDict()
    hits = 0
    for i in range(len(requests)):
        ids = requests.parts[requests.part_start[i] : requests.part_start[i + 1]].tolist()
        length = int(requests.input_tokens[i])
        text = [(part, at) for part in ids for at in range(part_tokens)][:length]
        text += [("own", i, at) for at in range(length - len(text))]  # type: ignore[misc]
        text += [("out", i, at) for at in range(int(requests.output_tokens[i]) - 1)]  # type: ignore[misc]
        blocks = [tuple(text[: (k + 1) * block_size]) for k in range(len(text) // block_size)]
        found = 0
        while found < (length - 1) // block_size and blocks[found] in cache:
            found += 1
        hits += found * block_size
        for block in blocks[:found]:
            del cache[block]
        while len(cache) > capacity - -(-len(text) // block_size):
            cache.popitem(last=False)
        for block in reversed(blocks):
            cache.pop(block, None)
            cache[block] = None
    return hits


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("kv_blocks", [9, 14, 22, 200])
def test_hits_are_those_of_an_lru_where_requests_do_not_overlap(block_size: int, kv_blocks: int) -> None:
    whole = random_batch(kv_blocks, 250, gap_us=1_000_000)
    spread = whole.take(np.arange(250))
    spread.arrival_us[:] = np.arange(250) * 1_000_000
    capacity = kv_blocks * 16 // block_size + 4
    found = run(spread, block_size=block_size, kv_blocks=capacity).figures
    expected = naive_hit_tokens(spread, block_size, 32, capacity)
    assert found["requests"]["refused"] == 0
    assert found["cached_tokens"] == expected
    assert found["prefix_hit_rate"] == pytest.approx(expected / spread.input_tokens.sum(), rel=1e-5)


def test_prompts_share_exactly_the_prefix_that_their_parts_say() -> None:
    draw = np.random.default_rng(0)
    large = [2**30 - 1, 2**30, 2**59 + 3, 2**62, 1, 0]
    for _ in range(300):
        size = int(draw.integers(3, 9))
        ids = [[large[i] for i in draw.integers(0, 6, draw.integers(0, 4))] for _ in range(2)]
        lengths = [size * len(i) + int(draw.integers(-size + 1, size)) if i else 4 for i in ids]
        a, b = (_core.sim.prompt_tokens(n, lengths[n], ids[n], size) for n in range(2))
        # As objects: the token at each place is known by its part, or by its request beyond them.
        texts = [[(part, at) for part in ids[n] for at in range(size)][: lengths[n]] for n in range(2)]
        texts = [t + [(-1 - n, at) for at in range(lengths[n] - len(t))] for n, t in enumerate(texts)]
        for block in range(1, min(lengths) // 3 + 1):
            end = 3 * block
            # Whole parts of at least three tokens tell ids apart by their head.
            whole_parts = end // size * size
            if texts[0][:end] == texts[1][:end]:
                assert a[:end] == b[:end]
            elif texts[0][:whole_parts] != texts[1][:whole_parts]:
                assert a[:end] != b[:end]


def test_requests_that_can_never_run_are_counted() -> None:
    whole = batch([0, 1, 2, 3, 4], [10_000, 10, 0, 10, 2000], [1, 0, 1, 5, 1])
    found = run(whole, kv_blocks=8, max_model_len=1500).figures["requests"]
    assert found["finished"] == 1
    assert found["refused_by_reason"] == {"queue_full": 0, "too_long": 2, "never_fits": 0, "empty": 2}
    found = run(whole, kv_blocks=8, max_model_len=20_000).figures["requests"]
    assert found["refused_by_reason"] == {"queue_full": 0, "too_long": 0, "never_fits": 2, "empty": 2}


def test_a_trace_of_which_nothing_runs_has_a_report() -> None:
    found = run(batch([0], [10_000], [1]), kv_blocks=1).figures
    assert found["prefix_hit_rate"] is None
    assert found["ttft_ms"] is None


def test_concurrency_is_never_exceeded_and_latencies_count_from_the_turn() -> None:
    whole = random_batch(8, 100, gap_us=1)
    one = run(whole, concurrency=1, replicas=2, ttft_ms=1.0)
    assert one.figures["requests"]["finished"] == 100
    assert max(point.running for point in one.timeline) <= 1.0
    assert max(point.waiting for point in one.timeline) == 0.0
    # Alone, a prompt of at most 168 tokens is one step.
    assert one.figures["ttft_ms"]["max"] <= 0.268
    many = run(whole, concurrency=20, replicas=2)
    assert 1.0 < many.timeline[0].running + many.timeline[0].waiting <= 20.0


def test_attainment_counts_what_is_refused_as_missed() -> None:
    whole = batch([0, 0, 0, 0], [100] * 4, [10, 10, 10, 0])
    generous = run(whole, ttft_ms=1000.0, itl_ms=1000.0).figures["slo"]
    assert generous == {
        "ttft_target_ms": 1000.0,
        "itl_target_ms": 1000.0,
        "ttft": 0.75,
        "itl": 0.75,
        "both": 0.75,
        "ttft_and_worst_itl": 0.75,
    }
    strict = run(whole, ttft_ms=1000.0, itl_ms=0.001).figures["slo"]
    assert (strict["ttft"], strict["itl"], strict["both"]) == (0.75, 0.0, 0.0)


def test_steps_ahead_delay_a_newcomer_by_the_step_that_was_planned() -> None:
    # Decodes of 101 us; a request that arrives in the middle of one waits for it and, planned ahead, the next.
    whole = batch([0, 1000], [16, 16], [100, 1])
    rows: dict[int, list[Any]] = {}
    for ahead in (0, 1):
        options = SimulationOptions(step_time=FAST, kv_blocks=64, keep_rows=True, steps_ahead=ahead)
        rows[ahead] = []
        simulate([whole], options, on_rows=lambda found, to=rows[ahead]: to.extend(found.tolist()))  # type: ignore[misc]
    first = {ahead: next(row[3] for row in rows[ahead] if row[0] == 1) for ahead in rows}
    assert first[1] - first[0] == 101


def test_arrivals_must_not_go_back() -> None:
    simulation = Simulation(SimulationOptions(step_time=FAST, kv_blocks=64))
    with pytest.raises(ValueError, match=r"arrival_us must be in order, in \[0, 2\^53\], got 5"):
        simulation.feed(batch([10, 5], [1, 1], [1, 1]))


def test_the_timeline_holds_everything_whatever_its_width() -> None:
    whole = random_batch(2, 300, gap_us=3_000_000)
    report = run(whole)
    assert len(report.timeline) <= 256
    assert report.width_s * 256 >= whole.arrival_us[-1] / 1e6
    assert sum(point.accepted for point in report.timeline) == 300
    assert sum(point.finished for point in report.timeline) == 300
    busy = sum(point.busy for point in report.timeline[:-1]) * report.width_s
    assert busy == pytest.approx(report.figures["busy"] * report.figures["simulated_s"], rel=0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replicas": 0}, "replicas is 0; it must be a whole number from 1 to 4096"),
        ({"router": "magic"}, "router is 'magic'; accepted: round_robin, least_loaded, prefix, locality"),
        ({"step_time": "abacus"}, "step_time is 'abacus'; accepted: h200-8b-fp8"),
        ({"load_guard": 0.5}, "load_guard is 0.5; it must be at least 1"),
        ({"ttft_ms": 0.0}, "ttft_ms is 0"),
        ({"tenant_weights": {3: 0.0}}, "weight of tenant 3 is 0; it must be positive"),
        ({"tenant_weights": {2**63: 1.0}}, f"tenant {2**63} has a weight; it must be a whole number of 64"),
        ({"runtime": {"nonsense": 1}}, "takes no such setting"),
        ({"runtime": {"fairness_gap_tokens": 0}}, "fairness_gap_tokens must be between 1 and"),
        ({"model": {"watermark": 2.0}}, "watermark"),
    ],
)
def test_a_mistake_in_options_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Simulation(SimulationOptions(**options))
    assert "\n" not in str(caught.value)
