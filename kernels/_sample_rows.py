"""What sampling decides per row: before the second pass which bins hold the thresholds, after it the token."""

from __future__ import annotations

import triton
import triton.language as tl

from ._noise import gumbel, words_of
from ._sample_chunks import (
    BINS_PER_NAT,
    BOUND,
    BY_MASS,
    CANDIDATES,
    DRAW,
    END,
    FIELDS,
    FILTERED,
    FIRST,
    GREEDY,
    INVERSE,
    K_BIN,
    K_RANK,
    LAST,
    LEAST,
    LOG2E,
    NO_TOKEN,
    OVERFLOW,
    SAMPLED,
    SEED,
    TOP,
    TOP_P,
    TOTAL,
    get,
    get_float,
    get_seed,
    grid_of,
    is_filtered,
    put,
    put_float,
)  # fmt: skip


@triton.jit
def _mass_bounds(b_counts, b_low, ratio, total, over, BINS: tl.constexpr):
    """The least that the mass before each bin is, and the most that the mass up to it is. A token of a bin has between
    b_low and ratio times that, the last bin `over` at most: what counts from the row's start say, or what is left of
    the total by those behind."""
    o_bins = tl.arange(0, BINS)
    b_each = b_counts.to(tl.float32) * b_low  # [BINS]
    b_sum = tl.cumsum(b_each, 0)
    known = tl.sum(b_each, 0)
    slack = 4e-6 * total  # of sums in float32
    b_before = b_sum - b_each
    b_before = tl.maximum(b_before, total - tl.maximum(known - b_before, 0.0) * ratio - over) - slack
    b_most = tl.minimum(b_sum * ratio, total - tl.maximum(known - b_sum, 0.0)) + slack
    return b_before, tl.where(o_bins == BINS - 1, total + slack, b_most)


@triton.jit
def _histograms(row, start, CHUNKS: tl.constexpr, GROUP: tl.constexpr, BINS: tl.constexpr):
    """Histograms of some chunks of a row, [GROUP, BINS], moved to where the row's greatest logit is in bin 0; without
    the last bin."""
    stats_ptr, histogram_ptr, anchor, inverse = row
    o_chunks, o_bins = start + tl.arange(0, GROUP), tl.arange(0, BINS)
    m_chunks = o_chunks < CHUNKS
    b_max = tl.load(stats_ptr + o_chunks * 4, mask=m_chunks, other=0).to(tl.float32, bitcast=True)
    m_chunks = m_chunks & (b_max > float("-inf"))
    b_shift = tl.minimum(anchor - grid_of(b_max, inverse), BINS * 1.0).to(tl.int32)
    b_off = o_bins[None, :] - b_shift[:, None]
    mask = m_chunks[:, None] & (b_off >= 0) & (o_bins < BINS - 1)[None, :]
    return tl.load(histogram_ptr + (o_chunks * BINS)[:, None] + b_off, mask=mask, other=0)


@triton.jit(do_not_specialize=["vocab", "capacity"])
def bounds_kernel(
    temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, draws_ptr, stats_ptr, histogram_ptr, records_ptr,
    offsets_ptr, tokens_ptr, status_ptr, vocab, capacity,
    CHUNKS: tl.constexpr, CHUNKS_P: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Status, the token of rows without a draw, and what the second pass is to know of others."""
    i_row = tl.program_id(0).to(tl.int64)
    record = records_ptr + i_row * FIELDS
    o_chunks = tl.arange(0, CHUNKS_P)
    m_chunks = o_chunks < CHUNKS
    stats = stats_ptr + (i_row * CHUNKS + o_chunks) * 4
    b_max = tl.load(stats, mask=m_chunks, other=0).to(tl.float32, bitcast=True)  # [CHUNKS_P]
    b_max = tl.where(m_chunks, b_max, float("-inf"))
    b_argmax = tl.load(stats + 1, mask=m_chunks, other=NO_TOKEN)
    top = tl.max(b_max, 0)
    argmax = tl.min(tl.where(b_max == top, b_argmax, NO_TOKEN), 0)
    broken = (tl.abs(top) == float("inf")).to(tl.int32)
    temperature = tl.load(temperature_ptr + i_row)
    sampled = (temperature >= GREEDY).to(tl.int32) & (1 - broken)
    tl.store(status_ptr + i_row, broken.to(tl.uint8))
    tl.store(tokens_ptr + i_row, tl.where(broken != 0, 0, argmax))
    put(record, SAMPLED, sampled)
    if sampled != 0:
        top_k, top_p = tl.load(top_k_ptr + i_row), tl.load(top_p_ptr + i_row)
        min_p = tl.load(min_p_ptr + i_row)
        # Not divided here: a division is a call, around which registers go to memory.
        inverse = tl.load(stats_ptr + i_row * CHUNKS * 4 + 3).to(tl.float32, bitcast=True)
        least = float("-inf")
        if min_p > 0:
            least = top + tl.log(tl.minimum(min_p, 1.0)) * temperature
        seed, draw = tl.load(seeds_ptr + i_row), tl.load(draws_ptr + i_row)
        noise = gumbel(words_of(seed, draw.to(tl.uint32, bitcast=True), argmax))
        filtered = is_filtered(top_k, top_p, vocab)
        put_float(record, TOP, top)
        put_float(record, LEAST, least)
        put_float(record, BOUND, tl.fma(top, inverse, noise))
        put_float(record, INVERSE, inverse)
        put_float(record, TOP_P, top_p)
        put(record, SEED, seed.to(tl.int32))
        put(record, SEED + 1, (seed >> 32).to(tl.int32))
        put(record, DRAW, draw)
        put(record, FILTERED, filtered.to(tl.int32))
        put(record, BY_MASS, (top_p < 1.0).to(tl.int32))
        put(record, CANDIDATES, 0)
        if filtered:
            first, last, k_bin, end, k_rank, total = BINS, BINS - 1, -1, BINS - 1, 0, -1.0
            anchor = grid_of(top, inverse)
            o_bins = tl.arange(0, BINS)
            row = (stats_ptr + i_row * CHUNKS * 4, histogram_ptr + i_row * CHUNKS * BINS, anchor, inverse)
            b_bins = tl.zeros([BINS], tl.int32)
            for start in range(0, vocab, GROUP * CHUNK):
                b_bins += tl.sum(_histograms(row, start // CHUNK, CHUNKS, GROUP, BINS), 0)
            over = vocab - tl.sum(b_bins, 0)  # tokens BINS - 1 lines below the top and more
            b_bins = tl.where(o_bins == BINS - 1, over, b_bins)
            if min_p > 0:
                end = tl.minimum(anchor - grid_of(least, inverse), BINS - 1.0).to(tl.int32)
            if (top_k > 0) & (top_k < vocab):
                k_at = tl.sum((tl.cumsum(b_bins, 0) < top_k).to(tl.int32), 0)
                if k_at <= end:
                    first, last, k_bin, end = k_at, k_at, k_at, k_at
                    k_rank = top_k - tl.sum(tl.where(o_bins < k_at, b_bins, 0), 0)
            if top_p < 1.0:
                m_sums = b_max > float("-inf")
                b_sums = tl.load(stats + 2, mask=m_sums, other=0).to(tl.float32, bitcast=True)
                b_sums = tl.where(m_sums, b_sums * tl.exp2((b_max - top) * (inverse * LOG2E)), 0.0)
                mass = tl.sum(b_sums, 0)
                # A logit over the temperature is rounded; far from zero that shows in its mass.
                blur = tl.minimum(tl.abs(top * inverse) * 4.8e-7, 40.0)
                ratio = tl.exp(1 / BINS_PER_NAT + 2 * blur)
                b_low = tl.exp((anchor - o_bins) / BINS_PER_NAT - top * inverse - blur)
                mass_over = over.to(tl.float32) * ratio * tl.sum(tl.where(o_bins == BINS - 2, b_low, 0.0), 0)
                b_low = tl.where(o_bins == BINS - 1, 0.0, b_low)
                b_before, b_most = _mass_bounds(b_bins, b_low, ratio, mass, mass_over, BINS)
                kept_least, kept_most = mass, mass
                if (k_bin >= 0) | (min_p > 0):
                    kept_least = tl.sum(tl.where(o_bins == end, b_before, 0.0), 0)
                    kept_most = tl.sum(tl.where(o_bins == end, b_most, 0.0), 0)
                else:
                    total = mass
                first = tl.min(tl.where(b_most >= top_p * kept_least, o_bins, BINS - 1), 0)
                last = tl.max(tl.where(b_before < top_p * kept_most, o_bins, 0), 0)
                first = tl.minimum(first, end)
                last = tl.maximum(tl.minimum(last, end), first)
                if total >= 0:
                    end = last
            put(record, FIRST, first)
            put(record, LAST, last)
            put(record, K_BIN, k_bin)
            put(record, END, end)
            put(record, K_RANK, k_rank)
            put_float(record, TOTAL, total)
            m_open = ((o_bins >= first) & (o_bins <= last)) | (o_bins == k_bin)
            takes_over = ((last == BINS - 1) & (first < BINS)) | (k_bin == BINS - 1)
            candidates = 0
            for start in range(0, vocab, GROUP * CHUNK):
                o_group = start // CHUNK + tl.arange(0, GROUP)
                b_counts = _histograms(row, start // CHUNK, CHUNKS, GROUP, BINS)
                b_open = tl.sum(tl.where(m_open[None, :], b_counts, 0), 1)  # [GROUP]
                b_lengths = tl.maximum(tl.minimum(vocab - o_group * CHUNK, CHUNK), 0)
                b_open += tl.where(takes_over, b_lengths - tl.sum(b_counts, 1), 0)
                b_offsets = candidates + tl.cumsum(b_open, 0) - b_open
                tl.store(offsets_ptr + i_row * CHUNKS + o_group, b_offsets, mask=o_group < CHUNKS)
                candidates += tl.sum(b_open, 0)
            put(record, CANDIDATES, candidates)
            put(record, OVERFLOW, (candidates > capacity).to(tl.int32))


@triton.jit
def _key_of(b_x):
    """Integers in the order of floats."""
    bits = tl.where(b_x == 0, 0.0, b_x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value_of(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _candidates(source, start, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """A tile of the row's candidates: logits, their keys, tokens, which are some at all and which lie in K_BIN."""
    candidates_ptr, row_ptr, overflow, count, first, last, k_bin, anchor, inverse = source
    o_at = start + tl.arange(0, BLOCK)
    m_at = o_at < count
    if overflow == 0:
        b_both = tl.load(candidates_ptr + o_at, mask=m_at, other=0)
        b_x = (b_both >> 32).to(tl.int32).to(tl.float32, bitcast=True)
        b_tokens = b_both.to(tl.int32)
    else:  # too many for the workspace: all of the row is looked through
        b_x = tl.load(row_ptr + o_at, mask=m_at, other=0.0).to(tl.float32)
        b_tokens = o_at
    b_bins = tl.minimum(anchor - grid_of(b_x, inverse), BINS - 1.0).to(tl.int32)
    m_k = m_at & (b_bins == k_bin)
    m_at = (m_at & (b_bins >= first) & (b_bins <= last)) | m_k
    return b_x, _key_of(b_x), b_tokens, m_at, m_k


# What `_thresholds` is looking for, one after the other.
KTH = tl.constexpr(0)
ALL_MASS = tl.constexpr(1)
EDGE = tl.constexpr(2)
MASS_ABOVE = tl.constexpr(3)
EQUAL = tl.constexpr(4)
LAST_TIE = tl.constexpr(5)
DONE = tl.constexpr(6)


@triton.jit
def _measure(source, phase, key, edge, token, least, top, BLOCK: tl.constexpr, BINS: tl.constexpr):
    """How many candidates of K_BIN are above `key`; the mass of all that are, from `least`; or how many have the key
    `edge` and are before `token`."""
    weight = source[8] * LOG2E
    total = 0.0
    for start in range(0, source[3], BLOCK):
        b_x, b_keys, b_tokens, m_all, m_k = _candidates(source, start, BLOCK, BINS)
        m_tie = (b_keys == edge) & (b_tokens < token)
        m_all = m_all & (b_x >= least) & tl.where(phase >= EQUAL, m_tie, b_keys > key)
        counts = (phase == KTH) | (phase >= EQUAL)
        b_each = tl.where(counts, 1.0, tl.exp2((b_x - top) * weight))
        m_each = tl.where(phase == KTH, m_k & (b_keys > key), m_all)
        total += tl.sum(tl.where(m_each, b_each, 0.0), 0)
    return tl.cast(total, tl.float64)


@triton.jit
def _thresholds(
    source, low, high, top, least, k_rank, top_p, before, between, total, vocab, BLOCK: tl.constexpr, BINS: tl.constexpr
):  # fmt: skip
    """The least logit, the least key, and before which token: what is kept of the candidates that have that key.

    Each search halves [at_least, at_most], the keys or tokens among which the answer is, by one look at all candidates.
    """
    edge, last_tie = low, vocab
    lacking = before
    at_least, at_most = low.to(tl.int64), high.to(tl.int64)
    phase = tl.where(k_rank > 0, KTH, tl.where(top_p < 1.0, ALL_MASS, DONE))
    while phase < DONE:
        middle = (at_least + at_most + 1) >> 1
        key = tl.where(
            phase == ALL_MASS, low - 1, tl.where(phase == MASS_ABOVE, edge, (middle - 1).to(tl.int32))
        )
        token = tl.where(phase == LAST_TIE, middle.to(tl.int32), vocab)
        found = _measure(source, phase, key, edge, token, least, top, BLOCK, BINS)
        one = tl.exp2((_value_of(edge) - top) * (source[8] * LOG2E)).to(tl.float64)
        if phase == ALL_MASS:
            lacking = top_p.to(tl.float64) * tl.where(total < 0, before + found + between, total) - before
            phase = EDGE
        elif phase == MASS_ABOVE:
            lacking -= found
            phase = EQUAL
        elif phase == EQUAL:
            # Of equal ones at the edge as many as it takes, by ascending id, and one at least.
            phase = tl.where(lacking <= (found - 1) * one, LAST_TIE, DONE)
            at_least, at_most = tl.zeros_like(at_least), tl.cast(vocab - 1, tl.int64)
        else:
            is_least = found >= tl.where(phase == KTH, k_rank.to(tl.float64), lacking)
            too_few = (found == 0) | (found * one < lacking)
            if tl.where(phase == LAST_TIE, too_few, is_least):
                at_least = middle
            else:
                at_most = middle - 1
            if at_least >= at_most:
                if phase == KTH:
                    least = tl.maximum(least, _value_of(at_least.to(tl.int32)))
                    at_least, at_most = low.to(tl.int64), high.to(tl.int64)
                    phase = tl.where(top_p < 1.0, ALL_MASS, DONE)
                elif phase == EDGE:
                    edge = at_least.to(tl.int32)
                    phase = tl.full([], MASS_ABOVE, tl.int32)
                else:
                    last_tie = (at_least + 1).to(tl.int32)
                    phase = tl.full([], DONE, tl.int32)
    return least, edge, last_tie


@triton.jit(do_not_specialize=["vocab", "capacity"])
def choose_kernel(
    logits_ptr, records_ptr, candidates_ptr, picks_ptr, tokens_ptr, stride_row: tl.int64, vocab, capacity,
    CHUNKS: tl.constexpr, CHUNKS_P: tl.constexpr, BLOCK: tl.constexpr, BINS: tl.constexpr,
):  # fmt: skip
    """Finds the thresholds among the row's candidates, and the token with the best score of all that are kept."""
    i_row = tl.program_id(0).to(tl.int64)
    record = records_ptr + i_row * FIELDS
    if get(record, SAMPLED) != 0:
        o_chunks = tl.arange(0, CHUNKS_P)
        m_chunks = o_chunks < CHUNKS
        picks = picks_ptr + (i_row * CHUNKS + o_chunks) * 4
        b_best = tl.load(picks + 2, mask=m_chunks, other=0).to(tl.float32, bitcast=True)
        b_best = tl.where(m_chunks, b_best, float("-inf"))
        b_best_tokens = tl.load(picks + 3, mask=m_chunks, other=NO_TOKEN)
        best = tl.max(b_best, 0)
        token = tl.min(tl.where(b_best == best, b_best_tokens, NO_TOKEN), 0)
        candidates = get(record, CANDIDATES)
        if candidates > 0:
            overflow = get(record, OVERFLOW)
            count = tl.where(overflow != 0, vocab, candidates)
            top, least, inverse = get_float(record, TOP), get_float(record, LEAST), get_float(record, INVERSE)
            source = (
                candidates_ptr + i_row * capacity, logits_ptr + i_row * stride_row, overflow, count,
                get(record, FIRST), get(record, LAST), get(record, K_BIN), grid_of(top, inverse), inverse,
            )  # fmt: skip
            low, high = NO_TOKEN, -NO_TOKEN - 1
            for start in range(0, count, BLOCK):
                b_x, b_keys, _, m_all, _ = _candidates(source, start, BLOCK, BINS)
                low = tl.minimum(low, tl.min(tl.where(m_all, b_keys, NO_TOKEN), 0))
                high = tl.maximum(high, tl.max(tl.where(m_all, b_keys, -NO_TOKEN - 1), 0))
            b_above = tl.load(picks, mask=m_chunks, other=0).to(tl.float32, bitcast=True)
            b_between = tl.load(picks + 1, mask=m_chunks, other=0).to(tl.float32, bitcast=True)
            least, edge, last_tie = _thresholds(
                source, low, high, top, least, get(record, K_RANK), get_float(record, TOP_P),
                tl.sum(b_above, 0).to(tl.float64), tl.sum(b_between, 0).to(tl.float64),
                get_float(record, TOTAL).to(tl.float64), vocab, BLOCK, BINS,
            )  # fmt: skip
            seed, draw = get_seed(record), get(record, DRAW).to(tl.uint32, bitcast=True)
            for start in range(0, count, BLOCK):
                b_x, b_keys, b_tokens, m_all, _ = _candidates(source, start, BLOCK, BINS)
                m_all = (
                    m_all & (b_x >= least) & ((b_keys > edge) | ((b_keys == edge) & (b_tokens < last_tie)))
                )
                if tl.max(m_all.to(tl.int32), 0) > 0:
                    b_noise = gumbel(words_of(seed, draw, b_tokens))
                    b_score = tl.where(m_all, tl.fma(b_x, inverse, b_noise), float("-inf"))
                    score = tl.max(b_score, 0)
                    winner = tl.min(tl.where(b_score == score, b_tokens, NO_TOKEN), 0)
                    if (score > best) | ((score == best) & (winner < token)):
                        best, token = score, winner
        tl.store(tokens_ptr + i_row, token)
