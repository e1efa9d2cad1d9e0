"""Float32 to what is stored, to nearest even and with the same bits everywhere: on a GPU that converts a type itself,
on one that does not, and in the interpreter, whose own conversions to 8 and 16 bits truncate."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rounded(x, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """x in `dtype`."""
    if UPCAST and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        bits = tl.where(x == x, bits, 0x7FC0)
        return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def e4m3_bits(x):
    """The float8_e4m3fn of x, |x| <= 448, as uint8."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = tl.abs(x)
    whole = magnitude.to(tl.int32, bitcast=True)
    # Four bits of exponent, of bias 7 and not 127, and three of mantissa.
    normal = ((whole + 0x7FFFF + ((whole >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are 2^-9, which is the last bit of what lies from 2^14.
    small = (magnitude + 16384.0).to(tl.int32, bitcast=True) & 0xF
    stored = tl.where(magnitude < 0.015625, small, normal)
    return (stored | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def int8_bits(x):
    """The nearest integer to x, |x| <= 127, as the uint8 with the bits of its int8."""
    # The last bit of what lies around 1.5 * 2^23 is 1.
    return ((x + 12582912.0).to(tl.int32, bitcast=True) & 0xFF).to(tl.uint8)
