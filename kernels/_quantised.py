"""Quantised elements as float16, by integer instructions that every architecture has.

The bits of a float8_e4m3fn number, moved by one place for the sign and seven for the rest, are a float16 of 1 / 256
its value, subnormal ones too; its two codes of NaN, which are never stored, read as 480 / 256. An int8 number plus 128
in the low bits of 1024.0 is 1024 more than that sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

FP8_UNIT = tl.constexpr(256.0)
"""What fp8 is to be multiplied by after `half` and `quarters`; int8 comes as it is."""


@triton.jit
def half(b, IS_FP8: tl.constexpr):
    """Bytes (int16, the low byte counts) as float16: e4m3 / 256, or int8."""
    if IS_FP8:
        bits = ((b & 0x80) << 8) | ((b & 0x7F) << 7)
        return bits.to(tl.float16, bitcast=True)
    bits = ((b & 0xFF) ^ 0x80) | 0x6400
    return bits.to(tl.float16, bitcast=True) - 1152.0


@triton.jit
def quarters(b, IS_FP8: tl.constexpr):
    """Bytes 0 to 3 of each int32 as four float16 tiles: e4m3 / 256, or int8. Two are moved by one instruction."""
    if IS_FP8:
        b_even = ((b & 0x00800080) << 8) | ((b & 0x007F007F) << 7)
        b_odd = (b & (-0x7FFF8000)) | ((b & 0x7F007F00) >> 1)  # -0x7fff8000: 0x80008000
    else:
        b_even = ((b & 0x00FF00FF) ^ 0x00800080) | 0x64006400
        b_odd = (((b >> 8) & 0x00FF00FF) ^ 0x00800080) | 0x64006400
    b_0 = b_even.to(tl.int16).to(tl.float16, bitcast=True)
    b_1 = b_odd.to(tl.int16).to(tl.float16, bitcast=True)
    b_2 = (b_even >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    b_3 = (b_odd >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    if not IS_FP8:
        b_0, b_1, b_2, b_3 = b_0 - 1152.0, b_1 - 1152.0, b_2 - 1152.0, b_3 - 1152.0
    return b_0, b_1, b_2, b_3
