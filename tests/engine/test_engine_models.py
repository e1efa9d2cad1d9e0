"""Several models in one engine: each computes its own, and device time is shared by weight."""

from __future__ import annotations

from pathlib import Path

import pytest

from airi.engine import ModelOptions
from airi.errors import CheckpointError, ConfigError
from tests.engine.engine_helpers import GREEDY, MIB, add, make_engine, run
from tests.engine.tiny_models import Reference


def test_two_models_in_one_arena_compute_what_each_computes_alone(
    tiny_llama: Path, tiny_qwen3: Path, llama_references: list[Reference], qwen3_references: list[Reference]
) -> None:
    engine = make_engine(tiny_llama, tiny_qwen3, kv_memory=24 * MIB)
    expected = {}
    for index, references in enumerate((llama_references, qwen3_references)):
        for row, reference in enumerate(references):
            add(engine, 10 * index + row, reference.prompt, model=index, max_tokens=64, **GREEDY)
            expected[10 * index + row] = reference.tokens
    outputs = run(engine)
    assert {request_id: output.tokens for request_id, output in outputs.items()} == expected


def test_names_and_aliases_find_their_model(tiny_llama: Path, tiny_qwen3: Path) -> None:
    models = (
        ModelOptions(path=str(tiny_llama), aliases=("gpt-x",)),
        ModelOptions(path=str(tiny_qwen3), name="small"),
    )
    engine = make_engine(models=models, kv_memory=24 * MIB)
    assert [engine.find_model(name).index for name in ("llama", "gpt-x", "small", 1)] == [0, 0, 1, 1]


def test_device_time_follows_the_weights_while_both_models_have_work(
    tiny_llama: Path, tiny_qwen3: Path
) -> None:
    """Deficit round robin in measured time: the normalised shares differ by two quanta and steps at most."""
    models = (
        ModelOptions(path=str(tiny_llama), weight=1.0),
        ModelOptions(path=str(tiny_qwen3), weight=3.0),
    )
    engine = make_engine(models=models, kv_memory=24 * MIB, max_num_seqs=4)
    for request_id in range(40):
        add(engine, request_id, [5] * 8, model=request_id % 2, max_tokens=490, **GREEDY)
    longest = [0, 0]
    used = [(0, 0)]
    engine.step()
    while all(model.running + model.waiting for model in engine.stats()):
        used.append((engine.counters[0].device_us, engine.counters[1].device_us))
        for index in range(2):
            longest[index] = max(longest[index], used[-1][index] - used[-2][index])
        engine.step()
    quantum = 10_000
    assert min(used[-1]) > quantum
    for light, heavy in used:
        assert abs(light / 1.0 - heavy / 3.0) <= 2 * (quantum + max(longest))


def test_an_idle_model_leaves_the_device_to_the_other(tiny_llama: Path, tiny_qwen3: Path) -> None:
    models = (
        ModelOptions(path=str(tiny_llama), weight=1.0),
        ModelOptions(path=str(tiny_qwen3), weight=1000.0),
    )
    engine = make_engine(models=models, kv_memory=24 * MIB)
    add(engine, 1, [5] * 8, model=0, max_tokens=40, **GREEDY)
    for _ in range(40):
        assert engine.step()
    assert not engine.has_work()


def test_a_missing_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        make_engine(tmp_path / "nowhere")


def test_an_arena_that_does_not_fit_names_the_amounts(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_memory is 1024.0 TiB, but only .* is free"):
        make_engine(tiny_llama, kv_memory=2**50)
