"""What the benches under virtual time ask: their workloads, searches and judgements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from airi.bench.shapes import cached_checkpoint
from benches.bench_flooder import gap_row, with_flooder
from benches.bench_goodput import STEPS, Ladder, by_gaps, by_mean, factor
from benches.bench_locality import by_root
from benches.bench_long_prompts import LONG_PROMPT, make_requests
from benches.bench_simulated import Replay, burst, judge, scaled, simulated
from benches.virtual_ledger import LedgerWatch
from benches.virtual_time import Outcome, Trace, make_trace


def outcome_of(tokens_us: list[list[int]]) -> Outcome:
    """Requests that all arrive at 0 and get their tokens at these times."""
    counts = [len(times) for times in tokens_us]
    trace = make_trace([0] * len(counts), [1] * len(counts), counts)
    nothing = np.zeros(0, np.int64)
    return Outcome(
        trace=trace,
        token_us=np.concatenate([np.array(times, np.int64) for times in tokens_us]),
        token_start=np.concatenate([[0], np.cumsum(counts)]),
        cached=np.zeros(len(counts), np.int64),
        preemptions=0,
        step_start_us=nothing,
        step_end_us=nothing,
        step_tokens=nothing,
        step_seqs=nothing,
    )


@pytest.mark.parametrize("last", [-1, 0, 17, STEPS - 1])
def test_the_search_finds_the_last_step_on_which_enough_requests_meet_their_targets(last: int) -> None:
    trace = make_trace([0, 10_000_000], [1, 1], [1, 1])
    limit = trace.arrival_us[1] / factor(last)
    tried: list[int] = []

    def run(faster: Trace) -> Outcome:
        tried.append(int(faster.arrival_us[1]))
        return cast(Outcome, faster)

    def meets(outcome: Outcome) -> Any:
        return np.array([cast(Trace, outcome).arrival_us[1] >= limit - 1])

    ladder = Ladder("x", run, trace)
    assert ladder.highest(meets) == (None if last < 0 else last)
    assert len(tried) <= STEPS.bit_length()
    ladder.highest(meets)
    assert len(set(tried)) == len(tried)


def test_targets_are_met_by_first_tokens_and_by_gaps() -> None:
    steady, late, stalls = [100, 200, 300], [400, 500], [100, 150, 500]
    outcome = outcome_of([steady, late, stalls])
    assert by_gaps(300, 200)(outcome).tolist() == [True, False, False]
    assert by_mean(300, 200)(outcome).tolist() == [True, False, True]


def test_a_flooder_brings_so_many_times_the_load_of_all_others() -> None:
    normal = make_trace([0, 50, 100], [10, 20, 30], [1, 2, 3], tenant=[4, 5, 4])
    flooded = with_flooder(normal, 10, seed=0)
    own = flooded.tenant == 6
    assert own.sum() == 30
    assert flooded.prompt_len[own].sum() == 10 * normal.prompt_len.sum()
    assert flooded.output[own].sum() == 10 * normal.output.sum()
    assert flooded.arrival_us[own].max() <= 100
    assert len(set(flooded.segment_key.tolist())) == len(flooded)
    assert sorted(flooded.prompt_len[~own].tolist()) == [10, 20, 30]


def test_a_gap_is_judged_by_the_smaller_promise() -> None:
    watch = cast(LedgerWatch, SimpleNamespace(gap=120.0, bound=200.0, step_charge=30.0))
    assert gap_row("x", watch, None)["reached"]
    assert gap_row("x", watch, 90)["bound"] == 120
    assert gap_row("x", watch, 90)["reached"]
    assert not gap_row("x", watch, 80)["reached"]
    assert gap_row("x", watch, 500)["bound"] == 200


def test_long_prompts_come_among_short_requests() -> None:
    trace = make_requests(60, seed=1)
    is_long = trace.prompt_len == LONG_PROMPT
    assert (int(is_long.sum()), int((~is_long).sum())) == (20, 480)
    assert (np.diff(trace.arrival_us) >= 0).all()


def test_the_median_turn_judges_the_simulator() -> None:
    turns = [({"ttft_ms_p50": 100.0}, {"ttft_ms_p50": value}) for value in (95.0, 108.0, 150.0)]
    row = judge(turns)[0]
    assert (row["apart"], row["reached"]) == (0.08, True)
    assert row["apart_each"] == [-0.05, 0.08, 0.5]
    assert not judge(turns[1:])[0]["reached"]


def test_an_engine_serves_what_is_then_simulated(tmp_path: Path) -> None:
    replay = Replay(cached_checkpoint("llama-2m", tmp_path), threads=1, recording=tmp_path / "steps")
    batch = scaled(burst(6, 64), divisor=2, speed=1.0)
    assert batch.input_tokens.tolist() == [32] * 6
    assert batch.output_tokens.tolist() == [3] * 6
    for _ in range(12):
        served = replay.serve(batch)
    assert [len(times) for times in served.tokens.values()] == [3] * 6
    assert all(times == sorted(times) and times[0] > 0 for times in served.tokens.values())
    real, found = served.figures(), simulated(batch, replay.learnt(), replay)
    assert found.keys() == real.keys()
    assert min(found.values()) > 0


def test_tenants_by_root_are_the_first_parts_of_prompts_modulo_sixteen() -> None:
    first_keys = [17, 33, 5]
    trace = replace(
        make_trace([0, 1, 2], [8, 8, 8], [1, 1, 1]),
        segment_start=np.array([0, 2, 3, 4]),
        segment_key=np.array([first_keys[0], 99, first_keys[1], first_keys[2]]),
        segment_len=np.array([4, 4, 8, 8]),
    )
    assert by_root(trace).tenant.tolist() == [0, 0, 4]
