"""How much is lost: keys and values in 8 bits against what they were, 16-bit attention beside torch's own."""

from __future__ import annotations

import functools
import itertools

import torch

from airi.kernels.qkv_post import qkv_post
from benches.gpu import oracle
from benches.gpu.attend import Attend, Widened, empty_out
from benches.gpu.bench import Bench, Case, Row
from benches.gpu.check_attention import name_of, seeds, small_pool, usual
from benches.gpu.check_writes import angles, entries_of, positions_of
from benches.gpu.checks import Checks
from benches.gpu.pool import Batch, Heads, Pool, make_batch, random_queries

_LENS = (64, 65, 300, 1025, 2500)
_DECODED = (1, 63, 64, 65, 129, 1023, 1025, 4097)
_UNQUANTISED = {torch.float8_e4m3fn: 6e-2, torch.int8: 3e-2}
"""Relative, of attention over keys and values as they were before they were stored."""
_TIMES_TORCH = 2.0
"""How many times torch's error is still as good."""


def cases(bench: Bench) -> list[Case]:
    dims = (32,) if bench.toy else (64, 128, 256)
    stored = (torch.int8,) if bench.toy else tuple(_UNQUANTISED)
    return [
        *[
            Case(
                name=f"{name_of(s)} kv against unquantised",
                run=functools.partial(_unquantised, stored=s),
                seconds=15,
            )
            for s in stored
        ],
        *[
            Case(name=f"error beside torch's D{d}", run=functools.partial(_beside_torch, dim=d), seconds=15)
            for d in dims
        ],
    ]


def _unquantised(bench: Bench, *, stored: torch.dtype) -> list[Row]:
    """Written by the kernel that quantises, read by decoding and, widened first, by prefill."""
    heads, _ = usual(bench)
    dtype = torch.float16 if bench.toy else torch.bfloat16
    checks = Checks()
    for seed in seeds(bench):
        pool = small_pool(bench, heads, stored)
        pool.arena.fill_(255)
        lens = (5, 20, 33) if bench.toy else _LENS
        prompts = make_batch(pool, lens, lens, seed=seed)
        q, keys, values = _write(bench, pool, prompts, dtype, seed)
        expected = _exact(prompts, q, keys, values)
        wide = Widened(pool, prompts, dtype)
        wide.gather(1)
        out = empty_out(prompts, pool, dtype, poison=True)
        Attend(wide.pool, wide.batch, part="prefill")(q, out, 0)
        checks.near(f"prefill seed {seed}", out, expected, _UNQUANTISED[stored])
        last = prompts.query_start[1:].long() - 1
        rows = make_batch(pool, lens, seed=seed)
        out = empty_out(rows, pool, dtype, poison=True)
        Attend(pool, rows)(q[:, last].contiguous(), out, 1)
        checks.near(f"decode seed {seed}", out, expected[last], _UNQUANTISED[stored])
    return checks.rows()


def _write(
    bench: Bench, pool: Pool, batch: Batch, dtype: torch.dtype, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Writes a prompt per row into layer 1; its queries, and its keys and values [tokens, kv_heads, dim] in float64."""
    heads, positions = pool.heads, positions_of(batch)
    draw = torch.Generator(device=bench.device).manual_seed(seed)
    width = heads.q_heads + 2 * heads.kv_heads
    qkv = torch.randn((batch.tokens, width, heads.head_dim), generator=draw, device=bench.device).to(dtype)
    cos_sin = angles(bench, max(batch.lens), heads.head_dim)
    shape = (heads.kv_heads, batch.tokens, heads.group, heads.head_dim)
    q = torch.full(shape, float("nan"), dtype=dtype, device=bench.device)
    entries = entries_of(batch, pool.layout.block_size)
    place = (positions, entries, pool.arena, pool.layout, q)
    qkv_post(qkv, cos_sin, *place, eps=1e-6, layer_offset=pool.layer_offset(1))
    _, keys, values = qkv.split((heads.q_heads, heads.kv_heads, heads.kv_heads), 1)
    return q, oracle.rotated(keys, cos_sin, positions), values.double()


def _exact(batch: Batch, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of whole prompts over their own keys and values: [tokens, q_heads, dim] float64."""
    starts, outs = batch.query_start.tolist(), []
    for first, last in itertools.pairwise(starts):
        kv = (x[first:last].transpose(0, 1) for x in (keys, values))
        out, _ = oracle.attention_of_row(q[:, first:last].double(), *kv, scale=q.shape[-1] ** -0.5)
        outs.append(out.transpose(0, 1).reshape(last - first, -1, q.shape[-1]))
    return torch.cat(outs)


def _beside_torch(bench: Bench, *, dim: int) -> list[Row]:
    heads = Heads(kv_heads=2, group=2 if bench.toy else 4, head_dim=dim)
    dtype = torch.float16 if bench.toy else torch.bfloat16
    checks = Checks()
    for seed in seeds(bench):
        pool = small_pool(bench, heads, dtype, seed=seed)
        for what in ("decode", "prefill"):
            lens = (5, 20, 33) if bench.toy else _DECODED if what == "decode" else _LENS
            batch = make_batch(pool, lens, lens if what == "prefill" else None, seed=seed)
            q = random_queries(batch, heads, dtype, bench.device, seed=seed)
            expected, _, tokens = oracle.attention(
                q, pool.arena, pool.layout, batch, scale=dim**-0.5, layer_offset=pool.layer_offset(1)
            )
            theirs = oracle.relative_error(_torch(pool, batch, q)[tokens], expected)
            out = empty_out(batch, pool, dtype, poison=True)
            Attend(pool, batch)(q, out, 1)
            checks.near(f"{what} seed {seed}", out[tokens], expected, _TIMES_TORCH * theirs)
    return checks.rows()


def _torch(pool: Pool, batch: Batch, q: torch.Tensor) -> torch.Tensor:
    """scaled_dot_product_attention of rows of one query or of whole prompts: [tokens, q_heads, dim]."""
    starts, outs, heads = batch.query_start.tolist(), [], pool.heads
    for row, keys in enumerate(batch.lens):
        first, last = starts[row], starts[row + 1]
        entries = batch.block_table[batch.slots[row].long()]
        stored = oracle.stored(pool.arena, pool.layout, entries, keys, pool.layer_offset(1))
        kv = (x.to(q.dtype).repeat_interleave(heads.group, 0)[None] for x in stored)
        piece = q[:, first:last].transpose(1, 2).reshape(1, heads.q_heads, last - first, heads.head_dim)
        out = torch.nn.functional.scaled_dot_product_attention(piece, *kv, is_causal=last - first > 1)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
