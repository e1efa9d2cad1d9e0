"""How the cuda backend brings weights to a device: staged, quantised, cut for several devices."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from airi.engine.backends import LoadOptions
from airi.engine.backends.cuda.device import CpuDevice
from airi.engine.backends.cuda.model import CudaBackend
from airi.engine.backends.cuda.quantise import Quantiser
from airi.engine.backends.cuda.reference_ops import ReferenceOps
from airi.engine.backends.cuda.shards import Shard
from airi.engine.backends.cuda.staging import Stager
from airi.engine.backends.cuda.tensors import FewRows, Linear, Weight
from airi.engine.checkpoint import RawTensor
from airi.errors import ConfigError
from tests.engine.cuda_harness import HostModel, load
from tests.engine.harness import Harness, relative_error
from tests.engine.tiny_models import Reference, prompts

Checkpoints = Callable[[str], Path]
References = Callable[[str], list[Reference]]
FLOAT32_TOLERANCE = 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_staging_takes_rows_of_several_blocks_in_pieces(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    blocks = [
        RawTensor("a", "F32", rng.normal(size=(5, 12)).astype(np.float32)),
        RawTensor("b", "F32", rng.normal(size=(9, 12)).astype(np.float32)),
    ]
    rows, columns = [range(3, 7), range(1), range(9, 14)], range(2, 11)
    target = torch.zeros((10, 9), dtype=dtype)
    stager = Stager(CpuDevice(), piece_bytes=100)  # two rows
    stager.rows(blocks, target, rows, columns)
    stager.finish()
    whole = np.concatenate([block.data for block in blocks])
    expected = np.concatenate([whole[part.start : part.stop, 2:11] for part in rows])
    assert torch.equal(target, torch.from_numpy(expected).to(dtype))


def test_loading_reports_every_byte_once(checkpoint: Checkpoints) -> None:
    for name in ("llama", "llama-linear-tied", "qwen3-moe"):
        seen: list[tuple[int, int]] = []
        report = LoadOptions(progress=lambda done, total, seen=seen: seen.append((done, total)))  # type: ignore[misc]
        CudaBackend(CpuDevice()).load_model(checkpoint(name), report)
        done = [value for value, _ in seen]
        assert done == sorted(set(done))
        assert len({total for _, total in seen}) == 1
        assert done[-1] == seen[0][1]


def test_tied_embeddings_are_held_once(checkpoint: Checkpoints) -> None:
    tied, untied = (load(checkpoint(name)).decoder.weight_bytes for name in ("llama-linear-tied", "llama"))
    padded = -(-323 // 64) * 64
    assert untied - tied == padded * 64 * 4


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "llama-yarn-biases", "mixtral"])
def test_8_bit_weights_stay_close_and_take_less_memory(
    name: str, quantization: str, checkpoint: Checkpoints, references: References
) -> None:
    reference = references(name)[-1]
    model = load(checkpoint(name), quantization=quantization)
    (logits,) = Harness(model).step({0: reference.prompt}, all_logits=True)
    error = np.sqrt(np.square(logits - reference.prompt_logits).mean())
    scale = np.sqrt(np.square(reference.prompt_logits).mean())
    # Where a router's choice flips, the error is not one of rounding.
    tolerance = 0.5 if name == "mixtral" else 0.1 if quantization == "int8" else 0.4
    assert FLOAT32_TOLERANCE < error / scale < tolerance
    assert model.decoder.weight_bytes < 0.7 * load(checkpoint(name)).decoder.weight_bytes


@pytest.mark.parametrize("quantization", ["int8", "fp8"])
def test_few_rows_and_many_are_multiplied_with_the_same_weights(quantization: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 64, generator=generator)
    few_rows = FewRows(ReferenceOps(), torch.device("cpu"))
    bias = Weight(torch.randn(40, generator=generator))
    linear = Linear(Quantiser(quantization, CpuDevice()).projection(Weight(weight)), bias, few_rows)
    x = torch.randn(FewRows.MOST + 1, 64, generator=generator)
    many = linear(x, torch.empty(len(x), 40))
    for count in (1, 16, 17, 64, 65, 128, 129, FewRows.MOST):
        found = linear(x[:count], torch.full((count, 40), torch.nan))
        torch.testing.assert_close(found, many[:count])
    plain = x @ weight.T + bias.tensor
    assert 1e-4 < (many - plain).norm() / plain.norm() < 0.05


def test_quantisation_without_torchao_says_what_to_install(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(
        ConfigError, match=r"quantization is 'int8'; it needs torchao: pip install 'airi\[torchao\]'"
    ):
        load(checkpoint("llama"), quantization="int8")


class ThreadCollective:
    """One of several devices that are threads."""

    def __init__(self, shard: Shard, shared: list[torch.Tensor | None], barrier: threading.Barrier) -> None:
        self.shard = shard
        self._shared = shared
        self._barrier = barrier

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._shared[self.shard.rank] = x.clone()
        self._barrier.wait(60)
        found = [part for part in self._shared if part is not None]
        self._barrier.wait(60)
        return found

    def all_reduce(self, x: torch.Tensor) -> None:
        x.copy_(torch.stack(self._exchange(x)).sum(0))

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._exchange(x), -1)


def run_on(world: int, path: Path) -> list[NDArray[np.float32]]:
    """Each device's logits of a step of prompts and one of decoding."""
    shared: list[torch.Tensor | None] = [None] * world
    barrier = threading.Barrier(world)

    def run(rank: int) -> NDArray[np.float32]:
        collective = ThreadCollective(Shard(rank, world), shared, barrier)
        backend = CudaBackend(CpuDevice(), collective=collective)
        options = LoadOptions(tensor_parallel_size=world)
        harness = Harness(HostModel(backend.load_model(path, options)))
        first = harness.step(dict(enumerate(prompts())), all_logits=True)
        return np.concatenate(first + harness.step({slot: [slot + 3] for slot in range(4)}))

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(run, range(world)))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(
    "name", ["llama-linear-tied", "llama-yarn-biases", "phi3", "olmo2", "gemma3", "mixtral", "qwen3-moe"]
)
def test_devices_that_share_a_model_compute_what_one_does(
    name: str, world: int, checkpoint: Checkpoints
) -> None:
    (alone,) = run_on(1, checkpoint(name))
    for found in run_on(world, checkpoint(name)):
        assert relative_error(found, alone) < FLOAT32_TOLERANCE


def test_a_cut_that_does_not_divide_is_refused(checkpoint: Checkpoints) -> None:
    barrier = threading.Barrier(1)
    backend = CudaBackend(CpuDevice(), collective=ThreadCollective(Shard(0, 3), [None], barrier))
    with pytest.raises(
        ConfigError, match="tensor_parallel_size is 3; it must divide the model's num_attention_heads"
    ):
        backend.load_model(checkpoint("llama"), LoadOptions(tensor_parallel_size=3))
