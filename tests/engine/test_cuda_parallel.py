"""A model on two devices, here two processes of the host, gives what it gives on one."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airi.engine import Engine, ModelOptions
from airi.engine.backends.cuda.parallel_platform import ParallelPlatform
from airi.outputs import Output, TokenLogprobs
from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.parallel_helpers import has_ended, listening_addresses, workers_of
from tests.engine.tiny_models import TINY_MODELS, Reference, TinyModel, make_checkpoint, prompts

NAMES = ("llama", "llama-one-kv-head", "qwen3-moe", "gemma3", "olmo2")
PROMPTS = prompts()
LOGPROB_TOLERANCE = 1e-5
_ONE_KV_HEAD = TinyModel("LlamaConfig", 5, {**TINY_MODELS["llama"].fields, "num_key_value_heads": 1})


@dataclass
class Engines:
    """The same models on one device and on two."""

    alone: Engine
    shared: Engine

    def both(self, use: Callable[[Engine], dict[int, Output]]) -> tuple[dict[int, Output], dict[int, Output]]:
        """What each of them gives."""
        return use(self.alone), use(self.shared)


@pytest.fixture(scope="module")
def engines(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TINY_MODELS, "llama-one-kv-head", _ONE_KV_HEAD)
        one_kv_head = make_checkpoint("llama-one-kv-head", tmp_path_factory.mktemp("one-kv-head"))
    paths = {name: one_kv_head if name == "llama-one-kv-head" else checkpoint(name) for name in NAMES}
    # Steps of the first one are measured before requests come, on a block table of their own.
    models = tuple(
        ModelOptions(path=str(path), name=name, ttft_ms=60_000 if name == NAMES[0] else None)
        for name, path in paths.items()
    )
    options: dict[str, Any] = {
        "models": models,
        "backend": "cuda",
        "device": "cpu",
        "threads": None,
        "step_warmup_s": 0.01,
        "block_size": 16,
        "max_batch_tokens": 64,
    }
    engines = Engines(make_engine(**options), make_engine(**options, tensor_parallel_size=2))
    yield engines
    (worker,) = workers_of(os.getpid())
    engines.shared.close()
    assert has_ended(worker)


def assert_close(found: TokenLogprobs | None, expected: TokenLogprobs | None) -> None:
    if found is None or expected is None:
        assert found is expected
        return
    assert (found.token, found.top_tokens) == (expected.token, expected.top_tokens)
    wanted = pytest.approx([expected.logprob, *expected.top_logprobs], LOGPROB_TOLERANCE, LOGPROB_TOLERANCE)
    assert [found.logprob, *found.top_logprobs] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_two_devices_give_the_tokens_of_one(name: str, engines: Engines) -> None:
    def use(engine: Engine) -> dict[int, Output]:
        for index, prompt in enumerate(PROMPTS):
            add(engine, index, prompt, model=name, max_tokens=24, logprobs=2, prompt_logprobs=2, **GREEDY)
            add(engine, 10 + index, prompt, model=name, max_tokens=24, seed=index, ignore_eos=True)
        return run(engine)

    expected, found = engines.both(use)
    assert {key: output.tokens for key, output in found.items()} == {
        key: output.tokens for key, output in expected.items()
    }
    for index in range(len(PROMPTS)):
        for part in ("logprobs", "prompt_logprobs"):
            for pair in zip(getattr(found[index], part), getattr(expected[index], part), strict=True):
                assert_close(*pair)


@pytest.mark.parametrize("name", ["llama-one-kv-head", "gemma3"])
def test_a_prefix_that_was_computed_is_found_on_both(name: str, engines: Engines) -> None:
    prompt = [token + 1 for token in PROMPTS[-1]]

    def use(engine: Engine) -> dict[int, Output]:
        first = engine.stats()[NAMES.index(name)].hit_tokens
        outputs: dict[int, Output] = {}
        for request_id in (1, 2):
            add(engine, request_id, [*prompt, request_id], model=name, max_tokens=12, **GREEDY)
            outputs |= run(engine)
        assert engine.stats()[NAMES.index(name)].hit_tokens > first
        return outputs

    expected, found = engines.both(use)
    assert [found[index].tokens for index in (1, 2)] == [expected[index].tokens for index in (1, 2)]
    assert found[2].num_cached_tokens == expected[2].num_cached_tokens == len(prompt) // 16 * 16


@pytest.mark.parametrize("name", ["llama", "llama-one-kv-head"])
def test_steps_of_every_size_give_the_same(name: str, engines: Engines) -> None:
    def use(engine: Engine) -> dict[int, Output]:
        for index in range(8):  # they end one by one
            prompt = [3 + index, *PROMPTS[2]]
            add(engine, index, prompt, model=name, max_tokens=4 + 2 * index, **GREEDY)
        return run(engine)

    expected, found = engines.both(use)
    assert {key: output.tokens for key, output in found.items()} == {
        key: output.tokens for key, output in expected.items()
    }


def test_a_request_can_be_cancelled_while_it_runs(engines: Engines) -> None:
    engine = engines.shared
    add(engine, 1, PROMPTS[1], max_tokens=200, **GREEDY)
    add(engine, 2, PROMPTS[1], max_tokens=8, **GREEDY)
    engine.step()
    engine.cancel(1)
    outputs = run(engine)
    assert outputs[1].finish_reason == "cancelled"
    add(engines.alone, 2, PROMPTS[1], max_tokens=8, **GREEDY)
    assert outputs[2].tokens[-4:] == run(engines.alone)[2].tokens[-4:]


def test_each_device_holds_its_part_of_a_block(engines: Engines) -> None:
    whole, half = (
        [model.runner.model.bytes_per_block(16) for model in engine.models]
        for engine in (engines.alone, engines.shared)
    )
    shared_heads = [2, 1, 2, 2, 2]  # one kv head is on both
    assert [large // small for large, small in zip(whole, half, strict=True)] == shared_heads


def test_memory_is_planned_by_the_device_that_has_the_least(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = engines.shared._hosting.platform
    assert isinstance(platform, ParallelPlatform)
    for free, least in ((1 << 60, 1 << 50), (2, 2)):
        monkeypatch.setattr(platform.device, "memory", lambda free=free: (free, free))
        # Here both are of the same host, which has it once.
        assert 0 < platform.free_memory() <= least // 2


def test_nothing_listens_beyond_this_host(engines: Engines) -> None:
    (worker,) = workers_of(os.getpid())
    addresses = {pid: listening_addresses(pid) for pid in (worker, os.getpid())}
    assert addresses[os.getpid()]
    assert {address for found in addresses.values() for address in found} == {"0100007F"}


def test_preempted_requests_go_on_where_they_were(
    tiny_llama: Path, llama_references: list[Reference]
) -> None:
    """And an engine that nobody holds any more ends its workers."""
    before = set(workers_of(os.getpid()))
    engine = make_engine(
        tiny_llama,
        backend="cuda",
        device="cpu",
        threads=None,
        tensor_parallel_size=2,
        block_size=16,
        kv_memory=16 * 8192,  # 16 blocks; a request needs up to 9
        max_batch_tokens=24,
    )
    (worker,) = set(workers_of(os.getpid())) - before
    for index in range(4):
        prompt = llama_references[-1].prompt
        add(engine, index, prompt, max_tokens=40, prompt_logprobs=1, **GREEDY)
    outputs = run(engine)
    assert engine.stats()[0].preemptions > 0
    for output in outputs.values():
        assert output.tokens == llama_references[-1].tokens[:40]
        assert len(output.prompt_logprobs or []) == len(llama_references[-1].prompt)
    gone = weakref.ref(engine)
    del engine
    assert gone() is None
    assert has_ended(worker)
