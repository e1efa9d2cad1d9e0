"""The loop of virtual time: what it computes by hand, and what holds for every trace."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.simulate import PRESETS, SimulationOptions, simulate
from airi.simulate.batches import Batch
from airi.simulate.step_time import Piece as SimulatedPiece
from airi.simulate.step_time import StepTime as SimulatedStepTime
from benches.virtual_airi import AiriScheduler, Policy, run_airi
from benches.virtual_ledger import LedgerWatch
from benches.virtual_time import (
    Ints,
    Outcome,
    Piece,
    Setup,
    StepTime,
    Trace,
    Work,
    drive,
    make_trace,
    work_of,
)
from benches.virtual_traces import preset_setup, read_trace

ROOT = Path(__file__).resolve().parents[2]
NOTHING = Piece(step_us=0, token_us=0, seq_us=0, context_us=0, pair_us=0)
BY_TOKENS = StepTime(
    memory=Piece(step_us=100, token_us=0, seq_us=0, context_us=0, pair_us=0),
    arithmetic=Piece(step_us=0, token_us=10, seq_us=0, context_us=0, pair_us=0),
)
SMALL = Setup(kv_blocks=256, max_num_seqs=8, max_batch_tokens=64, max_model_len=512, step_time=BY_TOKENS)


class OneAtATime:
    """A scheduler of forty lines: whole prompts, one request after the other."""

    def __init__(self, trace: Trace) -> None:
        self.cached, self.preemptions = np.zeros(len(trace), np.int64), 0
        self._trace, self._queue = trace, deque[int]()
        self._left = trace.output.copy()
        self._planned = deque[int]()

    def submit(self, index: int) -> None:
        self._queue.append(index)

    def plan(self, now_us: int) -> Work | None:
        if not self._queue:
            return None
        index = self._queue[0]
        tokens = 1 if self._left[index] < self._trace.output[index] else int(self._trace.prompt_len[index])
        self._left[index] -= 1
        if not self._left[index]:
            self._queue.popleft()
        self._planned.append(index)
        return Work(tokens, 1, 0, 0.0)

    def commit(self, device_us: int) -> Ints:
        return np.array([self._planned.popleft()])


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    size = draw(st.integers(1, 12))
    numbers = st.integers(0, 3000), st.integers(1, 100), st.integers(1, 12), st.integers(0, 3)
    arrivals, prompts, outputs, tenants = (draw(st.lists(n, min_size=size, max_size=size)) for n in numbers)
    slack = draw(st.integers(0, 20))
    return make_trace(
        arrivals, prompts, outputs, tenant=tenants, max_tokens=[output + slack for output in outputs]
    )


def tokens_of(outcome: Outcome, index: int) -> list[int]:
    start, end = outcome.token_start[index : index + 2]
    return [int(time) for time in outcome.token_us[start:end]]


def test_the_work_of_a_batch_is_what_its_rows_add_up_to() -> None:
    # Two decodes that attend to 5 and 9 keys; a chunk of 4 after 6: 4 * (6 + 2) pairs.
    work = work_of(np.array([1, 1, 4]), np.array([5, 9, 10]))
    assert work == Work(tokens=6, seqs=3, decode_context=14, prefill_pairs=32.0)


def test_a_step_takes_as_long_as_the_longer_piece() -> None:
    memory = Piece(step_us=100, token_us=1, seq_us=2, context_us=0.5, pair_us=0.25)
    arithmetic = Piece(step_us=0, token_us=30, seq_us=0, context_us=0, pair_us=0)
    step_time = StepTime(memory=memory, arithmetic=arithmetic)
    assert step_time.micros(Work(2, 3, 10, 8.0)) == 100 + 2 + 6 + 5 + 2
    assert step_time.micros(Work(10, 3, 10, 8.0)) == 300
    assert StepTime(memory=NOTHING, arithmetic=NOTHING).micros(Work(1, 1, 0, 0.0)) == 1


def test_a_trace_worked_out_by_hand() -> None:
    # 30 tokens take 300 us, one token 100. The second request waits for the first, the third finds nobody.
    trace = make_trace([1000, 1100, 5000], [30, 20, 5], [3, 2, 1])
    outcome = drive(OneAtATime(trace), trace, SMALL)
    assert [tokens_of(outcome, i) for i in range(3)] == [[1300, 1400, 1500], [1700, 1800], [5100]]
    assert outcome.ttft_us.tolist() == [300, 600, 100]
    assert outcome.finish_us.tolist() == [1500, 1800, 5100]
    assert outcome.gaps_us().tolist() == [100, 100, 100]
    assert outcome.gaps_us(np.array([False, True, True])).tolist() == [100]
    assert outcome.mean_gap_us().tolist() == [100, 100, 0]


def test_a_step_ahead_is_planned_when_the_one_before_it_begins() -> None:
    # The request of 1050 arrives while the first step runs, behind which one is planned already.
    trace = make_trace([1000, 1050], [30, 20], [2, 1])
    outcome = drive(OneAtATime(trace), trace, replace(SMALL, steps_ahead=1))
    assert [tokens_of(outcome, i) for i in range(2)] == [[1300, 1400], [1600]]
    assert outcome.step_start_us.tolist() == [1000, 1300, 1400]


def test_a_batch_of_airi_worked_out_by_hand() -> None:
    # Budget 64: 50 tokens of the first prompt and 14 of the second in 640 us; its other 16 beside one decode in 170.
    trace = make_trace([0, 0], [50, 30], [2, 1])
    outcome = run_airi(trace, SMALL)
    assert [tokens_of(outcome, i) for i in range(2)] == [[640, 810], [810]]
    assert outcome.step_tokens.tolist() == [64, 17]
    assert outcome.step_seqs.tolist() == [2, 2]


@pytest.mark.parametrize("steps_ahead", [0, 1])
@given(trace=traces())
@settings(max_examples=40, deadline=None)
def test_no_token_is_lost_and_time_never_stands_still(steps_ahead: int, trace: Trace) -> None:
    outcome = run_airi(trace, replace(SMALL, steps_ahead=steps_ahead))
    assert np.diff(outcome.token_start).tolist() == trace.output.tolist()
    assert (outcome.ttft_us > 0).all()
    assert (outcome.gaps_us() > 0).all()
    assert (outcome.step_end_us > outcome.step_start_us).all()
    assert (outcome.step_start_us[1:] >= outcome.step_end_us[:-1]).all()
    computed = trace.prompt_len + trace.output - 1 - outcome.cached
    if steps_ahead:
        # A stop token comes too late for the step behind it: one row that nobody sees.
        assert computed.sum() <= outcome.step_tokens.sum() <= computed.sum() + len(trace)
    else:
        assert computed.sum() == outcome.step_tokens.sum()


def test_equal_segments_are_hit() -> None:
    columns = make_trace([0, 10_000], [40, 8], [1, 1])
    shared = Trace(
        arrival_us=columns.arrival_us,
        tenant=columns.tenant,
        output=columns.output,
        max_tokens=columns.max_tokens,
        segment_start=np.array([0, 2, 4]),
        segment_key=np.array([5, 6, 5, 9]),
        segment_len=np.array([32, 8, 32, 8]),
    )
    assert shared.prompt_len.tolist() == [40, 40]
    first, second = shared.prompt(0), shared.prompt(1)
    assert (first[:32] == second[:32]).all()
    assert (first[32:] != second[32:]).any()
    assert len(set(first.tolist())) > 30
    assert run_airi(shared, SMALL).cached.tolist() == [0, 32]


def test_a_scheduler_that_stalls_or_loses_a_token_is_told_on() -> None:
    trace = make_trace([0], [4], [2])

    class Stalls(OneAtATime):
        def plan(self, now_us: int) -> Work | None:
            return None

    with pytest.raises(RuntimeError, match="stalls at 0 us with 1 requests left"):
        drive(Stalls(trace), trace, SMALL)

    class SaysItTwice(OneAtATime):
        def commit(self, device_us: int) -> Ints:
            return np.repeat(super().commit(device_us), 2)

    with pytest.raises(RuntimeError, match="request 0 got 4 tokens of 2"):
        drive(SaysItTwice(trace), trace, SMALL)


def test_a_request_that_can_never_run_is_refused() -> None:
    trace = make_trace([0], [600], [2])
    with pytest.raises(ValueError, match="request 0 was refused: TOO_LONG"):
        run_airi(trace, SMALL)


@given(traces(), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
@settings(max_examples=30, deadline=None)
def test_quantiles_of_gaps_are_those_of_each_request(trace: Trace, q: float) -> None:
    outcome = run_airi(trace, SMALL)
    found = outcome.gap_quantile_us(q)
    for index in range(len(trace)):
        gaps = np.sort(np.diff(tokens_of(outcome, index)))
        expected = np.quantile(gaps, q, method="inverted_cdf") if len(gaps) else 0
        assert found[index] == expected


def test_traces_and_outcomes_survive_a_file(tmp_path: Path) -> None:
    trace = make_trace([5, 1], [3, 4], [2, 1], tenant=[7, 8])
    trace.save(tmp_path / "trace.npz")
    read = Trace.load(tmp_path / "trace.npz")
    assert all(np.array_equal(getattr(read, n), getattr(trace, n)) for n in Trace.__slots__)
    assert read.arrival_us.tolist() == [1, 5]
    assert read.tenant.tolist() == [8, 7]
    outcome = run_airi(read, SMALL)
    outcome.save(tmp_path / "outcome.npz")
    again = Outcome.load(tmp_path / "outcome.npz", read)
    assert again.token_us.tolist() == outcome.token_us.tolist()
    assert again.ttft_us.tolist() == outcome.ttft_us.tolist()
    assert Setup.from_json(SMALL.to_json()) == SMALL


def test_a_trace_is_cut_and_sped_up() -> None:
    trace = make_trace([0, 10, 20], [3, 4, 5], [1, 2, 3])
    assert trace.until(20).prompt_len.tolist() == [3, 4]
    assert trace.first(1).output.tolist() == [1]
    assert trace.at_speed(2.0).arrival_us.tolist() == [0, 5, 10]


def test_a_trace_file_is_read_with_its_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = (
        '{"timestamp": 0, "input_length": 1100, "output_length": 3, "hash_ids": [4, 5, 6]}',
        '{"timestamp": 2, "input_length": 600, "output_length": 0, "hash_ids": [4]}',
        '{"timestamp": 3, "input_length": 7, "output_length": 1, "hash_ids": []}',
    )
    path.write_text("\n".join(lines) + "\n")
    trace = read_trace(path)
    assert trace.arrival_us.tolist() == [0, 2000, 3000]
    assert trace.prompt_len.tolist() == [1100, 600, 7]
    assert trace.output.tolist() == [3, 1, 1]
    assert trace.segment_len.tolist() == [512, 512, 76, 512, 88, 7]
    assert len(set(trace.segment_key.tolist())) == 5
    first, second = trace.prompt(0), trace.prompt(1)
    assert (first[:512] == second[:512]).all()
    assert (first[512:600] != second[512:]).any()


def test_the_setup_is_a_preset_with_the_limits_of_vllm() -> None:
    setup = preset_setup()
    preset = PRESETS["h100-8b-bf16"]
    # One decode that attends to 1,000 tokens reads the weights and its keys.
    expected = preset.step_time.memory.step_us + preset.step_time.memory.seq_us
    expected += 1000 * preset.step_time.memory.context_us
    assert setup.step_time.micros(Work(1, 1, 1000, 0.0)) == round(expected)
    assert setup.kv_blocks * setup.block_size <= preset.kv_tokens < (setup.kv_blocks + 1) * setup.block_size


def test_the_loop_needs_nothing_but_numpy() -> None:
    code = (
        "import sys\nfor name in ('airi', 'torch', 'vllm'): sys.modules[name] = None\n"
        "import benches.virtual_time"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_service_of_waiting_tenants_is_watched() -> None:
    # One slot, prompts of 10 at weight 1 and 4 tokens at weight 2: a dispatch grants 10 + 8.
    trace = make_trace([0] * 6, [10] * 6, [4] * 6, tenant=[0, 0, 0, 1, 1, 1])
    setup = Setup(kv_blocks=256, max_num_seqs=1, max_batch_tokens=64, max_model_len=64, step_time=BY_TOKENS)
    watch = LedgerWatch(AiriScheduler(trace, setup, Policy()), trace)
    outcome = drive(watch, trace, setup)
    assert watch.bound == 18
    # The first of a request's tokens is charged with its prompt's step, and all four before the next dispatch.
    assert watch.gap == 10 + 3 * 2
    assert np.diff(outcome.finish_us[[0, 3, 1, 4, 2, 5]]).min() > 0


@given(traces())
@settings(max_examples=40, deadline=None)
def test_service_never_comes_apart_beyond_the_bound(trace: Trace) -> None:
    setup = Setup(kv_blocks=256, max_num_seqs=3, max_batch_tokens=32, max_model_len=256, step_time=BY_TOKENS)
    watch = LedgerWatch(AiriScheduler(trace, setup, Policy()), trace)
    drive(watch, trace, setup)
    assert watch.gap <= watch.bound


@given(trace=traces())
@settings(max_examples=50, deadline=None)
def test_the_simulator_of_the_core_comes_to_the_same_times(trace: Trace) -> None:
    trace = replace(trace, max_tokens=trace.output)
    count = len(trace)
    batch = Batch(
        arrival_us=trace.arrival_us,
        tenant=trace.tenant,
        band=np.zeros(count, np.int32),
        input_tokens=trace.prompt_len.astype(np.int32),
        output_tokens=trace.output.astype(np.int32),
        part_start=np.zeros(count + 1, np.int64),
        parts=np.zeros(0, np.int64),
    )
    options = SimulationOptions(
        step_time=SimulatedStepTime(
            memory=SimulatedPiece(step_us=100.0), arithmetic=SimulatedPiece(token_us=10.0)
        ),
        kv_blocks=SMALL.kv_blocks,
        max_num_seqs=SMALL.max_num_seqs,
        max_batch_tokens=SMALL.max_batch_tokens,
        max_model_len=SMALL.max_model_len,
        steps_ahead=0,
        aging_s=None,
        keep_rows=True,
    )
    found: list[np.ndarray[Any, Any]] = []
    simulate([batch], options, on_rows=found.append)
    rows = np.concatenate(found)
    rows = rows[np.argsort(rows["request_id"])]
    outcome = run_airi(trace, SMALL)
    assert rows["first_token_us"].tolist() == outcome.token_us[outcome.token_start[:-1]].tolist()
    assert rows["end_us"].tolist() == outcome.finish_us.tolist()
