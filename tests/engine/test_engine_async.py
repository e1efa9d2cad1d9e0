"""Planning each step while the one before runs changes when things happen, never what a request is given."""

from __future__ import annotations

import select
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.engine import Engine
from airi.outputs import Output
from tests.engine.engine_helpers import GREEDY, Exact, add, gather, make_engine, run
from tests.engine.tiny_models import VOCAB_SIZE


def mixed_requests(engine: Engine, count: int = 16) -> None:
    """Requests of many lengths and parameters, some of which stop on an id."""
    rng = np.random.default_rng(5)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 7, "logprobs": 2},
        {"temperature": 0.8, "seed": 9, "repetition_penalty": 1.4},
        {"temperature": 1.0, "seed": 3, "stop_token_ids": tuple(range(3, 40))},
        {"temperature": 0.0, "prompt_logprobs": 1},
    ]
    for index in range(count):
        prompt = rng.integers(3, VOCAB_SIZE, int(rng.integers(1, 100))).tolist()
        add(engine, index, prompt, max_tokens=int(rng.integers(1, 40)), ignore_eos=True, **kinds[index % 5])


def told(output: Output) -> tuple[Any, ...]:
    """What must be the same to the last bit."""
    logprobs = Exact(entry.logprob for entry in output.logprobs or ())
    return output.tokens, output.finish_reason, output.stop_token, output.num_generated_tokens, logprobs


@pytest.mark.parametrize("admission", ["max_util", "no_evict"])
@pytest.mark.parametrize("kv_blocks", [24, 200])
def test_outputs_are_those_of_synchronous_scheduling(
    tiny_llama: Path, admission: str, kv_blocks: int
) -> None:
    results = []
    for async_scheduling in (False, True):
        block = make_engine(tiny_llama).models[0].runner.model.bytes_per_block(16)
        engine = make_engine(
            tiny_llama,
            admission=admission,
            kv_memory=kv_blocks * block,
            async_scheduling=async_scheduling,
            max_batch_tokens=48,
            dtype="float32",
        )
        mixed_requests(engine)
        results.append({i: told(output) for i, output in run(engine).items()})
        engine.check_invariants()
        assert engine.stats()[0].active_blocks == 0
    assert results[0] == results[1]
    assert any(reason == "stop" for _, reason, *_ in results[0].values())


def test_penalties_count_a_token_once_whose_request_was_preempted_while_it_was_sampled(
    tiny_llama: Path,
) -> None:
    block = make_engine(tiny_llama).models[0].runner.model.bytes_per_block(16)
    penalties: dict[str, Any] = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 2.0}
    texts, preempted, parked = [], [], 0
    for kv_blocks in (200, 14):
        engine = make_engine(
            tiny_llama,
            admission="max_util",
            kv_memory=kv_blocks * block,
            dtype="float32",
            prefix_caching=False,
        )
        for index in range(5):
            # Biased towards two tokens, so that how often each was counted decides which comes next.
            bias = {40 + index: 30.0, 50 + index: 30.5}
            add(engine, index, [5 + index] * 20, max_tokens=60, logit_bias=bias, **GREEDY, **penalties)
        outputs: dict[int, Output] = {}
        while engine.has_work():
            before = engine.stats()[0].preemptions
            running = engine._pipeline.is_running
            gather(outputs, engine.step())
            parked += running and engine.stats()[0].preemptions > before
        texts.append({index: told(output) for index, output in outputs.items()})
        preempted.append(engine.stats()[0].preemptions)
    assert preempted[0] == 0 < preempted[1]
    assert parked, "none was preempted while a step of it ran"
    assert texts[0] == texts[1]


def test_a_row_that_ran_for_nothing_is_neither_told_nor_counted(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    add(engine, 1, [5, 6, 7], max_tokens=6, **GREEDY)
    first = run(engine)[1].tokens
    stop = first[3]
    counted = engine.counters[0].generated_tokens
    add(engine, 1, [5, 6, 7], max_tokens=6, temperature=0.0, stop_token_ids=(stop,))
    output = run(engine)[1]
    assert output.tokens == first[: first.index(stop) + 1]
    assert engine.counters[0].generated_tokens - counted == len(output.tokens)


def test_an_id_that_ended_may_be_used_again_while_its_last_row_runs(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    add(engine, 1, [5, 6, 7], max_tokens=3, **GREEDY)
    add(engine, 2, [9], max_tokens=30, **GREEDY)
    seen: dict[int, Output] = {}
    while 1 not in seen or seen[1].finish_reason is None:
        gather(seen, engine.step())
    first = seen.pop(1)
    add(engine, 1, [5, 6, 7], max_tokens=3, **GREEDY)
    while engine.has_work():
        gather(seen, engine.step())
    assert seen[1].tokens == first.tokens
    assert len(seen[2].tokens) == 30


def test_a_request_cancelled_while_its_row_runs_ends_once_and_gets_no_more(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    for request_id in (1, 2):
        add(engine, request_id, [5, 6, request_id], max_tokens=30, **GREEDY)
    seen: dict[int, Output] = {}
    for _ in range(4):
        gather(seen, engine.step())
    engine.cancel(1)
    before = list(seen[1].tokens)
    while engine.has_work():
        gather(seen, engine.step())
    assert seen[1].finish_reason == "cancelled"
    assert seen[1].tokens == before
    assert seen[1].num_generated_tokens == len(before)
    assert len(seen[2].tokens) == 30


def test_the_end_of_a_step_is_told_by_a_descriptor(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama)
    assert engine.watch_step()[1] == 0
    add(engine, 1, [5, 6], max_tokens=8, **GREEDY)
    engine.step()
    done_fd, wait_s = engine.watch_step()
    assert 0 <= wait_s < 60
    assert select.select([done_fd], [], [], 60)[0] == [done_fd]
    assert engine.watch_step()[1] == 0
    run(engine)
    assert select.select([done_fd], [], [], 0)[0] == []
