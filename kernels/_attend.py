"""What the kernels that attend share: which keys a query sees, and softmax over tiles of keys.

    out[i] = sum_k p_ik v_k / sum_k p_ik,   p_ik = 2^(s_ik - m_i),   s_ik = log2(e) * cap(scale * q_i . k_k)

is gathered tile by tile with the running maximum m_i and sum l_i of each row (float32, base 2).
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def scores(b_q, b_k, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """log2(e) * cap(scale * q . k): [BM, TILE] float32 of b_q [BM, D] and b_k [TILE, D]."""
    return scaled(tl.dot(b_q, tl.trans(b_k), input_precision="ieee"), scale, softcap, HAS_SOFTCAP)


@triton.jit
def scaled(b_s, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Products as exponents of two; tanh(x) = 1 - 2 / (e^2x + 1), which overflow takes to 1."""
    if HAS_SOFTCAP:
        b_e = tl.exp2(b_s * (2.0 * LOG2_E * scale / softcap))
        return softcap * LOG2_E * (1.0 - 2.0 / (b_e + 1.0))
    return b_s * (scale * LOG2_E)


@triton.jit
def visible(o_query, o_key, window, HAS_WINDOW: tl.constexpr):
    """Whether a query at position o_query [BM] sees the key at o_key [TILE]: [BM, TILE]."""
    m_key = o_key[None, :] <= o_query[:, None]
    if HAS_WINDOW:
        m_key = m_key & (o_key[None, :] > o_query[:, None] - window)
    return m_key


@triton.jit
def softmax_step(b_s, b_max, b_sum, MASKED: tl.constexpr):
    """Weights p of a tile, what earlier sums are to be multiplied by, and the new maxima and sums.

    A row that has seen no key yet has a maximum of -inf, and -inf - -inf is NaN: it is taken as 0 then.
    """
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_base = b_new
    if MASKED:
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_decay = tl.exp2(b_max - b_base)
    b_p = tl.exp2(b_s - b_base[:, None])
    return b_p, b_decay, b_new, b_sum * b_decay + tl.sum(b_p, 1)


@triton.jit
def shares(b_acc, b_sum):
    """A row's weighted sum over its sum of weights: [BM, D]; zeros where no key was seen."""
    return b_acc / tl.where(b_sum == 0.0, 1.0, b_sum)[:, None]


@triton.jit
def log_sum(b_max, b_sum):
    """Natural logarithm of a row's sum of exponentials; -inf where no key was seen: b_max is."""
    return (b_max + tl.log2(tl.where(b_sum == 0.0, 1.0, b_sum))) * LN_2
