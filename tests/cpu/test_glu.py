"""The gated MLP half against float64, on every instruction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from airi._core import cpu
from tests.cpu.arrays import Array, F32Array, address, decode, encode, poison

F32, BF16 = cpu.DType.F32, cpu.DType.BF16
F64Array = npt.NDArray[np.float64]


def activate(name: str, x: F64Array) -> F64Array:
    if name == "silu":
        return x / (1.0 + np.exp(-x))
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


def make(rng: np.random.Generator, compute: cpu.DType, *shape: int) -> Array:
    return encode(rng.standard_normal(shape, dtype=np.float32), compute)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("compute", [F32, BF16])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_glu_is_activation_times_up(isa: str, activation: str, compute: cpu.DType, *, biased: bool) -> None:
    sizes = [(1, 48, 32), (3, 7, 5), (17, 101, 33), (64, 96, 64), (100, 50, 48)]
    deep = [(1, 50, 2051), (17, 50, 2051), (110, 50, 2051)]  # several blocks of k
    for m, n, k in sizes + deep:
        rng = np.random.default_rng([m, n, k])
        x = make(rng, compute, m, k)
        gate, up = make(rng, compute, n, k), make(rng, compute, n, k)
        gate_bias, up_bias = (make(rng, F32, n), make(rng, F32, n)) if biased else (None, None)
        layer = cpu.PackedGLU(
            address(gate),
            address(up),
            n,
            k,
            compute,
            compute,
            activation,
            address(gate_bias),
            address(up_bias),
        )
        out = poison(m, n, dtype=compute)
        layer.forward(address(x), m, address(out))
        g = decode(x) @ decode(gate).T + (decode(gate_bias) if gate_bias is not None else 0)
        u = decode(x) @ decode(up).T + (decode(up_bias) if up_bias is not None else 0)
        expected = activate(activation, g) * u
        scale = max(1.0, float(np.abs(expected).max()))
        rtol = 1 / 256 if compute is BF16 else 0.0
        np.testing.assert_allclose(decode(out), expected, rtol=rtol, atol=4e-6 * scale)


def through(activation: str, gates: F32Array) -> Array:
    """activation(gates) as the layer computes it: one input, gate weights `gates`, up weights 1."""
    ones, x = np.ones_like(gates), np.ones((1, 1), dtype=np.float32)
    n = len(gates)
    out = poison(1, n)
    cpu.PackedGLU(address(gates), address(ones), n, 1, F32, F32, activation).forward(
        address(x), 1, address(out)
    )
    return np.asarray(out[0])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_are_accurate_to_a_millionth(isa: str, activation: str) -> None:
    gates = np.concatenate([np.linspace(-12, 30, 4001), np.logspace(-30, 1, 500)]).astype(np.float32)
    expected = activate(activation, gates.astype(np.float64))
    got = through(activation, gates)
    if activation == "gelu_tanh":  # its argument to exp is rounded: that costs where the result vanishes
        keep = gates > -3
        gates, expected, got = gates[keep], expected[keep], got[keep]
    np.testing.assert_allclose(got, expected, rtol=1.5e-6, atol=1e-37)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_activations_saturate_without_nan_and_pass_nan_on(isa: str, activation: str) -> None:
    gates = np.array([-3e38, -1e4, -200.0, -0.0, 0.0, 200.0, 1e4, np.nan], dtype=np.float32)
    got = through(activation, gates)
    np.testing.assert_array_equal(got[:7], np.array([0, 0, 0, 0, 0, 200.0, 1e4], dtype=np.float32))
    assert np.isnan(got[7])


@pytest.mark.parametrize("compute", [F32, BF16])
def test_a_row_is_the_same_bits_in_every_batch(isa: str, compute: cpu.DType) -> None:
    rng = np.random.default_rng(8)
    m, n, k = 150, 97, 70
    x, gate, up = make(rng, compute, m, k), make(rng, compute, n, k), make(rng, compute, n, k)
    layer = cpu.PackedGLU(address(gate), address(up), n, k, compute, compute, "silu")
    whole = poison(m, n, dtype=compute)
    layer.forward(address(x), m, address(whole))
    for count in (1, 2, 5, 8, 9, 31):
        out = poison(count, n, dtype=compute)
        layer.forward(address(np.ascontiguousarray(x[40 : 40 + count])), count, address(out))
        np.testing.assert_array_equal(out, whole[40 : 40 + count])


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="activation 'relu' is unknown; accepted: silu, gelu_tanh"):
        cpu.PackedGLU(64, 64, 1, 1, F32, F32, "relu")
