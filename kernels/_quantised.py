"""Quantised elements as floats, in integers where the device has no conversion of its own."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def half_of_fp8(b):
    """float8_e4m3fn bits, int16 or int32 of which the low byte counts, as float16 of 1 / 256 the value.

    The exponents' biases are 7 and 15: moved into place, the bits are exact, subnormal ones too. The two codes of NaN
    read as 480 / 256 and are never stored.
    """
    bits = ((b & 0x80) << 8) | ((b & 0x7F) << 7)
    return bits.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def half_of_int8(b):
    """int8 bits, int16 or int32 of which the low byte counts, as float16 of 1 / 128 the value; exact.

    1024 + n lies in float16's last ten bits for n below 1024: here n = value + 128.
    """
    bits = ((b & 0xFF) ^ 0x80) | 0x6400
    return bits.to(tl.int16).to(tl.float16, bitcast=True) * 0.0078125 - 9.0


@triton.jit
def half_of(b, IS_FP8: tl.constexpr):
    """Either of them; what was divided by is `UNIT_FP8` or `UNIT_INT8`."""
    return half_of_fp8(b) if IS_FP8 else half_of_int8(b)


UNIT_FP8 = tl.constexpr(256.0)
UNIT_INT8 = tl.constexpr(128.0)
