"""Addresses and sizes that cannot be right are refused before anything is read or written."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from airi._core import cpu
from tests.cpu.arrays import address

F32 = cpu.DType.F32
X = np.ones((2, 8), np.float32)
OUT = np.zeros((2, 8), np.float32)
IDS = np.zeros(2, np.int32)


def test_a_linear_layer_refuses_null_addresses_and_negative_rows() -> None:
    layer = cpu.PackedLinear(address(X), 2, 8, F32, F32)
    for x, m, out in ((0, 1, address(OUT)), (address(X), 1, 0)):
        with pytest.raises(ValueError, match="x and out must be addresses, got 0"):
            layer.forward(x, m, out)
        with pytest.raises(ValueError, match="x and out must be addresses, got 0"):
            layer.forward_add(x, m, out)
    with pytest.raises(ValueError, match="m must be >= 0, got -1"):
        layer.forward(address(X), -1, address(OUT))
    with pytest.raises(ValueError, match=r"ldo must be >= n \(2\), got 1"):
        layer.forward(address(X), 1, address(OUT), 1)
    layer.forward(0, 0, 0)


def test_a_gated_layer_refuses_null_addresses_and_negative_rows() -> None:
    layer = cpu.PackedGLU(address(X), address(X), 2, 8, F32, F32, "silu")
    with pytest.raises(ValueError, match="x and out must be addresses, got 0"):
        layer.forward(0, 1, address(OUT))
    with pytest.raises(ValueError, match="m must be >= 0, got -3"):
        layer.forward(address(X), -3, address(OUT))


def test_row_operations_refuse_null_addresses_and_impossible_sizes() -> None:
    x, out, ids = address(X), address(OUT), address(IDS)
    null = "every array must be an address, got 0"
    with pytest.raises(ValueError, match=null):
        cpu.rms_norm(x, 0, out, F32, 2, 8, 1e-6)
    with pytest.raises(ValueError, match=null):
        cpu.rms_norm_add(x, x, 0, 2, 8, 1e-6)
    with pytest.raises(ValueError, match=null):
        cpu.embed(0, F32, ids, 2, 8, out)
    with pytest.raises(ValueError, match=null):
        cpu.gather_rows(x, 32, 0, 2, out)
    with pytest.raises(ValueError, match=null):
        cpu.to_bf16(x, 0, 4)
    with pytest.raises(ValueError, match=null):
        cpu.to_f32(0, out, 4)
    with pytest.raises(ValueError, match="m must be >= 0, got -2"):
        cpu.rms_norm(x, x, out, F32, -2, 8, 1e-6)
    with pytest.raises(ValueError, match="a row must hold at least 1, got 0"):
        cpu.rms_norm(x, x, out, F32, 2, 0, 1e-6)
    with pytest.raises(ValueError, match=r"ldx must be >= h \(8\), got 7"):
        cpu.rms_norm(x, x, out, F32, 2, 8, 1e-6, 7)


FEWER_THREADS = """
import resource, sys
from airi._core import cpu
import numpy as np
def used():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * resource.getpagesize()
cpu.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_AS, (used() + (96 << 20), resource.RLIM_INFINITY))
cpu.set_num_threads(1024)
granted = cpu.num_threads()
x = np.ones((64, 1024), np.float32)
out = np.zeros_like(x)
cpu.rms_norm(x.ctypes.data, x.ctypes.data, out.ctypes.data, cpu.DType.F32, 64, 1024, 0.0)
assert 1 <= granted < 1024, granted
assert np.allclose(out, 1), out
"""


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by Linux's means")
def test_the_pool_makes_do_with_the_threads_it_gets() -> None:
    done = subprocess.run([sys.executable, "-c", FEWER_THREADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
