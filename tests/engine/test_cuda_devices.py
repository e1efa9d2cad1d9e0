"""Which device an engine takes, and what it says where that cannot be."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from airi.engine import EngineOptions, ModelOptions
from airi.engine.backends import LoadOptions
from airi.engine.backends.cuda import detect
from airi.engine.backends.cuda.budget import enough_memory
from airi.engine.backends.cuda.device import CpuDevice, CudaDevice
from airi.engine.backends.cuda.ops import triton_ops
from airi.engine.loader import open_model
from airi.engine.platform import HostPlatform, platform_of
from airi.errors import ConfigError, MemoryBudgetError
from airi.kernels.arch import ARCHS

from .engine_helpers import MIB, make_engine


def options(**fields: Any) -> EngineOptions:
    return EngineOptions(models=(ModelOptions(path="/m"),), threads=1, **fields)


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    driver: bool = True,
    cuda: str | None = "12.8",
    hip: str | None = None,
    devices: int = 1,
    capabilities: tuple[tuple[int, int], ...] = ((9, 0),),
    amd: str = "gfx942:sramecc+:xnack-",
    triton: bool = True,
) -> None:
    """A machine of this kind, as far as torch and the file system tell."""
    fake = SimpleNamespace(
        __version__="2.13.0",
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(
            is_available=lambda: devices > 0,
            device_count=lambda: devices,
            get_device_capability=lambda index: capabilities[index % len(capabilities)],
            get_device_properties=lambda index: SimpleNamespace(gcnArchName=amd),
            get_device_name=lambda index: "Device 3000",
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(detect, "DRIVER_FILES", ("/proc/self/status",) if driver else ("/nowhere/driver",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if triton else None)


@pytest.mark.parametrize(
    ("found", "device", "message"),
    [
        ({"cuda": None}, "cuda", "torch 2.13.0 is built without CUDA and ROCm; install a build for the GPU"),
        ({"devices": 0, "driver": False}, "cuda", "no driver was found (none of /nowhere/driver)"),
        ({"devices": 0}, "cuda", "there is a driver, but torch 2.13.0 for CUDA 12.8 finds no GPU"),
        ({"devices": 0, "cuda": None, "hip": "6.4"}, "cuda", "torch 2.13.0 for ROCm 6.4 finds no GPU"),
        ({}, "cuda:1", "there is 1 GPU, cuda:0 to cuda:0"),
        ({"devices": 3}, "cuda:7", "there are 3 GPUs, cuda:0 to cuda:2"),
        ({"triton": False}, "cuda:0", "triton is not installed, which the kernels need; install triton"),
        ({"capabilities": ((7, 5),)}, "cuda", "Device 3000 has compute capability 7.5; 8.0 is the least"),
        (
            {"cuda": None, "hip": "6.4", "amd": "gfx90a:xnack-"},
            "cuda",
            "Device 3000 is gfx90a; accepted: gfx942",
        ),
    ],
)
def test_a_device_that_cannot_be_used_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], device: str, message: str
) -> None:
    machine(monkeypatch, **found)
    with pytest.raises(ConfigError) as error:
        platform_of(options(device=device))
    said = str(error.value)
    assert said.startswith(f"device is {device!r}; ")
    assert message in said
    assert said.endswith(", or give 'cpu'")
    assert "\n" not in said
    assert error.value.field == "device"


def test_each_of_several_devices_must_be_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, devices=2, capabilities=((9, 0), (7, 5)))
    assert detect.obstacle(0) is None
    assert detect.obstacle(0, 2) == "Device 3000 has compute capability 7.5; 8.0 is the least"
    machine(monkeypatch, cuda=None, hip="6.4")
    assert detect.obstacle(0) is None


def test_architectures_of_amd_are_those_of_the_kernels() -> None:
    assert set(detect.AMD_ARCHITECTURES) == {name for name, arch in ARCHS.items() if arch.is_amd}


def test_without_torch_a_device_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ConfigError, match="device is 'cuda'; torch is not installed; install a build for the GPU"
    ):
        platform_of(options(device="cuda"))


def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_so_where_that_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(monkeypatch, triton=False)
    assert isinstance(platform_of(options()), HostPlatform)
    with pytest.raises(ConfigError) as error:
        platform_of(options(kv_cache_dtype="fp8"))
    assert str(error.value) == (
        "kv_cache_dtype is 'fp8'; triton is not installed, which the kernels need; install triton, and on CPUs it "
        "must be 'auto'"
    )
    machine(monkeypatch, driver=False)
    with pytest.raises(ConfigError, match="quantization is 'int8'; no GPU's driver was found, and on CPUs"):
        platform_of(options(quantization="int8"))


def test_auto_does_not_import_torch_where_there_is_no_driver() -> None:
    """It would take a second of every start."""
    program = (
        "import sys\n"
        "from airi.engine import EngineOptions, ModelOptions\n"
        "from airi.engine.backends.cuda import detect\n"
        "from airi.engine.platform import platform_of\n"
        "detect.DRIVER_FILES = ('/nowhere/driver',)\n"
        "platform_of(EngineOptions(models=(ModelOptions(path='/m'),)))\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_device_that_has_no_kernels_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: object) -> None:
        raise ValueError("device is Device 3000 (gfx906), accepted is sm_80, gfx942")

    monkeypatch.setattr("airi.kernels.arch.arch_of", unknown)
    with pytest.raises(ConfigError, match="gfx906") as error:
        triton_ops(torch.device("cpu"))
    assert error.value.field == "device"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"device": "tpu"}, "device is 'tpu'; accepted: auto, cpu, cuda, cuda:N"),
        ({"device": "cuda:x"}, "device is 'cuda:x'; accepted: auto, cpu, cuda, cuda:N"),
        ({"device": "cuda", "backend": "cpu"}, "backend is 'cpu'; on the device 'cuda' it must be"),
        ({"device": "cpu", "kv_cache_dtype": "fp8"}, "kv_cache_dtype is 'fp8'; on CPUs it must be 'auto'"),
        ({"backend": "reference", "quantization": "fp8"}, "quantization is 'fp8'; on CPUs it must be None"),
        ({"device": "cpu", "tensor_parallel_size": 2}, "tensor_parallel_size is 2; on CPUs it must be 1"),
        ({"kv_cache_dtype": "fp4"}, "kv_cache_dtype is 'fp4'; accepted: auto, fp8, int8"),
        ({"quantization": "awq"}, "quantization is 'awq'; accepted: fp8, int8"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0; it must be a whole number from 1 to 64"),
        ({"device": "cuda:1", "tensor_parallel_size": 2}, "device is 'cuda:1'; with tensor_parallel_size 2"),
    ],
)
def test_options_that_cannot_go_together_are_refused_in_a_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        options(**fields)
    assert str(error.value).startswith(message)
    assert error.value.field == message.split()[0]


class FullDevice(CpuDevice):
    """Has so much memory, and words it as torch does."""

    description = "cuda:0 (Device 3000)"

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def zeros(self, num_bytes: int) -> torch.Tensor:
        if num_bytes > self.left:
            gib = num_bytes / 2**30
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {gib:.2f} GiB. GPU 0 has a total capacity of 79.25 GiB"
            )
        self.left -= num_bytes
        return super().zeros(num_bytes)

    def pinned(self, num_bytes: int) -> torch.Tensor:
        return CpuDevice.zeros(self, num_bytes)

    def memory(self) -> tuple[int, int]:
        return self.left, 80 * 2**30


def test_memory_that_is_missing_at_the_start_is_named(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.engine.backends.cuda.device.CpuDevice", lambda: FullDevice(9 * MIB))
    with pytest.raises(MemoryBudgetError) as error:
        make_engine(tiny_llama, backend="cuda", device="cpu", kv_memory=2**33)
    assert "kv_memory is 8.0 GiB, but only" in str(error.value)
    monkeypatch.setattr("airi.engine.backends.cuda.device.CpuDevice", lambda: FullDevice(2 * MIB))
    table = {"max_num_seqs": 4096, "max_batch_tokens": 8, "block_size": 8}
    with pytest.raises(MemoryBudgetError) as error:
        make_engine(tiny_llama, backend="cuda", device="cpu", kv_memory=MIB, **table)
    said = str(error.value)
    assert said.startswith("llama: ")
    assert "missing: " in said
    assert "do not fit cuda:0 (Device 3000), of whose 80.0 GiB" in said
    assert said.endswith("lower kv_memory, max_batch_tokens or max_num_seqs")


def test_more_rows_than_attention_is_planned_for_are_refused_in_a_line(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError) as error:
        make_engine(tiny_llama, backend="cuda", device="cpu", max_num_seqs=4097)
    assert str(error.value) == "max_num_seqs is 4097; on GPUs it must be at most 4096"
    assert error.value.field == "max_num_seqs"


def test_weights_that_cannot_fit_are_told_whole_before_any_is_copied(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airi.engine.backends.cuda.device.CpuDevice", lambda: FullDevice(2**18))
    monkeypatch.setattr("airi.engine.backends.cuda.weights._Loader", None)
    parameters = open_model(tiny_llama, LoadOptions(), on_device=True).info.num_parameters
    with pytest.raises(MemoryBudgetError) as error:
        make_engine(tiny_llama, backend="cuda", device="cpu", max_num_seqs=1, max_batch_tokens=8)
    worded = r"^llama: ([\d.]+) KiB are missing: the weights do not fit .* ([\d.]+) KiB are free; lower the model's"
    found = re.search(worded, str(error.value))
    assert found is not None
    assert float(found[1]) + float(found[2]) == pytest.approx(4 * parameters / 1024, abs=0.2)


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "HIP error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_missing_memory_is_told_however_it_is_worded(words: str) -> None:
    with (
        pytest.raises(
            MemoryBudgetError, match=r"^llama: graphs do not fit cuda:0 .* are free; lower kv_memory$"
        ),
        enough_memory(FullDevice(0), "llama", "graphs", "kv_memory"),
    ):
        raise RuntimeError(words)


def test_other_errors_of_a_device_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="an illegal memory access"),
        enough_memory(FullDevice(0), "llama", "graphs", "kv_memory"),
    ):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def broken_off() -> None:
    """As a capture ends, whatever broke it."""
    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def test_a_capture_that_memory_was_missing_for_says_so_whatever_it_ends_with() -> None:
    def capture() -> None:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        finally:
            broken_off()

    with (
        pytest.raises(MemoryBudgetError, match=r"^llama: .* are missing: graphs do not fit"),
        enough_memory(FullDevice(0), "llama", "graphs", "kv_memory"),
    ):
        capture()


def test_memory_that_was_missing_before_is_not_why_something_else_fails() -> None:
    try:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    except RuntimeError:
        with (
            pytest.raises(RuntimeError, match="previous error during capture"),
            enough_memory(FullDevice(0), "llama", "graphs", "kv_memory"),
        ):
            broken_off()


class FakeGraphs:
    """What a GPU's device needs of torch to capture; refuses a pool into which a capture has failed, as torch may."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.pools = 0
        self.spoilt: set[int] = set()
        patch.setattr(torch.cuda, "get_device_name", lambda _: "none")
        patch.setattr(torch.cuda, "Stream", lambda _: None)
        patch.setattr(torch.cuda, "CUDAGraph", object)
        patch.setattr(torch.cuda, "graph_pool_handle", self.handle)
        patch.setattr(torch.cuda, "graph", self.graph)

    def handle(self) -> int:
        self.pools += 1
        return self.pools

    @contextmanager
    def graph(self, graph: object, *, pool: int, **_: object) -> Iterator[None]:
        if pool in self.spoilt:
            raise RuntimeError("already recording to mempool_id")
        self.spoilt.add(pool)
        yield
        self.spoilt.remove(pool)


def test_a_capture_that_fails_does_not_fail_those_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs(monkeypatch)
    device = CudaDevice()
    kept = [device.capture(lambda: None) for _ in range(2)]
    assert graphs.pools == 1, "they share their memory"

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        device.capture(fails)
    again = device.capture(lambda: None)
    assert graphs.pools == 2
    del kept, again


def test_the_memory_of_graphs_goes_with_the_last_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs(monkeypatch)
    device = CudaDevice()
    first, second = (device.capture(lambda: None) for _ in range(2))
    del first
    third = device.capture(lambda: None)
    assert graphs.pools == 1
    del second, third
    after = device.capture(lambda: None)
    assert graphs.pools == 2, "torch refuses what the last graph has left"
    del after


def test_what_is_free_for_graphs_alone_is_not_told_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGraphs(monkeypatch)
    segments = [
        {"device": 1, "segment_pool_id": (0, 0), "total_size": 1000, "allocated_size": 300},
        {"device": 1, "segment_pool_id": (0, 1), "total_size": 500, "allocated_size": 100},
        {"device": 0, "segment_pool_id": (0, 1), "total_size": 70, "allocated_size": 0},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 1500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 400)
    assert CudaDevice(1).memory() == (5700, 9000)
