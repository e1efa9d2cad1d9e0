"""When a device's memory is free again, and how much of the host's is pinned for it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from airi.engine import Engine, ModelOptions

from .engine_helpers import GREEDY, MIB, add, make_engine, run


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """A process that serves freezes what it has loaded: cycles of it are never collected."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def engine(tiny_llama: Path, tiny_qwen3: Path) -> Engine:
    models = (
        ModelOptions(path=str(tiny_llama), kv_min=MIB),
        ModelOptions(path=str(tiny_qwen3), sleepable=True),
    )
    return make_engine(models=models, kv_memory=24 * MIB, backend="cuda", device="cpu", block_size=16)


def watched(model: Any) -> list[weakref.ref[torch.Tensor]]:
    """What only a model's weights and its buffers keep."""
    weight, buffer = model._weights.final_norm.tensor, model._bound._logits
    return [weakref.ref(weight), weakref.ref(buffer)]


def settle(engine: Engine) -> None:
    while engine.is_moving:
        engine.step()


def test_memory_of_a_removed_model_is_free_at_once(engine: Engine) -> None:
    add(engine, 1, [5, 6, 7], max_tokens=4, **GREEDY)
    run(engine)
    watched_tensors = watched(engine.models[0].runner.model)
    engine.remove_model(0)
    settle(engine)
    assert [ref() for ref in watched_tensors] == [None, None]


def test_buffers_are_free_before_a_model_gets_others(engine: Engine) -> None:
    model: Any = engine.models[1].runner.model
    _, buffer = watched(model)
    engine.remove_model(0)
    engine.sleep(1)
    settle(engine)
    engine.release_memory()
    engine.wake(1)
    settle(engine)
    assert model._bound is not None
    assert buffer() is None
