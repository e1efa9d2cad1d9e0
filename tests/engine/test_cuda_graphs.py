"""Steps that are replayed compute what steps computed that were enqueued anew: see `taped_device`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from airi.engine import Engine
from airi.engine.backends.cuda import model as models
from airi.engine.backends.cuda.attention import Limits
from airi.errors import EngineDeadError
from airi.outputs import Output
from tests.engine.engine_helpers import GREEDY, MIB, add, make_engine, run
from tests.engine.taped_device import TapedDevice, install
from tests.engine.test_cuda_engine import FEATURES, tokens
from tests.engine.test_cuda_engine import serve as sampled

ON_DEVICE: dict[str, Any] = {"backend": "cuda", "device": "cpu", "block_size": 16}


def serve(engine: Engine) -> dict[int, Output]:
    """Rows come and go, with contexts on both sides of every window."""
    for i in range(7):
        add(engine, i, list(range(3, 4 + 11 * i)), max_tokens=6 + 9 * i, logprobs=2, **GREEDY)
    return run(engine)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("gemma3", {}),
        ("qwen3-moe", {}),
        ("olmo2", {}),
        ("llama", {"kv_cache_dtype": "int8"}),
        ("llama", {"dtype": "bfloat16", "quantization": "int8"}),
        ("qwen3-moe", {"dtype": "bfloat16", "quantization": "int8"}),
    ],
    ids=str,
)
def test_replayed_steps_are_those_of_now(
    name: str,
    options: dict[str, Any],
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {**ON_DEVICE, **options, "kv_memory": 16 * MIB}
    wanted = serve(make_engine(checkpoint(name), **options))
    made = install(monkeypatch)
    assert tokens(serve(make_engine(checkpoint(name), **options))) == tokens(wanted)
    assert made[0].num_replays > 40


@pytest.mark.parametrize("name", FEATURES)
def test_no_step_waits_for_the_device(tiny_llama: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it raises, which ends the engine."""
    wanted = sampled(tiny_llama, FEATURES[name], **ON_DEVICE)
    made = install(monkeypatch)
    assert tokens(sampled(tiny_llama, FEATURES[name], **ON_DEVICE)) == tokens(wanted)
    assert made[0].num_replays > 20


def test_quantised_prompts_do_not_wait_either(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their contexts are multiplied out first, in waves where they are long."""
    monkeypatch.setattr(models, "Limits", lambda: Limits(workspace=1, scratch=1))
    install(monkeypatch)
    serve(make_engine(tiny_llama, kv_cache_dtype="int8", **ON_DEVICE))


def test_a_tape_repeats_what_was_captured_and_waits_for_nothing() -> None:
    device, x, out = TapedDevice(), torch.ones(2), torch.zeros(2)
    number = 2.0

    def work() -> None:
        torch.add(x * number, 1.0, out=out)

    graph = device.capture(work)
    number = 5.0
    x[1] = 4.0
    graph.replay()
    assert out.tolist() == [3.0, 9.0]
    with pytest.raises(EngineDeadError, match="waits for the device"):
        device.capture(lambda: x.sum().item())
    with pytest.raises(EngineDeadError, match="waits for the device"):
        device.capture(lambda: x.nonzero())
    with pytest.raises(EngineDeadError, match="waits for the device"):
        device.capture(lambda: x[x > 1])
