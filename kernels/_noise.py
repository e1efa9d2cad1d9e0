"""Gumbel noise, with the operations of the CPU engine in their order: the same bits wherever fma rounds once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def natural_log(x):
    """ln x to about 1.5 ulp for normal positive x."""
    bits = x.to(tl.int32, bitcast=True)
    # x = m 2^e with m in [sqrt(1/2), sqrt(2)), so that the polynomial's argument is near 0.
    e = (bits - 0x3F3504F3) >> 23
    m = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    exponent = e.to(tl.float32)
    p = tl.fma(m, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, m, 1.1676998740e-1)
    p = tl.fma(p, m, -1.2420140846e-1)
    p = tl.fma(p, m, 1.4249322787e-1)
    p = tl.fma(p, m, -1.6668057665e-1)
    p = tl.fma(p, m, 2.0000714765e-1)
    p = tl.fma(p, m, -2.4999993993e-1)
    p = tl.fma(p, m, 3.3333331174e-1)
    square = m * m
    y = p * m * square
    y = tl.fma(exponent, -2.12194440e-4, y)
    y = tl.fma(square, -0.5, y)
    return tl.fma(exponent, 0.693359375, m + y)


@triton.jit
def uniform(words):
    """Random words as numbers in (0, 1]."""
    return (words.to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def gumbel(words):
    """-ln(-ln(1 - u)) of random words."""
    u = uniform(words)
    rest = tl.maximum(1.0 - u, 2.9802322387695312e-08)
    # -ln(1 - u) = u + u^2 / 2 + ... for small u, where ln(rest) would lose digits.
    series = tl.fma(u, 0.16666666666666666, 0.2)
    series = tl.fma(series, u, 0.25)
    series = tl.fma(series, u, 0.3333333333333333)
    series = tl.fma(series, u, 0.5)
    series = tl.fma(series * u, u, u)
    return 0.0 - natural_log(tl.where(u < 0.0625, series, 0.0 - natural_log(rest)))


@triton.jit
def run_of_words(seed, draw, first, N: tl.constexpr):
    """The random words of tokens [first, first + N); both are multiples of 4."""
    counters = (first // 4 + tl.arange(0, N // 4)).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, counters, draw, 0, 0)
    return tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [N])


@triton.jit
def words_of(seed, draw, tokens):
    """The random word of each of `tokens`, in any order."""
    w0, w1, w2, w3 = tl.philox(seed, (tokens // 4).to(tl.uint32), draw, 0, 0)
    lane = tokens % 4
    return tl.where(lane < 2, tl.where(lane == 0, w0, w1), tl.where(lane == 2, w2, w3))
