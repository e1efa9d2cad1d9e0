"""Models that sleep and cannot be woken, as the device's memory is somebody else's by then, and where they lie."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from airi import _core
from airi.engine import Engine, ModelOptions
from airi.engine.backends.cuda.arena import DeviceArena
from airi.engine.backends.cuda.buffers import StepBuffers
from airi.engine.backends.cuda.device import CpuDevice
from airi.engine.control import Control
from airi.errors import MemoryBudgetError
from airi.outputs import Output
from airi.transport.messages import Wake

from .engine_helpers import GREEDY, MIB, add, gather, make_engine, run
from .tiny_models import Reference

ASLEEP, AWAKE = _core.ModelState.ASLEEP, _core.ModelState.AWAKE


def engine_of(*paths: Path) -> Engine:
    models = tuple(ModelOptions(path=str(path), sleepable=True) for path in paths)
    return make_engine(models=models, kv_memory=24 * MIB, backend="cuda", device="cpu", block_size=16)


def storage_of(engine: Engine) -> torch.UntypedStorage:
    arena = engine._hosting.arena
    assert isinstance(arena, DeviceArena)
    return arena._memory.untyped_storage()


def texts(engine: Engine, references: list[Reference], model: int = 0) -> list[list[int]]:
    for index, reference in enumerate(references):
        add(engine, index, reference.prompt, model=model, max_tokens=len(reference.tokens), **GREEDY)
    outputs = run(engine)
    return [outputs[index].tokens for index in range(len(references))]


def refuse_once(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Has a device refuse what takes memory, the first time."""
    takes = getattr(owner, name)
    refused: list[bool] = []

    def take(*args: Any, **kwargs: Any) -> Any:
        if not refused:
            refused.append(True)
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 24.00 MiB. GPU 0 has too little."
            )
        return takes(*args, **kwargs)

    patch.setattr(owner, name, take)


@pytest.mark.parametrize(
    ("owner", "name", "what"),
    [
        (torch.UntypedStorage, "resize_", "the engine: 8.0 MiB are missing: a KV arena of 28.0 MiB"),
        (StepBuffers, "__init__", "llama: 8.0 MiB are missing: workspaces"),
    ],
)
def test_a_model_for_which_there_is_no_memory_sleeps_on_and_can_be_woken_later(
    tiny_llama: Path,
    llama_references: list[Reference],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    what: str,
) -> None:
    engine = engine_of(tiny_llama)
    engine.sleep(0)
    engine.release_memory()
    monkeypatch.setattr(CpuDevice, "memory", lambda _: (16 * MIB, 80 * MIB))
    refuse_once(monkeypatch, owner, name)
    with pytest.raises(MemoryBudgetError) as caught:
        engine.wake("llama")
    assert str(caught.value).startswith(
        f"llama stays asleep: {what} do not fit cpu, of whose 80.0 MiB 16.0 MiB are"
    )
    assert "\n" not in str(caught.value)
    assert engine.model_state(0) == ASLEEP
    assert not engine.is_moving
    assert storage_of(engine).nbytes() == 0, "others need it more"
    engine.wake("llama")
    assert engine.model_state(0) == AWAKE
    assert engine.wake_failure(0) is None
    assert texts(engine, llama_references) == [reference.tokens for reference in llama_references]
    engine.check_invariants()


def test_others_run_on_beside_a_model_that_cannot_be_woken(
    tiny_llama: Path,
    tiny_qwen3: Path,
    llama_references: list[Reference],
    qwen3_references: list[Reference],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(tiny_llama, tiny_qwen3)
    for model in range(2):
        engine.sleep(model)
    engine.release_memory()
    engine.wake("llama")
    for index, reference in enumerate(llama_references):
        add(engine, index, reference.prompt, max_tokens=len(reference.tokens), **GREEDY)
    outputs: dict[int, Output] = {}
    for _ in range(3):
        gather(outputs, engine.step())
    assert engine._pipeline.is_running
    refuse_once(monkeypatch, StepBuffers, "__init__")
    engine.wake("qwen3")  # no error: it has to wait for the step that runs
    assert engine.is_moving
    while engine.has_work():
        gather(outputs, engine.step())
    assert [outputs[i].tokens for i in range(len(llama_references))] == [r.tokens for r in llama_references]
    assert engine.model_state(1) == ASLEEP
    assert str(engine.wake_failure(1)).startswith("qwen3 stays asleep: qwen3: ")
    engine.wake("qwen3")
    assert texts(engine, qwen3_references, 1) == [reference.tokens for reference in qwen3_references]
    engine.check_invariants()


def test_a_client_that_wakes_a_model_is_told_why_it_sleeps_on() -> None:
    failure = MemoryBudgetError("m stays asleep: 1 B are missing")
    states = {0: _core.ModelState.RECLAIMING}
    told: list[tuple[int, object]] = []
    engine = SimpleNamespace(
        find_model=lambda _: SimpleNamespace(index=0),
        wake=lambda _: None,
        wake_failure=lambda _: failure,
        model_state=states.__getitem__,
    )
    server = SimpleNamespace(reply=lambda call, error=None: told.append((call, error)))
    control = Control(cast(Any, engine), cast(Any, server), lambda: None)
    control.handle(Wake(7, "m"))
    control.answer_settled()
    assert not told
    states[0] = ASLEEP
    control.answer_settled()
    assert told == [(7, failure)]


def test_weights_lie_in_the_pinned_memory_of_the_last_sleep(
    tiny_llama: Path, llama_references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_llama)
    sizes: list[int] = []
    pinned = CpuDevice.pinned

    def counted(self: CpuDevice, num_bytes: int) -> torch.Tensor:
        sizes.append(num_bytes)
        return pinned(self, num_bytes)

    monkeypatch.setattr(CpuDevice, "pinned", counted)
    for _ in range(3):
        engine.sleep(0)
        engine.release_memory()
        engine.wake(0)
        assert texts(engine, llama_references[:1]) == [llama_references[0].tokens]
    assert sizes == [engine._fleet._home(0)[1]]


def test_pinned_memory_of_another_size_is_given_back_before_more_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arena = DeviceArena(CpuDevice(), MIB)
    small = arena.room(4096)
    kept = weakref.ref(small)
    arena.free(small)
    del small
    assert kept() is not None
    pinned = CpuDevice.pinned

    def alone(self: CpuDevice, num_bytes: int) -> torch.Tensor:
        assert kept() is None
        return pinned(self, num_bytes)

    monkeypatch.setattr(CpuDevice, "pinned", alone)
    assert len(arena.room(8192)) == 8192


def test_a_model_whose_weights_the_host_has_no_room_for_stays_awake(
    tiny_llama: Path, llama_references: list[Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(tiny_llama)

    def refuses(_: object, num_bytes: int) -> torch.Tensor:
        raise RuntimeError(f"CUDA error: {num_bytes} bytes are not pinned\nmore of it")

    with monkeypatch.context() as patch:
        patch.setattr(CpuDevice, "pinned", refuses)
        with pytest.raises(
            MemoryBudgetError, match=r"to save weights in, are not to be had \(CUDA error: .*\); free"
        ):
            engine.sleep("llama")
    assert engine.model_state(0) == AWAKE
    assert texts(engine, llama_references[:1]) == [llama_references[0].tokens]
    engine.sleep("llama")
    assert engine.model_state(0) == ASLEEP
