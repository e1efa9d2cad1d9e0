"""The two passes of sampling over the logits, a program for each chunk of each row."""

from __future__ import annotations

import triton
import triton.language as tl

from ._noise import gumbel, run_of_words, uniform

LOG2E = tl.constexpr(1.4426950408889634)
GREEDY = tl.constexpr(1e-5)
NO_TOKEN = tl.constexpr(2147483647)
BINS_PER_NAT = tl.constexpr(16.0)

# What is known of a row, int32 [FIELDS] (floats by their bits), once the first pass is over. Tokens in bins before
# FIRST are kept if their logit is at least LEAST, those behind END are not; bins FIRST to LAST hold the threshold of
# top_p, K_BIN (none: -1) holds that of top_k, the K_RANK-th greatest logit in it.
FIELDS = tl.constexpr(32)
SAMPLED = tl.constexpr(0)  # 0: its token is written already
FIRST = tl.constexpr(1)
LAST = tl.constexpr(2)
K_BIN = tl.constexpr(3)
END = tl.constexpr(4)
K_RANK = tl.constexpr(5)
CANDIDATES = tl.constexpr(6)  # tokens in bins FIRST to LAST and K_BIN
OVERFLOW = tl.constexpr(7)  # 1: more than there is room for
FILTERED = tl.constexpr(8)  # by top_k or top_p
BY_MASS = tl.constexpr(9)  # by top_p
TOP = tl.constexpr(10)  # the greatest logit
LEAST = tl.constexpr(11)
BOUND = tl.constexpr(12)  # a score that is reached
TOTAL = tl.constexpr(13)  # sum of exponentials of all tokens; -1: top_p has less than all of them
INVERSE = tl.constexpr(14)  # of the temperature
TOP_P = tl.constexpr(15)
SEED = tl.constexpr(16)  # two
DRAW = tl.constexpr(18)


@triton.jit
def get(record_ptr, FIELD: tl.constexpr):
    return tl.load(record_ptr + FIELD)


@triton.jit
def get_float(record_ptr, FIELD: tl.constexpr):
    return tl.load(record_ptr + FIELD).to(tl.float32, bitcast=True)


@triton.jit
def get_seed(record_ptr):
    low = tl.load(record_ptr + SEED).to(tl.uint32, bitcast=True)
    high = tl.load(record_ptr + SEED + 1).to(tl.uint32, bitcast=True)
    return (high.to(tl.uint64) << 32) | low.to(tl.uint64)


@triton.jit
def put(record_ptr, FIELD: tl.constexpr, value):
    tl.store(record_ptr + FIELD, value)


@triton.jit
def put_float(record_ptr, FIELD: tl.constexpr, value):
    tl.store(record_ptr + FIELD, (value + tl.zeros([], tl.float32)).to(tl.int32, bitcast=True))


@triton.jit
def grid_of(x, inverse):
    """On which line of an absolute grid of 1/16 a logit over the temperature lies; a monotone function of x."""
    return tl.floor((x * inverse) * BINS_PER_NAT)


@triton.jit
def is_filtered(top_k, top_p, vocab):
    """Whether a row needs a threshold that takes a search."""
    return ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0)


@triton.jit
def stats_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, stats_ptr, histogram_ptr, stride_row: tl.int64, vocab,
    CHUNKS: tl.constexpr, CHUNK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """stats [R, CHUNKS, 4] = a chunk's maximum (infinite: it holds NaN), where that is, of filtered rows the sum of
    exponentials, the temperature's inverse; of filtered rows a histogram of how far below the maximum logits lie, in
    lines of the grid."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_tokens = i_chunk * CHUNK + tl.arange(0, CHUNK)
    mask = o_tokens < vocab
    row_ptr = logits_ptr + i_row * stride_row
    b_x = tl.load(row_ptr + o_tokens, mask=mask, other=float("-inf")).to(tl.float32)  # [CHUNK]
    nan = tl.max((b_x != b_x).to(tl.int32), 0)
    b_x = tl.where(b_x != b_x, float("-inf"), b_x)
    top = tl.max(b_x, 0)
    at = i_row * CHUNKS + i_chunk
    tl.store(stats_ptr + at * 4, tl.where(nan != 0, float("inf"), top).to(tl.int32, bitcast=True))
    tl.store(stats_ptr + at * 4 + 1, tl.min(tl.where(b_x == top, o_tokens, NO_TOKEN), 0))
    temperature = tl.load(temperature_ptr + i_row)
    inverse = tl.math.div_rn(1.0, tl.maximum(temperature, GREEDY))
    tl.store(stats_ptr + at * 4 + 3, inverse.to(tl.int32, bitcast=True))
    wanted = is_filtered(tl.load(top_k_ptr + i_row), tl.load(top_p_ptr + i_row), vocab)
    if wanted & (temperature >= GREEDY) & (tl.abs(top) < float("inf")):
        b_bins = tl.minimum(grid_of(top, inverse) - grid_of(b_x, inverse), BINS - 1.0).to(tl.int32)
        o_bins = tl.arange(0, BINS)
        tl.store(histogram_ptr + at * BINS + o_bins, tl.histogram(b_bins, BINS, mask=mask))
        total = tl.sum(tl.exp2((b_x - top) * (inverse * LOG2E)), 0)
        tl.store(stats_ptr + at * 4 + 2, total.to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=["capacity"])
def pick_kernel(
    logits_ptr, records_ptr, stats_ptr, offsets_ptr, candidates_ptr, picks_ptr, stride_row: tl.int64, vocab,
    capacity, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """picks [R, CHUNKS, 4] = sums of exponentials of a chunk's tokens before bin FIRST and between LAST and END, the
    best score of tokens that are kept for sure, whose that is. Tokens in bins with a threshold go to the row's
    candidates, (logit, token) in the halves of an int64, by ascending token."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = i_row * CHUNKS + i_chunk
    record = records_ptr + i_row * FIELDS
    if get(record, SAMPLED) != 0:
        filtered = get(record, FILTERED)
        top, least, inverse = get_float(record, TOP), get_float(record, LEAST), get_float(record, INVERSE)
        anchor, bound = grid_of(top, inverse), get_float(record, BOUND)
        # What a score of `bound` may have lost to rounding, so that no token that reaches it is left out.
        slack = 1e-4 + tl.abs(bound) * 4.8e-7
        chunk_top = tl.load(stats_ptr + at * 4).to(tl.float32, bitcast=True)
        end = chunk_top < least
        if filtered != 0:
            end = end | (tl.minimum(anchor - grid_of(chunk_top, inverse), BINS - 1.0) > get(record, END))
        begin = i_chunk * CHUNK
        best_score, best_id, above, between, place = float("-inf"), NO_TOKEN, 0.0, 0.0, 0
        if filtered != 0:
            place = tl.load(offsets_ptr + at)
        for start in range(begin, tl.where(end, begin, tl.minimum(begin + CHUNK, vocab)), TILE):
            o_tokens = start + tl.arange(0, TILE)
            mask = o_tokens < vocab
            row_ptr = logits_ptr + i_row * stride_row
            b_x = tl.load(row_ptr + o_tokens, mask=mask, other=float("-inf")).to(tl.float32)  # [TILE]
            # A token behind the vocabulary is minus infinity: of no mass, and no score that wins.
            m_sure = b_x >= least
            if filtered != 0:
                first, last, k_bin = get(record, FIRST), get(record, LAST), get(record, K_BIN)
                b_bins = tl.minimum(anchor - grid_of(b_x, inverse), BINS - 1.0).to(tl.int32)
                b_bins = tl.where(mask, b_bins, BINS)
                m_open = ((b_bins >= first) & (b_bins <= last)) | (b_bins == k_bin)
                if get(record, BY_MASS) != 0:
                    b_mass = tl.where(
                        m_sure, tl.exp2((b_x - get_float(record, TOP)) * (inverse * LOG2E)), 0.0
                    )
                    above += tl.sum(tl.where(b_bins < first, b_mass, 0.0), 0)
                    m_between = (b_bins > last) & (b_bins <= get(record, END)) & (b_bins != k_bin)
                    between += tl.sum(tl.where(m_between, b_mass, 0.0), 0)
                m_sure = m_sure & (b_bins < first)
                found = tl.sum(m_open.to(tl.int32), 0)
                if (found > 0) & (get(record, OVERFLOW) == 0):
                    o_out = i_row * capacity + place + tl.cumsum(m_open.to(tl.int32), 0) - 1
                    b_both = (b_x.to(tl.int32, bitcast=True).to(tl.int64) << 32) | o_tokens.to(tl.int64)
                    tl.store(candidates_ptr + o_out, b_both, mask=m_open)
                place += found
            b_gap = tl.where(m_sure, tl.fma(b_x, inverse, 0.0 - bound) + slack, float("-inf"))
            # No noise is above 22.9, and noise above t takes a number below e^-t, which is cheap to tell.
            if tl.max(b_gap, 0) > -22.9:
                draw = get(record, DRAW).to(tl.uint32, bitcast=True)
                b_words = run_of_words(get_seed(record), draw, start, TILE)
                m_may = uniform(b_words) < tl.exp2(tl.minimum(b_gap, 1.0) * LOG2E)
                if tl.max(m_may.to(tl.int32), 0) > 0:
                    b_score = tl.where(m_sure, tl.fma(b_x, inverse, gumbel(b_words)), float("-inf"))
                    score = tl.max(b_score, 0)
                    if score > best_score:
                        best_score = score
                        best_id = tl.min(tl.where(b_score == score, o_tokens, NO_TOKEN), 0)
                        bound = tl.maximum(bound, score)
        put_float(picks_ptr + at * 4, 0, above)
        put_float(picks_ptr + at * 4, 1, between)
        put_float(picks_ptr + at * 4, 2, best_score)
        put(picks_ptr + at * 4, 3, best_id)
