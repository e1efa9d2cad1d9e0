"""What goes into the arena and what is copied inside it: keys and values, whole blocks, quantised ones widened."""

from __future__ import annotations

import functools

import torch

from airi.kernels.blocks import copy_blocks, zero_granules
from airi.kernels.layout import GRANULE_BYTES
from airi.kernels.qkv_post import qkv_post
from airi.kernels.tokens import map_tokens
from benches.gpu import oracle
from benches.gpu.attend import Widened
from benches.gpu.bench import Bench, Case, Row
from benches.gpu.check_attention import a_batch, name_of, small_pool
from benches.gpu.checks import Checks
from benches.gpu.pool import Batch, Heads, Pool, make_batch

_STORED = (torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn, torch.int8)
_EPS = 1e-6


def cases(bench: Bench) -> list[Case]:
    dims = (32,) if bench.toy else (128, 64, 80, 96, 256)
    stored = (torch.float32, torch.int8) if bench.toy else _STORED
    found = [
        Case(name=f"qkv_post {name_of(s)} D{d}", run=functools.partial(_qkv_post, dim=d, stored=s), seconds=8)
        for d in dims
        for s in stored
    ]
    return [
        *found,
        Case(name="map_tokens", run=_map_tokens, seconds=5),
        Case(name="copy_blocks and zero_granules", run=_blocks, seconds=5),
        Case(name="gather_dequant", run=_gather, seconds=10),
    ]


def positions_of(batch: Batch) -> torch.Tensor:
    """int32 [tokens] on the batch's device."""
    found = [p for n, q in zip(batch.lens, batch.query_lens, strict=True) for p in range(n - q, n)]
    return torch.tensor(found, dtype=torch.int32, device=batch.seq_lens.device)


def entries_of(batch: Batch, block_size: int) -> torch.Tensor:
    """The block-table entry of each token's block, int32 [tokens]."""
    queries = torch.tensor(batch.query_lens, device=batch.slots.device)
    rows = torch.repeat_interleave(torch.arange(batch.rows, device=batch.slots.device), queries)
    lines = batch.slots[rows].long()
    return batch.block_table[lines, positions_of(batch).long() // block_size]


def angles(bench: Bench, positions: int, rot_dim: int) -> torch.Tensor:
    """float32 [positions, rot_dim]: cosines, then sines."""
    rates = 10000.0 ** (-torch.arange(rot_dim // 2, dtype=torch.float64) / (rot_dim // 2))
    turns = torch.arange(positions, dtype=torch.float64)[:, None] * rates
    return torch.cat((turns.cos(), turns.sin()), 1).float().to(bench.device)


def _places(pool: Pool, entries: torch.Tensor, positions: torch.Tensor, layer: int) -> torch.Tensor:
    """Bytes from the arena's start to each token's key in each head, int64 [tokens, kv_heads]."""
    layout = pool.layout
    slot = positions.long() % layout.block_size
    head = torch.arange(layout.num_kv_heads, device=entries.device) * layout.head_stride
    start = entries.long() * GRANULE_BYTES + pool.layer_offset(layer) + slot * layout.token_stride
    return start[:, None] + head


def _read(pool: Pool, entries: torch.Tensor, positions: torch.Tensor, layer: int) -> torch.Tensor:
    """What the arena holds for the tokens: float64 [2, tokens, kv_heads, dim], scales applied."""
    layout = pool.layout
    place = _places(pool, entries, positions, layer)
    dim = torch.arange(layout.head_dim, device=place.device)
    found = []
    for kv in (0, 1):
        offsets = (place + kv * layout.kv_stride)[..., None] + dim * layout.dtype.itemsize
        values = oracle.elements(pool.arena, layout.dtype, offsets)
        if layout.is_quantised:
            slot = positions.long()[:, None] % layout.block_size
            start = place - slot * layout.token_stride + layout.scale_offset
            scales = start + 4 * (kv * layout.block_size + slot)
            values = values * oracle.elements(pool.arena, torch.float32, scales)[..., None]
        found.append(values)
    return torch.stack(found)


def _qkv_post(bench: Bench, *, dim: int, stored: torch.dtype) -> list[Row]:
    checks = Checks()
    dtype = stored if stored.itemsize > 1 else torch.float16 if bench.toy else torch.bfloat16
    for group in (2,) if bench.toy else (1, 4, 5, 16):
        heads = Heads(kv_heads=2, group=group, head_dim=dim)
        pool = small_pool(bench, heads, stored)
        pool.arena.fill_(255)
        batch = a_batch(bench, pool, prefill=True)
        for rot_dim, norms in ((dim, False), (dim // 2, True), (0, False)):
            if bench.toy and rot_dim == 0:
                continue
            _one_qkv_post(checks, bench, pool, batch, dtype, rot_dim=rot_dim, norms=norms)
    return checks.rows()


def _one_qkv_post(
    checks: Checks, bench: Bench, pool: Pool, batch: Batch, dtype: torch.dtype, *, rot_dim: int, norms: bool
) -> None:
    heads, device = pool.heads, bench.device
    draw = torch.Generator(device=device).manual_seed(11)
    padding = 3
    tokens = batch.tokens + padding
    width = heads.q_heads + 2 * heads.kv_heads
    qkv = torch.randn((tokens, width, heads.head_dim), generator=draw, device=device).to(dtype)
    positions = torch.cat((positions_of(batch), torch.zeros(padding, dtype=torch.int32, device=device)))
    none = torch.full((padding,), -1, dtype=torch.int32, device=device)
    entries = torch.cat((entries_of(batch, pool.layout.block_size), none))
    weights = [torch.rand(heads.head_dim, generator=draw, device=device) + 0.5 for _ in range(2)]
    q_norm, k_norm = weights if norms else (None, None)
    cos_sin = angles(bench, max(batch.lens), rot_dim)
    q_out = torch.full(
        (heads.kv_heads, tokens, heads.group, heads.head_dim), float("nan"), dtype=dtype, device=device
    )
    qkv_post(
        qkv,
        cos_sin,
        positions,
        entries,
        pool.arena,
        pool.layout,
        q_out,
        q_norm=q_norm,
        k_norm=k_norm,
        eps=_EPS,
        layer_offset=pool.layer_offset(1),
    )
    q, k, v = qkv.split((heads.q_heads, heads.kv_heads, heads.kv_heads), 1)
    if norms:
        q, k = oracle.rms_norm(q, weights[0], _EPS), oracle.rms_norm(k, weights[1], _EPS)
    live = batch.tokens
    label = f"G{heads.group} rot {rot_dim}" + " normed" * norms
    limit = _write_tolerance(dtype, interpreted=bench.toy)
    want_q = oracle.rotated(q, cos_sin, positions)[:live]
    want_q = want_q.view(live, heads.kv_heads, heads.group, heads.head_dim).transpose(0, 1)
    checks.near(f"{label} q", q_out[:, :live], want_q, limit)
    checks.true(f"{label} q padding", ok=bool((q_out[:, live:] == 0).all()), else_say="is not zero")
    wanted = torch.stack((oracle.rotated(k, cos_sin, positions), v.double()))[:, :live]
    found = _read(pool, entries[:live], positions[:live], 1)
    if pool.layout.is_quantised:
        limit = 4e-2 if pool.layout.dtype is torch.float8_e4m3fn else 1e-2
    checks.near(f"{label} keys", found[0], wanted[0], limit)
    checks.near(f"{label} values", found[1], wanted[1], limit)


def _write_tolerance(dtype: torch.dtype, *, interpreted: bool) -> float:
    """One rounding of the result; truncation where interpreted."""
    return {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3 if interpreted else 3e-3}[dtype]


def _map_tokens(bench: Bench) -> list[Row]:
    checks = Checks()
    pool = small_pool(bench, Heads(kv_heads=2, group=2, head_dim=64), torch.float16)
    for seed in range(3):
        batch = a_batch(bench, pool, prefill=True, seed=seed)
        size = pool.layout.block_size
        out = torch.full((batch.tokens + 5,), -7, dtype=torch.int32, device=bench.device)
        map_tokens(batch.query_start, batch.seq_lens, batch.slots, batch.block_table, out, block_size=size)
        checks.same_bits(f"seed {seed}", out[: batch.tokens], entries_of(batch, size))
        checks.true(f"seed {seed} padding", ok=bool((out[batch.tokens :] == -1).all()), else_say="is not -1")
    return checks.rows()


def _blocks(bench: Bench) -> list[Row]:
    checks = Checks()
    arena = bench.arena(None if bench.toy else 512 << 20)
    small = arena[: (1 << 20) if bench.toy else (256 << 20)]
    small.copy_(torch.randint(0, 256, small.shape, dtype=torch.uint8, device=bench.device))
    units = small.view(-1, GRANULE_BYTES)
    granules = 2 if bench.toy else 16
    count = 4 if bench.toy else 64
    order = torch.randperm(units.shape[0] // granules)[: 2 * count].to(bench.device) * granules
    pairs = order.view(count, 2).int()
    wanted = small.clone().view(-1, GRANULE_BYTES)
    for source, target in pairs.tolist():
        wanted[target : target + granules] = units[source : source + granules]
    copy_blocks(arena, pairs, granules)
    checks.same_bits("copy_blocks", small, wanted.view(-1))
    ranges = torch.tensor([[1, 3], [40, 1], [0, 0]], dtype=torch.int32, device=bench.device)
    for first, length in ranges.tolist():
        wanted[first : first + length] = 0
    zero_granules(arena, ranges)
    checks.same_bits("zero_granules", small, wanted.view(-1))
    return checks.rows()


def _gather(bench: Bench) -> list[Row]:
    """A quantised context as blocks of the compute dtype, one after the other in a scratch arena."""
    checks = Checks()
    dim = 32 if bench.toy else 128
    dtype = torch.float16 if bench.toy else torch.bfloat16
    for stored in (torch.int8,) if bench.toy else (torch.float8_e4m3fn, torch.int8):
        heads = Heads(kv_heads=2, group=2, head_dim=dim)
        pool = small_pool(bench, heads, stored)
        batch = make_batch(pool, (20, 0, 33) if bench.toy else (1000, 0, 4097, 64), seed=9)
        widened = Widened(pool, batch, dtype)
        widened.gather(1)
        for row, keys in enumerate(batch.lens):
            if not keys:
                continue
            entries = batch.block_table[batch.slots[row].long()]
            wanted = oracle.stored(pool.arena, pool.layout, entries, keys, pool.layer_offset(1))
            scratch = widened.pool
            found = oracle.stored(scratch.arena, scratch.layout, widened.batch.block_table[row], keys, 0)
            limit = _write_tolerance(dtype, interpreted=bench.toy)
            for what, a, b in zip(("keys", "values"), found, wanted, strict=True):
                checks.near(f"{name_of(stored)} {keys} {what}", a, b, limit)
    return checks.rows()
