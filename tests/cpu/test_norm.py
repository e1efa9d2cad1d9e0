"""Norms, embedding and row helpers against float64, on every instruction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from airi._core import cpu
from tests.cpu.arrays import F32Array, U16Array, address, decode, encode, from_bf16, poison, to_bf16

F32, BF16 = cpu.DType.F32, cpu.DType.BF16
SHAPES = [(1, 1), (1, 576), (2, 7), (3, 64), (17, 65), (100, 576)]
EPS = 1e-6


def normalised(x: F32Array, weight: F32Array) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    return np.asarray(wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + EPS) * weight)


def random(*shape: int) -> F32Array:
    return np.random.default_rng(list(shape)).standard_normal(shape, dtype=np.float32) * 3


@pytest.mark.parametrize(("m", "h"), SHAPES)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_rms_norm_divides_by_the_root_mean_square(isa: str, m: int, h: int, dtype: cpu.DType) -> None:
    x, weight, out = random(m, h), random(h), poison(m, h, dtype=dtype)
    cpu.rms_norm(address(x), address(weight), address(out), dtype, m, h, EPS)
    expected = normalised(x, weight)
    rtol = 1 / 256 if dtype is BF16 else 1e-6
    np.testing.assert_allclose(decode(out), expected, rtol=rtol, atol=1e-30)


def test_rms_norm_reads_strided_rows(isa: str) -> None:
    x, weight, out = random(5, 40), random(24), poison(5, 24)
    cpu.rms_norm(address(x), address(weight), address(out), F32, 5, 24, EPS, 40)
    np.testing.assert_allclose(out, normalised(x[:, :24], weight), rtol=1e-6)


def test_rms_norm_may_write_over_its_input(isa: str) -> None:
    x, weight = random(6, 50), random(50)
    expected = normalised(x, weight)
    cpu.rms_norm(address(x), address(weight), address(x), F32, 6, 50, EPS)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(("m", "h"), SHAPES)
def test_rms_norm_add_adds_to_the_residual(isa: str, m: int, h: int) -> None:
    x, weight = random(m, h), random(h)
    residual = random(m + 1, h)[1:].copy()
    expected = residual + normalised(x, weight)
    cpu.rms_norm_add(address(x), address(weight), address(residual), m, h, EPS)
    np.testing.assert_allclose(residual, expected, rtol=1e-6, atol=3e-6)


def test_a_row_of_a_norm_is_the_same_bits_in_every_batch(isa: str) -> None:
    m, h = 200, 301
    x, weight, whole = random(m, h), random(h), poison(m, h)
    cpu.rms_norm(address(x), address(weight), address(whole), F32, m, h, EPS)
    for i in (0, 1, 99, 199):
        row, out = x[i].copy(), poison(1, h)
        cpu.rms_norm(address(row), address(weight), address(out), F32, 1, h, EPS)
        np.testing.assert_array_equal(out[0], whole[i])


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_embed_looks_rows_up_and_scales_them(isa: str, dtype: cpu.DType) -> None:
    table = encode(random(11, 37), dtype)
    ids = np.array([10, 0, 3, 3], dtype=np.int32)
    out = poison(4, 37)
    cpu.embed(address(table), dtype, address(ids), 4, 37, address(out), 1.5, rows=11)
    np.testing.assert_array_equal(out, (decode(table)[ids] * 1.5).astype(np.float32))


@pytest.mark.parametrize("bad", [-1, 11])
def test_embed_refuses_an_id_outside_of_the_table_and_writes_nothing(bad: int) -> None:
    table, ids, out = random(11, 8), np.array([0, bad], dtype=np.int32), poison(2, 8)
    with pytest.raises(ValueError, match=rf"ids must be in \[0, 11\), got {bad}"):
        cpu.embed(address(table), F32, address(ids), 2, 8, address(out), rows=11)
    assert np.isnan(out).all()


def test_gather_rows_copies_the_named_rows() -> None:
    x, rows = random(9, 33), np.array([8, 0, 0, 4], dtype=np.int32)
    out = poison(4, 33)
    cpu.gather_rows(address(x), 33 * 4, address(rows), 4, address(out))
    np.testing.assert_array_equal(out, x[rows])


def test_to_bf16_rounds_every_kind_of_float_to_nearest_even(isa: str) -> None:
    bits = np.random.default_rng(9).integers(0, 2**32, 40_003, dtype=np.uint32)
    ties = (np.arange(0, 2**16, 7, dtype=np.uint32) << 16) | 0x8000
    x = np.concatenate([bits, ties]).view(np.float32)
    out: U16Array = np.zeros(len(x), dtype=np.uint16)
    cpu.to_bf16(address(x), address(out), len(x))
    nan = np.isnan(x)
    assert np.isnan(from_bf16(out[nan])).all()
    np.testing.assert_array_equal(out[~nan], to_bf16(x[~nan]))


def test_to_f32_widens_exactly(isa: str) -> None:
    x = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    out = poison(2**16)
    cpu.to_f32(address(x), address(out), 2**16)
    nan = np.isnan(from_bf16(x))
    np.testing.assert_array_equal(out[~nan], from_bf16(x)[~nan])
    assert np.isnan(out[nan]).all()


@pytest.mark.parametrize(("m", "h"), [*SHAPES, (5, 384)])
def test_layer_norm_centres_and_divides_by_the_deviation(isa: str, m: int, h: int) -> None:
    x, weight, bias = random(m, h) + 5, random(h), random(h + 1)[1:].copy()
    wide = x.astype(np.float64)
    centred = wide - wide.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPS) * weight + bias
    cpu.layer_norm(address(weight), address(bias), address(x), m, h, EPS)
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=2e-5)


def test_a_row_of_a_layer_norm_is_the_same_bits_in_every_batch(isa: str) -> None:
    m, h = 200, 301
    x, weight, bias = random(m, h), random(h), random(h + 1)[1:].copy()
    alone = x[7:8].copy()
    cpu.layer_norm(address(weight), address(bias), address(x), m, h, EPS)
    cpu.layer_norm(address(weight), address(bias), address(alone), 1, h, EPS)
    np.testing.assert_array_equal(alone[0], x[7])
