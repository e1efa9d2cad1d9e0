"""When a device's memory is free again, and how much of the host's is pinned for it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from airi.engine import Engine, ModelOptions
from airi.engine.backends.cuda.pinned import registered

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


class Driver:
    """Remembers what is pinned."""

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        self.pinned[address] = num_bytes
        return flags

    def cudaHostUnregister(self, address: int) -> None:
        del self.pinned[address]


def test_large_pinned_memory_has_the_size_asked_for_and_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "check_error", lambda error: None)
    memory = registered(5 * 4096, torch.device("cuda:1"))
    assert driver.pinned == {memory.data_ptr(): 5 * 4096}
    assert memory.dtype is torch.uint8
    assert not memory.any()
    part = memory[4096:8192]
    part.fill_(7)
    del memory
    assert driver.pinned, "a part is in use still"
    del part
    assert not driver.pinned


def test_memory_that_is_not_pinned_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(error: int) -> None:
        raise RuntimeError(f"CUDA error {error}")

    told = []

    def ones(count: int, device: torch.device) -> torch.Tensor:
        told.append((count, device))
        raise RuntimeError("CUDA error: out of memory")

    driver = SimpleNamespace(cudaHostRegister=lambda *_: 2)
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "check_error", refuses)
    with pytest.raises(RuntimeError, match="CUDA error 2"):
        registered(4096, torch.device("cuda:0"))
    assert told == [(1, torch.device("cuda:0"))], "or the next step would be told"
