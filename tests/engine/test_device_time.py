"""Every microsecond that a step took is some request's, and each request is told of its own once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.engine import Engine
from airi.engine.device_time import DeviceTime, shares
from airi.engine.runner import StepArrays
from airi.outputs import Output
from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.tiny_models import VOCAB_SIZE


def step_of(**rows: int) -> StepArrays:
    """A step with so many tokens of requests 1, 2, ... in this order, named r1, r2, ..."""
    arrays = StepArrays.allocate(8, 64, 1)
    for row, (name, count) in enumerate(rows.items()):
        arrays.request_ids[row] = int(name[1:])
        arrays.query_start[row + 1] = arrays.query_start[row] + count
    return arrays


def told(time: DeviceTime, *outputs: Output) -> list[int]:
    time.tell(outputs)
    return [output.device_us for output in outputs]


@given(st.integers(0, 2**40), st.lists(st.integers(1, 8192), min_size=1, max_size=200))
def test_shares_add_up_and_each_is_within_a_microsecond_of_its_part(took_us: int, tokens: list[int]) -> None:
    parts = shares(took_us, np.array(tokens, np.int32)).tolist()
    assert sum(parts) == took_us
    whole = sum(tokens)
    assert all(abs(part * whole - took_us * n) < whole for part, n in zip(parts, tokens, strict=True))


def test_time_is_told_once_and_a_last_output_ends_the_count() -> None:
    time = DeviceTime(1)
    time.begin(1, metered=False)
    time.begin(2, metered=True)
    assert time.add(step_of(r1=3, r2=1), 2, 1000) == [2]
    assert told(time, Output(1, [5]), Output(2, [])) == [750, 250]
    assert time.add(step_of(r2=1, r1=1), 2, 100) == [2]
    assert told(time, Output(1, [], "cancelled"), Output(2, [4], "stop")) == [50, 50]
    assert time.add(step_of(r1=1, r2=1), 2, 100) == [], "rows that were planned before the ends were known"
    time.begin(1, metered=False)
    assert told(time, Output(1, []), Output(7, [], "error")) == [0, 0]


def test_a_second_of_a_step_on_two_devices_is_two_seconds() -> None:
    time = DeviceTime(2)
    time.begin(1, metered=False)
    time.add(step_of(r1=3), 1, 1_000_000)
    assert told(time, Output(1, [1])) == [2_000_000]


def test_a_step_of_memory_operations_alone_is_nobodys() -> None:
    time = DeviceTime(1)
    time.begin(1, metered=True)
    assert time.add(step_of(), 0, 1000) == []
    assert told(time, Output(1, [])) == [0]


@pytest.mark.parametrize("metered", [False, True])
@pytest.mark.parametrize("kv_blocks", [24, 200])
def test_requests_are_told_all_that_the_models_steps_took(
    tiny_llama: Path,
    kv_blocks: int,
    metered: bool,  # noqa: FBT001
) -> None:
    block = make_engine(tiny_llama).models[0].runner.model.bytes_per_block(16)
    engine = make_engine(tiny_llama, max_batch_tokens=48, kv_memory=kv_blocks * block, admission="max_util")
    rng = np.random.default_rng(3)
    for index in range(12):
        prompt = rng.integers(3, VOCAB_SIZE, int(rng.integers(1, 100))).tolist()
        count = int(rng.integers(1, 40))
        add(engine, index, prompt, max_tokens=count, metered=metered and index % 2 == 0, **GREEDY)
    outputs = run(engine)
    assert sum(output.device_us for output in outputs.values()) == engine.counters[0].device_us
    assert all(output.device_us > 0 for output in outputs.values())
    assert (engine.stats()[0].preemptions > 0) == (kv_blocks == 24)


def outputs_by_step(engine: Engine, **fields: Any) -> list[Output]:
    """Of a request of 40 tokens, 16 a step, beside another."""
    add(engine, 1, [7] * 40, max_tokens=4, **GREEDY, **fields)
    outputs = []
    while engine.has_work():
        outputs += [output for output in engine.step() if output.request_id == 1]
    return outputs


def test_a_metered_request_hears_of_every_step_also_of_those_without_a_token(tiny_llama: Path) -> None:
    outputs = outputs_by_step(make_engine(tiny_llama, max_batch_tokens=16), metered=True)
    assert [len(output.tokens) for output in outputs] == [0, 0, 1, 1, 1, 1]
    assert all(output.device_us > 0 for output in outputs)


def test_others_hear_of_it_with_their_first_token_and_at_their_end(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, max_batch_tokens=16)
    outputs = outputs_by_step(engine)
    assert [output.device_us > 0 for output in outputs] == [True, False, False, True]
    assert sum(output.device_us for output in outputs) == engine.counters[0].device_us


def test_metering_changes_no_token(tiny_llama: Path) -> None:
    texts = []
    for metered in (False, True):
        engine = make_engine(tiny_llama)
        for index in range(4):
            add(engine, index, [5 + index] * 9, max_tokens=12, seed=index, logprobs=1, metered=metered)
        texts.append({i: (o.tokens, o.logprobs, o.finish_reason) for i, o in run(engine).items()})
    assert texts[0] == texts[1]


@pytest.mark.parametrize("metered", [False, True])
def test_a_step_that_runs_when_its_request_is_cancelled_is_told_in_the_last_output(
    tiny_llama: Path,
    metered: bool,  # noqa: FBT001
) -> None:
    engine = make_engine(tiny_llama)
    add(engine, 1, [5, 6, 7], max_tokens=50, metered=metered, **GREEDY)
    seen = [output for _ in range(3) for output in engine.step()]
    engine.cancel(1)
    while engine.has_work():
        seen += engine.step()
    assert seen[-1].finish_reason == "cancelled"
    assert sum(output.device_us for output in seen) == engine.counters[0].device_us
