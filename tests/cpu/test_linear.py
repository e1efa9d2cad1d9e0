"""Packed linear layers against float64 products, on every instruction set."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from airi._core import cpu
from tests.cpu.arrays import Array, F32Array, address, decode, encode, poison

F32, BF16 = cpu.DType.F32, cpu.DType.BF16
MODES = [(F32, F32), (BF16, F32), (BF16, BF16), (F32, BF16)]
ROWS = [1, 2, 3, 15, 16, 17, 64, 100]
# (n, k): one column, below and around a panel of 48, odd k, several panels with a rest.
SHAPES = [(1, 1), (7, 3), (47, 16), (48, 33), (49, 64), (101, 97), (240, 130)]


def random(rng: np.random.Generator, *shape: int) -> F32Array:
    return rng.standard_normal(shape, dtype=np.float32)


def tolerance(reference: Array) -> float:
    """float32 sums of up to a few hundred products, in any order of magnitude."""
    return 2e-6 * max(1.0, float(np.abs(reference).max()))


def check_forward(
    m: int, n: int, k: int, weight_dtype: cpu.DType, compute: cpu.DType, bias: F32Array | None
) -> None:
    rng = np.random.default_rng([m, n, k])
    x = encode(random(rng, m, k), compute)
    weight = encode(random(rng, n, k) / np.sqrt(k), weight_dtype)
    used = decode(encode(decode(weight), BF16)) if compute is BF16 else decode(weight)
    expected = decode(x) @ used.T + (0 if bias is None else bias.astype(np.float64))
    layer = cpu.PackedLinear(address(weight), n, k, weight_dtype, compute, address(bias))
    weight[...] = 0  # packed: the source no longer matters
    out = poison(m, n)
    layer.forward(address(x), m, address(out))
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance(expected))


@pytest.mark.parametrize(("weight_dtype", "compute"), MODES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_forward_is_the_product(
    isa: str, n: int, k: int, weight_dtype: cpu.DType, compute: cpu.DType
) -> None:
    for m in ROWS:
        check_forward(m, n, k, weight_dtype, compute, None)


@pytest.mark.parametrize("compute", [F32, BF16])
def test_a_bias_is_added_to_every_row(isa: str, compute: cpu.DType) -> None:
    bias = random(np.random.default_rng(0), 101)
    check_forward(17, 101, 33, compute, compute, bias)


@pytest.mark.parametrize("compute", [F32, BF16])
def test_rows_may_be_strided_and_what_lies_between_stays(isa: str, compute: cpu.DType) -> None:
    rng = np.random.default_rng(1)
    m, n, k, stride = 19, 50, 24, 61
    x, weight = encode(random(rng, m, k), compute), encode(random(rng, n, k), compute)
    layer = cpu.PackedLinear(address(weight), n, k, compute, compute)
    dense, strided = poison(m, n), poison(m, stride)
    layer.forward(address(x), m, address(dense))
    layer.forward(address(x), m, address(strided), stride)
    np.testing.assert_array_equal(strided[:, :n], dense)
    assert np.isnan(strided[:, n:]).all()


@pytest.mark.parametrize("compute", [F32, BF16])
def test_forward_add_adds_to_what_is_there(isa: str, compute: cpu.DType) -> None:
    rng = np.random.default_rng(2)
    m, n, k = 21, 77, 40
    x, weight, bias = encode(random(rng, m, k), compute), encode(random(rng, n, k), compute), random(rng, n)
    layer = cpu.PackedLinear(address(weight), n, k, compute, compute, address(bias))
    product, residual = poison(m, n), random(rng, m, n)
    layer.forward(address(x), m, address(product))
    expected = residual + product
    layer.forward_add(address(x), m, address(residual))
    np.testing.assert_array_equal(residual, expected)


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


def activated(name: str, x: F32Array) -> F32Array:
    """Of each number, in every column of a layer that only copies."""
    columns = 77
    ones, out = np.ones((columns, 1), np.float32), poison(len(x), columns)
    layer = cpu.PackedLinear(address(ones), columns, 1, F32, F32)
    layer.forward_activated(address(x), len(x), address(out), name)
    return out


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_float64(isa: str, name: str) -> None:
    x = np.append(np.linspace(-12, 12, 4001), [0.0, 1e-30, -1e-30]).astype(np.float32)
    expected = ACTIVATIONS[name](torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(activated(name, x), expected[:, None].repeat(77, 1), rtol=1e-6, atol=1e-6)


def test_an_activation_keeps_not_a_number(isa: str) -> None:
    for name in ACTIVATIONS:
        out = activated(name, np.array([np.nan, 1.0, -1.0] * 9, np.float32))
        assert np.isnan(out[::3]).all()
        assert np.isfinite(out[1::3]).all()


@pytest.mark.parametrize("compute", [F32, BF16])
def test_an_activated_product_has_its_bias_and_is_the_same_bits_in_every_batch(
    isa: str, compute: cpu.DType
) -> None:
    rng = np.random.default_rng(4)
    m, n, k = 21, 77, 40
    x, weight, bias = encode(random(rng, m, k), compute), encode(random(rng, n, k), compute), random(rng, n)
    layer = cpu.PackedLinear(address(weight), n, k, compute, compute, address(bias))
    product, out, alone = poison(m, n), poison(m, n), poison(1, n)
    layer.forward(address(x), m, address(product))
    layer.forward_activated(address(x), m, address(out), "relu")
    np.testing.assert_array_equal(out, np.maximum(product, 0))
    layer.forward_activated(address(x), m, address(out), "gelu")
    layer.forward_activated(address(np.ascontiguousarray(x[7:8])), 1, address(alone), "gelu")
    np.testing.assert_array_equal(alone[0], out[7])


def test_an_unknown_activation_is_named() -> None:
    ones = np.ones((1, 1), np.float32)
    layer = cpu.PackedLinear(address(ones), 1, 1, F32, F32)
    with pytest.raises(ValueError, match="activation 'swish' is unknown; accepted: gelu, gelu_tanh, relu"):
        layer.forward_activated(address(ones), 0, address(ones), "swish")


@pytest.mark.parametrize("compute", [F32, BF16])
def test_fused_matrices_equal_separate_ones(isa: str, compute: cpu.DType) -> None:
    rng = np.random.default_rng(3)
    m, k, sizes = 9, 65, (70, 5, 33)
    x = encode(random(rng, m, k), compute)
    weights = [encode(random(rng, n, k), compute) for n in sizes]
    bias = random(rng, sum(sizes))
    fused = cpu.PackedLinear.fused(
        [(address(w), len(w)) for w in weights], k, compute, compute, address(bias)
    )
    together = poison(m, sum(sizes))
    fused.forward(address(x), m, address(together))
    begin = 0
    for w in weights:
        part = np.ascontiguousarray(bias[begin : begin + len(w)])
        alone = poison(m, len(w))
        layer = cpu.PackedLinear(address(w), len(w), k, compute, compute, address(part))
        layer.forward(address(x), m, address(alone))
        np.testing.assert_array_equal(together[:, begin : begin + len(w)], alone)
        begin += len(w)


@pytest.mark.parametrize(("weight_dtype", "compute"), MODES)
def test_a_row_is_the_same_bits_in_every_batch(isa: str, weight_dtype: cpu.DType, compute: cpu.DType) -> None:
    rng = np.random.default_rng(4)
    m, n, k = 700, 145, 301  # several row blocks, column rest, odd k
    x, weight = encode(random(rng, m, k), compute), encode(random(rng, n, k), weight_dtype)
    layer = cpu.PackedLinear(address(weight), n, k, weight_dtype, compute)
    whole = poison(m, n)
    layer.forward(address(x), m, address(whole))
    for count in (*range(1, 20), 64, 333):
        begin = count * 7 % (m - count)
        rows = np.ascontiguousarray(x[begin : begin + count])
        out = poison(count, n)
        layer.forward(address(rows), count, address(out))
        np.testing.assert_array_equal(out, whole[begin : begin + count])


@pytest.mark.parametrize("compute", [F32, BF16])
def test_deep_sums_are_the_same_bits_for_one_row_and_for_many(isa: str, compute: cpu.DType) -> None:
    rng = np.random.default_rng(10)
    m, n, k = 110, 50, 4503  # several blocks of k, and more rows than are summed at a time
    x, weight = encode(random(rng, m, k), compute), encode(random(rng, n, k) / np.sqrt(k), compute)
    layer = cpu.PackedLinear(address(weight), n, k, compute, compute)
    whole = poison(m, n)
    layer.forward(address(x), m, address(whole))
    np.testing.assert_allclose(whole, decode(x) @ decode(weight).T, rtol=0, atol=2e-5)
    for i in (0, 95, 96, 109):
        row, out = np.ascontiguousarray(x[i : i + 1]), poison(1, n)
        layer.forward(address(row), 1, address(out))
        np.testing.assert_array_equal(out[0], whole[i])


@pytest.mark.parametrize("compute", [F32, BF16])
def test_threads_change_no_bit(isa: str, compute: cpu.DType) -> None:
    rng = np.random.default_rng(5)
    m, n, k = 37, 530, 64
    x, weight = encode(random(rng, m, k), compute), encode(random(rng, n, k), compute)
    results = []
    for threads in (1, 2, 3, 7):
        cpu.set_num_threads(threads)
        layer = cpu.PackedLinear(address(weight), n, k, compute, compute)
        for rows in (m, 1):
            out = poison(rows, n)
            layer.forward(address(x), rows, address(out))
            results.append(out[0])
    for row in results[1:]:
        np.testing.assert_array_equal(row, results[0])


def forward(layer: cpu.PackedLinear, x: Array, n: int) -> F32Array:
    out = poison(len(x), n)
    layer.forward(address(x), len(x), address(out))
    return out


@pytest.mark.parametrize(("weight_dtype", "compute"), MODES)
def test_what_follows_changes_no_bit(isa: str, weight_dtype: cpu.DType, compute: cpu.DType) -> None:
    rng = np.random.default_rng(11)
    shapes = [(530, 64), (48, 2100), (1, 33), (200, 1), (145, 301)]  # also deeper, wider and smaller ones
    weights = [encode(random(rng, n, k), weight_dtype) for n, k in shapes]
    alone, chained = (
        [
            cpu.PackedLinear(address(w), *shape, weight_dtype, compute)
            for w, shape in zip(weights, shapes, strict=True)
        ]
        for _ in range(2)
    )
    for layer, following in pairwise(chained):
        layer.precede(following)
    for threads in (1, 2, 3):
        cpu.set_num_threads(threads)
        for m in (1, 7, 13, 400):
            # All of one and then all of the other: what is announced must still be so when it is read.
            given = [encode(random(rng, m, k), compute) for _, k in shapes]
            results = [
                [forward(layer, x, n) for layer, x, (n, _) in zip(layers, given, shapes, strict=True)]
                for layers in (alone, chained)
            ]
            for expected, out in zip(*results, strict=True):
                np.testing.assert_array_equal(out, expected)


def test_weights_keep_the_instruction_set_they_were_packed_under() -> None:
    rng = np.random.default_rng(6)
    x, weight = random(rng, 5, 90), random(rng, 60, 90)
    before, after = poison(5, 60), poison(5, 60)
    layer = cpu.PackedLinear(address(weight), 60, 90, F32, F32)
    layer.forward(address(x), 5, address(before))
    cpu.set_isa("portable")
    layer.forward(address(x), 5, address(after))
    np.testing.assert_array_equal(before, after)


def test_bf16_weights_under_float_compute_take_half_the_bytes_and_lose_nothing() -> None:
    rng = np.random.default_rng(7)
    n, k = 96, 64
    x = random(rng, 3, k)
    narrow = encode(random(rng, n, k), BF16)
    wide = decode(narrow).astype(np.float32)
    halves = cpu.PackedLinear(address(narrow), n, k, BF16, F32)
    wholes = cpu.PackedLinear(address(wide), n, k, F32, F32)
    first, second = poison(3, n), poison(3, n)
    halves.forward(address(x), 3, address(first))
    wholes.forward(address(x), 3, address(second))
    np.testing.assert_array_equal(first, second)
    assert 2 * halves.nbytes == wholes.nbytes


def test_no_rows_write_nothing() -> None:
    weight = np.ones((4, 4), dtype=np.float32)
    out = poison(1, 4)
    cpu.PackedLinear(address(weight), 4, 4, F32, F32).forward(0, 0, address(out))
    assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 4), "weight address must not be 0"),
        ((64, 0, 4), "weight rows must be >= 1, got 0"),
        ((64, 4, 0), "k must be >= 1, got 0"),
    ],
)
def test_impossible_weights_are_refused(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cpu.PackedLinear(*arguments, F32, F32)


def test_fusing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="weight blocks must not be empty"):
        cpu.PackedLinear.fused([], 4, F32, F32)
