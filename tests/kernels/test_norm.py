"""RMS norms against float64, with rows that lie apart and outputs that nobody wrote."""

from __future__ import annotations

import pytest
import torch

from airi.kernels import norm, reference
from airi.kernels.limits import MAX_HIDDEN
from airi.kernels.norm import norm_tiles
from tests.kernels.tolerances import RELATIVE, relative_error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5


def apart(rows: int, hidden: int, dtype: torch.dtype, *, fill: float | None = None) -> torch.Tensor:
    """A [rows, hidden] view of wider rows; random, or all `fill`."""
    wide = torch.full((rows, hidden + 24), float("nan"), dtype=dtype)
    x = wide[:, 8 : 8 + hidden]
    return x.copy_(torch.randn(rows, hidden) if fill is None else torch.full((rows, hidden), fill))


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.double()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (5, 64), (3, 576), (2, 5120), (1, 16384)])
def test_rows_are_scaled_to_a_mean_square_of_one(rows: int, hidden: int, dtype: torch.dtype) -> None:
    x, weight = apart(rows, hidden, dtype), torch.randn(hidden)
    out = apart(rows, hidden, dtype, fill=float("nan"))
    assert norm.rms_norm(x, weight, EPS, out) is out
    assert relative_error(out, exact(x, weight)) <= RELATIVE[dtype]
    assert relative_error(reference.rms_norm(x, weight, EPS), exact(x, weight)) <= RELATIVE[dtype]
    assert torch.isnan(torch.as_strided(out, (rows, 8), (hidden + 24, 1), hidden + 8)).all()


@pytest.mark.parametrize("residual_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_normed_is_the_sum_as_the_residual_holds_it(
    dtype: torch.dtype, residual_dtype: torch.dtype
) -> None:
    rows, hidden = 4, 80
    x, residual, weight = apart(rows, hidden, dtype), apart(rows, hidden, residual_dtype), torch.randn(hidden)
    expected = (residual.float() + x.float()).to(residual_dtype)
    out = norm.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(residual, expected)
    assert out.dtype is dtype
    assert relative_error(out, exact(expected, weight)) <= RELATIVE[dtype]


@pytest.mark.parametrize("residual_dtype", DTYPES)
def test_the_norm_is_added_to_the_residual_rounded_once(residual_dtype: torch.dtype) -> None:
    x, residual, weight = torch.randn(6, 200), apart(6, 200, residual_dtype), torch.randn(200)
    exactly = residual.double() + exact(x, weight)
    expected = residual.clone()
    reference.rms_norm_add(x, weight, EPS, expected)
    norm.rms_norm_add(x, weight, EPS, residual)
    assert relative_error(residual, exactly) <= RELATIVE[residual_dtype]
    assert relative_error(expected, exactly) <= RELATIVE[residual_dtype]


def test_the_output_may_be_the_input() -> None:
    x, residual, weight = torch.randn(3, 96), torch.randn(3, 96), torch.randn(96)
    expected_residual = residual.clone()
    expected = reference.add_rms_norm(x, expected_residual, weight, EPS)
    norm.add_rms_norm(x, residual, weight, EPS, x)
    torch.testing.assert_close(x, expected)
    assert torch.equal(residual, expected_residual)


def test_a_row_of_zeros_stays_zero_and_no_rows_are_no_work() -> None:
    assert not norm.rms_norm(torch.zeros(2, 40), torch.ones(40), EPS).any()
    assert norm.rms_norm(torch.zeros(0, 40), torch.ones(40), EPS).shape == (0, 40)


def test_a_thread_has_sixteen_bytes_at_least_and_never_more_than_32_columns() -> None:
    for hidden in (1, 64, 512, 576, 1024, 4096, 5120, 8192, 14336, 16384):
        rows, warps = norm_tiles(hidden)
        columns = rows * 2 ** (hidden - 1).bit_length() / (32 * warps)
        assert 16 <= columns <= 32 or hidden < 16


def test_bad_arguments_are_named() -> None:
    x, weight = torch.zeros(2, 32), torch.ones(32)
    with pytest.raises(ValueError, match=r"weight must be float32 \[32\], got float32 \[16\]"):
        norm.rms_norm(x, weight[:16], EPS)
    with pytest.raises(ValueError, match="x must be float32 or float16 or bfloat16"):
        norm.rms_norm(x.double(), weight, EPS)
    with pytest.raises(ValueError, match=r"x must be contiguous in its last dimension"):
        norm.rms_norm(x.t().contiguous().t(), weight, EPS)
    with pytest.raises(ValueError, match=r"residual must be .* \[2, 32\], got float32 \[1, 32\]"):
        norm.add_rms_norm(x, x[:1], weight, EPS)
    with pytest.raises(ValueError, match="out must be on cpu, got meta"):
        norm.rms_norm(x, weight, EPS, torch.empty(2, 32, device="meta"))
    wide = MAX_HIDDEN + 1
    with pytest.raises(ValueError, match=f"columns of x must be 1 to {MAX_HIDDEN}, got {wide}"):
        norm.rms_norm(torch.zeros(1, wide), torch.ones(wide), EPS)
