"""Calls of the launchers as the engine makes them, on tensors without memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from ._blocks import block_granules
from ._shapes import MAX_ROWS, Batch, Shape, arena, meta
from .attention_plan import AttentionPlan, DecodeWorkspace, PlanMode
from .blocks import copy_blocks, gather_dequant, zero_granules
from .decode import paged_decode
from .expert_plan import ExpertPlan
from .experts import expert_matmul
from .glu import glu
from .layout import GRANULE_BYTES
from .logits import count_tokens, edit_logits, gather_logprobs, penalise, start_counts
from .norm import add_rms_norm, rms_norm, rms_norm_add
from .plan import plan_attention
from .prefill import paged_prefill
from .qkv_post import qkv_post
from .routing import route_experts
from .sample import SampleWorkspace, sample
from .token_masks import mask_tokens
from .tokens import apply_table_deltas, fill_tokens, map_tokens

MAX_ITEMS = 1024
MAX_TILES = 1024
PENDING = 1


def _plan(batch: Batch) -> AttentionPlan:
    return AttentionPlan.allocate("meta", max_rows=batch.rows, max_items=MAX_ITEMS, max_tiles=MAX_TILES)


def prefill(shape: Shape, variant: str, batch: Batch) -> None:
    paged_prefill(
        shape.queries(batch.tokens),
        arena(),
        shape.layout,
        shape.block_table(),
        batch.slots,
        batch.query_start,
        batch.seq_lens,
        _plan(batch),
        shape.out(batch.tokens),
        scale=shape.scale,
        num_tiles=MAX_TILES,
        layer_offset=shape.layer_offset,
        window=shape.window,
        softcap=shape.softcap,
        variant=variant,
    )


def decode(shape: Shape, batch: Batch) -> None:
    paged_decode(
        shape.queries(batch.tokens),
        arena(),
        shape.layout,
        shape.block_table(),
        batch.slots,
        batch.query_start,
        batch.seq_lens,
        _plan(batch),
        DecodeWorkspace.allocate("meta", MAX_ITEMS, shape.num_heads, shape.head_dim),
        shape.out(batch.tokens),
        scale=shape.scale,
        layer_offset=shape.layer_offset,
        window=shape.window,
        softcap=shape.softcap,
    )


def write(shape: Shape, batch: Batch) -> None:
    norm = meta(torch.float32, shape.head_dim) if shape.has_head_norms else None
    rotary = shape.head_dim if shape.rotary_dim is None else shape.rotary_dim
    qkv_post(
        meta(shape.dtype, batch.tokens, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim),
        meta(torch.float32, 4096, rotary),
        meta(torch.int32, batch.tokens),
        meta(torch.int32, batch.tokens),
        arena(),
        shape.layout,
        shape.queries(batch.tokens),
        q_norm=norm,
        k_norm=norm,
        layer_offset=shape.layer_offset,
    )


def gather(shape: Shape, batch: Batch) -> None:
    """Quantised blocks as `shape.dtype`, for prefill to read."""
    floats = replace(shape, kv_dtype=None).layout
    blocks = 256
    gather_dequant(
        arena(),
        shape.layout,
        shape.block_table(),
        batch.slots,
        batch.seq_lens,
        meta(torch.int32, batch.rows + 1),
        meta(torch.uint8, blocks * block_granules(floats) * GRANULE_BYTES),
        floats,
        meta(torch.int32, batch.rows, blocks),
        layer_offset=shape.layer_offset,
        num_blocks=blocks,
    )


def plan(mode: PlanMode, batch: Batch) -> None:
    plan_attention(
        batch.query_start,
        batch.seq_lens,
        _plan(batch),
        num_kv_heads=8,
        tile_queries=32,
        num_sms=132,
        mode=mode,
    )


def steps(batch: Batch) -> None:
    """What every step does to tables and tokens, whichever model it runs."""
    table = meta(torch.int32, MAX_ROWS, 2048)
    entries = meta(torch.int32, batch.tokens)
    map_tokens(batch.query_start, batch.seq_lens, batch.slots, table, entries, block_size=64)
    apply_table_deltas(table, meta(torch.int32, 256, 3), meta(torch.int32, 1))
    tokens, last = meta(torch.int32, batch.tokens), meta(torch.int32, MAX_ROWS)
    flags = meta(torch.uint8, batch.rows)
    fill_tokens(tokens, last, batch.query_start, batch.slots, flags, PENDING)


def blocks(batch: Batch) -> None:
    copy_blocks(arena(), meta(torch.int32, batch.rows, 2), 2048)
    zero_granules(arena(), meta(torch.int32, batch.rows, 2))


def norm(hidden: int, dtype: torch.dtype, add: str, batch: Batch) -> None:
    x, residual = meta(dtype, batch.tokens, hidden), meta(dtype, batch.tokens, hidden)
    weight = meta(torch.float32, hidden)
    if add == "none":
        rms_norm(x, weight, 1e-6, x)
    elif add == "before":
        add_rms_norm(x, residual, weight, 1e-6, x)
    else:
        rms_norm_add(x, weight, 1e-6, residual)


def activation(width: int, dtype: torch.dtype, name: str, batch: Batch) -> None:
    glu(meta(dtype, batch.tokens, 2 * width), meta(dtype, batch.tokens, width), activation=name)


def route(dtype: torch.dtype, experts: int, top_k: int, batch: Batch) -> None:
    assignments = batch.tokens * top_k
    route_experts(
        meta(dtype, batch.tokens, experts),
        meta(torch.int32, batch.tokens),
        ExpertPlan.allocate("meta", assignments, experts).narrow(assignments, 16),
        top_k=top_k,
        normalize=True,
        tile_rows=16,
    )


def experts(
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    count: int,
    rows: int,
    repeats: int,
    columns: int,
    width: int,
    batch: Batch,
) -> None:
    assignments = batch.tokens * repeats
    expert_matmul(
        meta(dtype, batch.tokens, width),
        meta(weight_dtype, count, columns, width),
        None if weight_dtype is dtype else meta(torch.float32, count, columns),
        meta(torch.int32, assignments),
        meta(torch.int32, MAX_TILES, 3),
        meta(dtype, assignments, columns),
        tile_rows=rows,
        row_weights=meta(torch.float32, assignments) if repeats == 1 else None,
    )


def sampling(vocab: int, dtype: torch.dtype, batch: Batch) -> None:
    numbers, floats = meta(torch.int32, batch.rows), meta(torch.float32, batch.rows)
    sample(
        meta(dtype, batch.rows, vocab),
        temperature=floats,
        top_k=numbers,
        top_p=floats,
        min_p=floats,
        seeds=meta(torch.int64, batch.rows),
        draws=numbers,
        out_tokens=numbers,
        out_status=meta(torch.uint8, batch.rows),
        workspace=SampleWorkspace.allocate(torch.device("meta"), batch.rows, vocab),
    )


def penalties(vocab: int, dtype: torch.dtype, batch: Batch) -> None:
    rows, factors, counts = meta(torch.int32, 8), meta(torch.float32, 8), meta(torch.int32, batch.rows, vocab)
    logits = meta(dtype, batch.rows, vocab)
    penalise(logits, rows, rows, counts, repetition=factors, presence=factors, frequency=factors)
    start_counts(counts, 0, rows, rows)
    count_tokens(counts, rows, rows)
    edit_logits(logits, rows, rows, factors)
    mask_tokens(logits, rows, meta(torch.int32, 8, -(-vocab // 32)))


def logprobs(vocab: int, dtype: torch.dtype, count: int, batch: Batch) -> None:
    gather_logprobs(meta(dtype, batch.rows, vocab), meta(torch.int32, batch.rows), count)
