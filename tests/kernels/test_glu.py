"""Gated activations against float64."""

from __future__ import annotations

import pytest
import torch

from airi.kernels import reference
from airi.kernels.arch import ARCHS
from airi.kernels.glu import ACTIVATIONS, glu, glu_block
from tests.kernels.tolerances import RELATIVE, relative_error


def exact(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    if activation == "silu":
        return gate * torch.sigmoid(gate) * up
    inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    return gate / 2 * (1 + torch.tanh(inner)) * up


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 96), (2, 1030), (4, 2048)])
def test_the_gate_scales_what_goes_up(rows: int, width: int, dtype: torch.dtype, activation: str) -> None:
    torch.manual_seed(width)
    gate_up = (4 * torch.randn(rows, 2 * width + 8)).to(dtype)[:, : 2 * width]
    out = torch.full((rows, width + 3), float("nan"), dtype=dtype)
    assert glu(gate_up, out[:, :width], activation=activation).data_ptr() == out.data_ptr()
    assert torch.isnan(out[:, width:]).all()
    expected = exact(gate_up, activation)
    assert relative_error(out[:, :width], expected) <= RELATIVE[dtype]
    assert relative_error(reference.glu(gate_up, activation=activation), expected) <= RELATIVE[dtype]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_gates_overflow_nothing(activation: str) -> None:
    gates = torch.tensor([[-1e12, -1000.0, -90.0, 0.0, 90.0, 1000.0, 1e12]])
    out = glu(torch.cat((gates, torch.ones(1, 7)), 1), activation=activation)
    torch.testing.assert_close(out, gates.clamp_min(0))


def test_a_thread_has_sixteen_bytes() -> None:
    assert glu_block(2, ARCHS["sm_90"]) == 4 * 32 * 8
    assert glu_block(4, ARCHS["gfx942"]) == 4 * 64 * 4


def test_no_rows_are_no_work() -> None:
    assert glu(torch.zeros(0, 8)).shape == (0, 4)


def test_bad_arguments_are_named() -> None:
    x = torch.zeros(2, 32)
    with pytest.raises(ValueError, match="activation must be silu or gelu_tanh, got relu"):
        glu(x, activation="relu")
    with pytest.raises(ValueError, match="activation must be silu or gelu_tanh, got relu"):
        reference.glu(x, activation="relu")
    with pytest.raises(ValueError, match="columns of gate_up must be an even number above 0, got 31"):
        glu(x[:, :31])
    with pytest.raises(ValueError, match=r"out must be float32 \[2, 16\], got float16 \[2, 16\]"):
        glu(x, torch.zeros(2, 16, dtype=torch.float16))
