"""Prefixes that left the arena come back from host memory and from a disk, and no failure there changes a text."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from airi import _core
from airi._core import MemoryOpKind, parts
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.engine.tiers import DiskTier, KvTiers
from airi.errors import ConfigError
from airi.outputs import Output
from tests.engine.engine_helpers import GREEDY, MIB, add, gather, make_engine, run
from tests.engine.tiny_models import VOCAB_SIZE

GRANULE = _core.GRANULE_BYTES


def slow_steps() -> list[float]:
    """A step-time model to which every step seems to take a second: whatever can be loaded is."""
    model = parts.StepTimeModel()
    for i in range(200):
        chunk = (i % 2) * 40
        model.observe((1 + chunk, 1, 0, 0.0), 1e6 * (1 + chunk))
    return model.export_state()


SLOW = slow_steps()


def prompts(count: int, length: int = 100) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(3, VOCAB_SIZE, length).tolist() for _ in range(count)]


def make(path: Path, *, blocks: int = 16, **options: Any) -> Engine:
    block = make_engine(path).models[0].runner.model.bytes_per_block(16)
    return make_engine(path, kv_memory=blocks * block, dtype="float32", **options)


def rounds(engine: Engine, texts: Sequence[list[int]], count: int = 3) -> list[list[int]]:
    """Every prompt, round after round: in a small arena each has been evicted when it comes again."""
    outputs = []
    for _ in range(count):
        for text in texts:
            engine._runtime.step_time(0).import_state(SLOW)
            add(engine, 1, text, max_tokens=6, **GREEDY)
            outputs.append(run(engine)[1].tokens)
            engine.check_invariants()
    return outputs


def test_prefixes_come_back_from_host_memory(tiny_llama: Path) -> None:
    texts = prompts(4)
    wanted = rounds(make(tiny_llama), texts)
    engine = make(tiny_llama, host_kv_memory=2 * MIB)
    assert rounds(engine, texts) == wanted
    stats = engine.stats()[0]
    assert stats.tiers.loads > 0
    assert stats.hit_tokens > make(tiny_llama).stats()[0].hit_tokens
    assert stats.tiers.failures == 0


def test_prefixes_come_back_from_the_disk(tiny_llama: Path, tmp_path: Path) -> None:
    texts = prompts(8)
    wanted = rounds(make(tiny_llama), texts)
    block = make_engine(tiny_llama).models[0].runner.model.bytes_per_block(16)
    engine = make(
        tiny_llama, host_kv_memory=24 * block, disk_kv_path=str(tmp_path), disk_kv_memory=200 * block
    )
    assert rounds(engine, texts) == wanted
    stats = engine.stats()[0].tiers
    assert stats.spills > 0
    assert stats.fetches > 0
    assert stats.failures == 0
    assert list(tmp_path.iterdir()) == [], "the file has no name"


@pytest.mark.parametrize("kind", [k for k in MemoryOpKind if k != MemoryOpKind.ZERO])
def test_what_fails_is_computed(
    tiny_llama: Path, tmp_path: Path, kind: MemoryOpKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second operation of a kind fails, and leaves garbage where it was to write."""
    execute = KvTiers._execute
    seen = 0

    def failing(self: KvTiers, op: int, source: int, to: int, granules: int) -> None:
        nonlocal seen
        if op == kind:
            seen += 1
            if seen % 2:
                target = self._arena if op == MemoryOpKind.LOAD else self._host
                if op != MemoryOpKind.SPILL:
                    self._part(target, to, granules)[:] = 0xFF
                raise OSError(errno.EIO, "injected")
        execute(self, op, source, to, granules)

    texts = prompts(8)
    wanted = rounds(make(tiny_llama), texts)
    block = make_engine(tiny_llama).models[0].runner.model.bytes_per_block(16)
    monkeypatch.setattr(KvTiers, "_execute", failing)
    engine = make(
        tiny_llama, host_kv_memory=24 * block, disk_kv_path=str(tmp_path), disk_kv_memory=200 * block
    )
    assert rounds(engine, texts) == wanted
    assert engine.stats()[0].tiers.failures > 0


def test_a_full_disk_costs_nothing_but_what_it_would_have_held(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    texts = prompts(8)
    wanted = rounds(make(tiny_llama), texts)
    block = make_engine(tiny_llama).models[0].runner.model.bytes_per_block(16)
    engine = make(
        tiny_llama, host_kv_memory=24 * block, disk_kv_path=str(tmp_path), disk_kv_memory=200 * block
    )
    monkeypatch.setattr(os, "pwrite", no_space)
    assert rounds(engine, texts) == wanted
    stats = engine.stats()[0].tiers
    assert stats.failures > 0
    assert stats.spills == stats.fetches == 0


def test_models_that_share_slabs_have_tiers(tiny_llama: Path, tiny_qwen3: Path) -> None:
    """What a model that falls asleep has computed is kept in the host, and every text is the same."""
    texts = prompts(3)

    def serve(**options: Any) -> tuple[list[list[int]], Engine]:
        models = tuple(ModelOptions(path=str(path), sleepable=True) for path in (tiny_llama, tiny_qwen3))
        engine = make_engine(models=models, kv_memory=24 * MIB, dtype="float32", **options)
        for request_id, text in enumerate(texts):
            add(engine, request_id, text, model="llama", max_tokens=20, **GREEDY)
        outputs: dict[int, Output] = {}
        for _ in range(8):
            gather(outputs, engine.step())
        engine._runtime.step_time(0).import_state(SLOW)
        engine.sleep("llama")
        for request_id in range(10, 14):
            add(engine, request_id, [request_id] * 8, model="qwen3", max_tokens=200, **GREEDY)
        while any(request_id not in outputs for request_id in range(10, 14)):
            gather(outputs, engine.step())
        engine.wake("llama")
        engine._runtime.step_time(0).import_state(SLOW)
        while engine.has_work():
            gather(outputs, engine.step())
            engine.check_invariants()
        return [outputs[request_id].tokens for request_id in sorted(outputs)], engine

    wanted, _ = serve()
    found, engine = serve(host_kv_memory=8 * MIB)
    assert found == wanted
    stats = engine.stats()[0]
    assert stats.swaps > 0
    assert stats.tiers.stores > 0
    assert stats.tiers.failures == 0


def random_block(seed: int, granules: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, granules * GRANULE, np.uint8)


def test_bytes_survive_every_tier(tmp_path: Path) -> None:
    """T4."""
    arena = np.zeros(8 * GRANULE, np.uint8)
    arena[: 2 * GRANULE] = block = random_block(1)
    tiers = KvTiers(arena, host_bytes=4 * GRANULE, disk_folder=str(tmp_path), disk_bytes=8 * GRANULE)
    ended: list[tuple[int, bool]] = []
    tiers.report_to(lambda ids, ok, _: ended.extend(zip(ids.tolist(), ok.tolist(), strict=True)))
    path = [
        (MemoryOpKind.STORE, 1, 0, 2, 2),
        (MemoryOpKind.ZERO, -1, 0, 0, 2),
        (MemoryOpKind.SPILL, 2, 2, 4, 2),
        (MemoryOpKind.FETCH, 3, 4, 0, 2),
        (MemoryOpKind.LOAD, 4, 0, 6, 2),
    ]
    for count, op in enumerate(path, 1):
        tiers.begin(np.array([op], np.int64))
        while len(ended) < count - (count > 1):
            tiers.wait(1.0)
    assert ended == [(1, True), (2, True), (3, True), (4, True)]
    assert np.array_equal(arena[6 * GRANULE :], block)
    assert not arena[: 2 * GRANULE].any()
    tiers.close()


def test_a_disk_does_not_give_back_what_was_not_written(tmp_path: Path) -> None:
    disk = DiskTier(str(tmp_path), 8 * GRANULE)
    block = random_block(2)
    disk.write(2, block)
    read = np.zeros_like(block)
    disk.read(2, read)
    assert np.array_equal(read, block)
    with pytest.raises(OSError, match="checksum"):
        disk.read(4, read)
    os.pwrite(disk._fd, b"x" if block[5] != ord("x") else b"y", 2 * GRANULE + 5)
    with pytest.raises(OSError, match="checksum"):
        disk.read(2, read)
    with pytest.raises(OSError, match="of 8192 bytes"):
        disk.read(7, read)


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = DiskTier(str(tmp_path), 8 * GRANULE)
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole(fd, data[:1000], at))
    block = random_block(3)
    disk.write(0, block)
    read = np.zeros_like(block)
    disk.read(0, read)
    assert np.array_equal(read, block)


def test_a_folder_without_the_space_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"disk_kv_path is .*: 1\.0 KiB cannot be taken there"):
        DiskTier(str(tmp_path / "missing"), 1024)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host_kv_memory": 1}, "host_kv_memory is 1 B; it must hold a KV block, which has"),
        ({"host_kv_memory": 2**50}, "host_kv_memory is 1024.0 TiB, but only .* is free beside the weights"),
        (
            {"host_kv_memory": MIB, "disk_kv_path": "/tmp", "disk_kv_memory": 1},
            "disk_kv_memory is 1 B; it must hold a KV block",
        ),
        (
            {"host_kv_memory": MIB, "disk_kv_path": "/tmp", "disk_kv_memory": 2**50},
            "disk_kv_path is /tmp: 1024.0 TiB cannot be taken there",
        ),
    ],
)
def test_tiers_that_cannot_be_are_said_before_the_core_plans_for_them(
    tiny_llama: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        make_engine(tiny_llama, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host_kv_memory": MIB, "prefix_caching": False}, "it must be 0 without prefix caching"),
        ({"disk_kv_path": "/tmp"}, "give both or none"),
        ({"disk_kv_memory": 4096, "host_kv_memory": 4096}, "give both or none"),
        ({"disk_kv_memory": 4096, "disk_kv_path": "/tmp"}, "host_kv_memory is 0"),
        ({"host_kv_memory": -1}, "host_kv_memory is -1"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        EngineOptions(models=(ModelOptions(path="x"),), **options)
