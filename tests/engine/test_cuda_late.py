"""What holds for engines holds where a device is as late as it may be: see `late_device`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from airi.engine import ModelOptions
from airi.engine.backends.cuda.arena import DeviceArena
from tests.engine import engine_helpers
from tests.engine.engine_helpers import GREEDY, MIB, add, make_engine, run
from tests.engine.late_device import LateDevice, install
from tests.engine.test_cuda_engine import FEATURES, serve, tokens
from tests.engine.test_engine_fleet import (  # noqa: F401  # collected here once more
    test_a_model_that_is_added_computes_what_it_computes_alone,
    test_memory_is_released_while_all_sleep_and_nobody_reads_what_was_there,
    test_texts_are_the_same_across_sleep_and_wake,
)
from tests.engine.test_engine_invariance import (  # noqa: F401
    alone,
    test_preemption_does_not_change_the_text,
    test_prefix_hits_do_not_change_the_text,
)
from tests.engine.test_engine_tiers import (  # noqa: F401
    test_models_that_share_slabs_have_tiers,
    test_prefixes_come_back_from_host_memory,
    test_prefixes_come_back_from_the_disk,
)


@pytest.fixture(autouse=True)
def _late(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engine_helpers, "PLATFORM", {"backend": "cuda", "device": "cpu", "block_size": 16})
    monkeypatch.setattr(engine_helpers.Exact, "tolerance", 1e-4)
    made = install(monkeypatch)
    yield
    assert [device.faults for device in made if device.faults] == []


@pytest.mark.parametrize("name", FEATURES)
def test_texts_are_those_of_the_cpu(tiny_llama: Path, name: str) -> None:
    expected = serve(tiny_llama, FEATURES[name], backend="cpu")
    assert tokens(serve(tiny_llama, FEATURES[name])) == tokens(expected)


def test_models_that_share_buffers_do_not_read_each_others(tiny_llama: Path, tiny_qwen3: Path) -> None:
    def texts(**options: Any) -> list[list[int]]:
        models = tuple(ModelOptions(path=str(path)) for path in (tiny_llama, tiny_qwen3))
        engine = make_engine(models=models, kv_memory=24 * MIB, **options)
        for i in range(12):
            add(engine, i, [7 + i] * (5 + 9 * i), model=i % 2, max_tokens=20 + i, **GREEDY)
        outputs = run(engine)
        return [outputs[i].tokens for i in range(12)]

    assert texts() == texts(backend="cpu")


def test_a_late_device_finds_what_a_host_does_too_early() -> None:
    device = LateDevice()
    host, memory = device.pinned(4), device.zeros(4)
    with device.active():
        memory.copy_(host, non_blocking=True)
        host[1] = 1
        device.record().synchronize()
        assert device.faults == ["4 bytes were written while they were copied to the device"]
        host.copy_(memory, non_blocking=True)
        ended = device.record()
        assert host.tolist() == [0xFF] * 4
        ended.synchronize()
        assert host.tolist() == [0] * 4
        host.fill_(3)
        with device.aside():
            device.wait(device.record())
            memory.copy_(host, non_blocking=True)
            loaded = device.record()
        assert memory.tolist() == [0xFF] * 4
        memory.fill_(5)
        loaded.synchronize()
        assert torch.equal(memory, host)


def test_what_was_saved_is_there_when_that_returns_and_is_not_needed_once_it_is_back() -> None:
    device = LateDevice()
    arena = DeviceArena(device, MIB)
    arena.part(4096, 8192)[:] = 7
    room = arena.room(8192)
    arena.save(4096, room)
    assert (room == 7).all()
    arena.zero(4096, 8192)
    arena.restore(4096, room)
    room[:] = 9  # the next to sleep
    device.synchronize()
    assert device.faults == []
    assert (arena.part(4096, 8192) == 7).all()
