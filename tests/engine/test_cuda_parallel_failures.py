"""What goes wrong on one of several devices ends the others too, and is told in one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from airi.engine import EngineOptions, ModelOptions, platform
from airi.engine.backends.cuda import team as teams
from airi.engine.backends.cuda.device import CpuDevice
from airi.engine.backends.cuda.parallel_platform import ParallelPlatform
from airi.engine.backends.cuda.ranks import Allocate, Changes, Load, Order, Probe
from airi.engine.backends.cuda.team import Team
from airi.errors import CheckpointError, ConfigError, EngineDeadError, MemoryBudgetError
from tests.engine import watched_worker
from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.parallel_helpers import wait_until_ended, workers_of

PROMPT = [5, 6, 7]
_BROKEN = 40
TWO: dict[str, Any] = {"backend": "cuda", "device": "cpu", "tensor_parallel_size": 2}


@pytest.fixture(autouse=True)
def _no_worker_stays() -> Iterator[None]:
    before = workers_of(os.getpid())
    yield
    assert workers_of(os.getpid()) == before


class AbsentDevice(CpuDevice):
    """Says that it is a GPU, so that the workers look for more of them."""

    is_host = False
    description = "cuda:0 (none)"


def make_team(world: int = 2, device: CpuDevice | None = None) -> Team:
    return Team(device or CpuDevice(), world, first_device=0, max_rows=8, max_tokens=64)


def load(path: object) -> Load:
    return Load("some", str(path), "auto", None, "auto", None)


@pytest.mark.parametrize(
    ("order", "kind", "message"),
    [
        (load("/none/such"), CheckpointError, r"^rank 1 \(cpu\): .*/none/such"),
        (
            Allocate(1 << 62),
            MemoryBudgetError,
            r"^rank 1 \(cpu\): .* are missing: a KV arena of .*kv_memory$",
        ),
    ],
)
def test_errors_of_a_worker_keep_their_kind_and_name_the_rank(
    order: Order, kind: type[Exception], message: str
) -> None:
    team = make_team()
    with pytest.raises(kind, match=message):
        team.ask(order)
    assert not workers_of(os.getpid())
    with pytest.raises(kind, match=message):
        team.ask(Probe())


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"rank 1 \(cuda:1\): .*torch"):
        make_team(device=AbsentDevice())


def test_a_worker_that_fails_in_a_step_ends_the_team() -> None:
    team = make_team()
    team.tell(Changes(5, 1))  # of a model that there is none of
    for shape in ((1, 3), (1,), (1, 2)):
        team.group.broadcast(torch.zeros(shape, dtype=torch.int32))
    for _ in range(2):
        with pytest.raises(EngineDeadError, match=r"^rank 1 \(cpu\): IndexError: list index out of range$"):
            team.ask(Probe())


def test_more_devices_than_there_are_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = "there are 2 GPUs, cuda:0 to cuda:1"
    monkeypatch.setattr(platform, "obstacle", lambda index, count=1: found if count > 2 else None)
    models = (ModelOptions(path="m"),)
    with pytest.raises(ConfigError) as caught:
        platform.platform_of(EngineOptions(models=models, device="cuda", tensor_parallel_size=4))
    assert str(caught.value) == f"tensor_parallel_size is 4; {found}"


def test_a_failure_of_the_first_rank_ends_the_team() -> None:
    team = make_team(world=1)
    with (
        pytest.raises(EngineDeadError, match=r"rank 0 \(cpu\): RuntimeError: no such kernel$"),
        team.lockstep(),
    ):
        raise RuntimeError("no such kernel\nmore of it")
    with pytest.raises(EngineDeadError, match="no such kernel"):
        team.tell(Probe())
    team.close()
    with pytest.raises(EngineDeadError, match="no such kernel"):
        team.raise_if_lost()


def test_a_killed_worker_ends_the_engine_at_once(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, **TWO)
    (worker,) = workers_of(os.getpid())
    for request_id in range(2):
        add(engine, request_id, PROMPT, max_tokens=400, **GREEDY)
    for _ in range(5):
        engine.step()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(EngineDeadError, match=r"rank 1 \(cpu\) ended with signal SIGKILL"):
        run(engine)
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            engine.step()
    engine.close()
    engine.close()


def test_what_is_not_a_number_is_gone_from_blocks_of_every_device_that_others_fill(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _with_a_token_that_is_not_a_number(tiny_llama, tmp_path / "broken")
    monkeypatch.setattr(teams, "_WORKER", watched_worker.NAME)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    engine = make_engine(path, **TWO, block_size=16, kv_memory=16 * 8192)  # 16 blocks
    platform = engine._hosting.platform
    assert isinstance(platform, ParallelPlatform)

    def num_not_finite() -> list[int]:
        ours = watched_worker.num_not_finite(engine._hosting.arena.part(0, 16 * 8192))
        return [ours, *platform._team.ask(Probe())]

    assert num_not_finite() == [0, 0]
    add(engine, 1, [_BROKEN] * 255, max_tokens=1, **GREEDY)
    assert "not-a-number" in str(run(engine)[1].error)
    assert min(num_not_finite()) > 15 * 8192 // 4, "all blocks have some"
    add(engine, 2, PROMPT, max_tokens=1, **GREEDY)
    add(engine, 3, [9, *PROMPT] * 56, max_tokens=2, **GREEDY)  # together all blocks, two of them not whole
    outputs = run(engine)
    assert [outputs[index].finish_reason for index in (2, 3)] == ["length"] * 2
    assert num_not_finite() == [0, 0]
    engine.close()


def _with_a_token_that_is_not_a_number(checkpoint: Path, folder: Path) -> Path:
    """A copy in which the embedding of `_BROKEN` is not finite: nor are keys and values of it, on any device."""
    shutil.copytree(checkpoint, folder)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][_BROKEN] = torch.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


_SCRIPT = """
import sys
from airi.engine import Engine, EngineOptions, ModelOptions
from airi.sampling_params import SamplingParams

models = (ModelOptions(path=sys.argv[1]),)
options = {"backend": "cuda", "device": "cpu", "tensor_parallel_size": 2, "kv_memory": 8 << 20}
engine = Engine(EngineOptions(models=models, max_batch_tokens=64, max_num_seqs=2, **options))
sys.stdout.write("ready\\n")
sys.stdout.flush()
while True:
    if not engine.has_work():
        engine.add_request(1, 0, [5], SamplingParams(max_tokens=400, ignore_eos=True, temperature=0.0))
    engine.step()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_engine(number: signal.Signals, tiny_llama: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(tiny_llama)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        (worker,) = workers_of(process.pid)
        process.send_signal(number)
        process.wait()
    wait_until_ended(worker)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "reference"}, "tensor_parallel_size is 2; on CPUs it must be 1"),
        ({"backend": "cpu"}, "tensor_parallel_size is 2; on CPUs it must be 1"),
        ({"host_kv_memory": 4096}, "host_kv_memory is 4096; with tensor_parallel_size 2 it must be 0"),
        ({"kv_min": 4096}, "kv_min of m is 4096; with tensor_parallel_size 2 it must be None"),
        ({"kv_max": 4096}, "kv_max of m is 4096; with tensor_parallel_size 2 it must be None"),
        ({"sleepable": True}, "sleepable of m is True; with tensor_parallel_size 2 it must be False"),
    ],
)
def test_what_several_devices_do_not_do_is_refused(fields: dict[str, Any], message: str) -> None:
    own = {name: fields.pop(name) for name in ("kv_min", "kv_max", "sleepable") if name in fields}
    with pytest.raises(ConfigError) as caught:
        EngineOptions(**{**TWO, **fields}, models=(ModelOptions(path="m", **own),))
    assert str(caught.value) == message
