"""Decoding and prefill against float64: dtypes, head dims, groups, windows, soft caps, block sizes, far places."""

from __future__ import annotations

import torch

from airi.kernels.layout import GRANULE_BYTES
from benches.gpu import oracle
from benches.gpu.attend import Attend, Mode, Variant, Widened, empty_out
from benches.gpu.bench import Bench, Case, NotHere, Row
from benches.gpu.checks import Checks
from benches.gpu.pool import Batch, Heads, Pool, make_batch, random_queries

_STORED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_DIMS = (64, 80, 96, 128, 256)
_GROUPS = (1, 2, 4, 5, 7, 8, 16)
_LENS = (1, 63, 0, 64, 65, 127, 128, 129, 1023, 1025, 4097, 300)
"""Around blocks and chunks; a row of 0 is padding."""
_QUERIES = (1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 300)
_PREFILL_LENS = (17, 64, 0, 200, 513, 1030, 129, 4097)
_PREFILL_QUERIES = (17, 64, 0, 130, 512, 6, 2, 257)
_VARIANTS: tuple[Variant, ...] = ("pointer", "tma")
SEEDS = (1, 2, 3)
"""Each draws other keys, values, queries and places."""
_ARENA_BYTES = 512 << 20
_FAR_BYTES = 9 << 30
"""Enough that 16-bit elements lie beyond 2**32, 8-bit ones beyond 2**33."""


def cases(bench: Bench) -> list[Case]:
    """What the engine runs by default first; float32 last, as its products are slow to compile."""
    dims = (32, 64) if bench.toy else sorted(_DIMS, key=lambda dim: dim != 128)
    sixteen = torch.float16 if bench.toy else torch.bfloat16
    plain: list[Case] = []
    for dtype in (torch.bfloat16,) if bench.toy else (torch.bfloat16, torch.float16):
        plain += [case for dim in dims for case in _pair(name_of(dtype), dim, dtype, dtype)]
    quantised = [
        case
        for name, stored in _STORED.items()
        for dim in dims
        for case in _pair(f"{name} kv", dim, sixteen, stored)
    ]
    full = [case for dim in dims for case in _pair("float32", dim, torch.float32, torch.float32)]
    half = len(plain) // 2
    return [*plain[:half], *_places(), *quantised, *plain[half:], *full]


def _places() -> list[Case]:
    return [
        Case(name="attention: far in the arena", run=_far, seconds=20),
        Case(name="attention: TMA is pointer", run=_tma, seconds=20),
        Case(name="attention: blocks of 16 and 32", run=_small_blocks, seconds=20),
    ]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _pair(name: str, dim: int, dtype: torch.dtype, stored: torch.dtype) -> list[Case]:
    def decode(bench: Bench) -> list[Row]:
        return _against_oracle(bench, dim, dtype, stored, prefill=False)

    def prefill(bench: Bench) -> list[Row]:
        return _against_oracle(bench, dim, dtype, stored, prefill=True)

    # Products in float32 take four times as long to compile: 4 s for prefill of 128 elements.
    times = 3 if dtype is torch.float32 else 1
    return [
        Case(name=f"decode {name} D{dim}", run=decode, seconds=12 * times),
        Case(name=f"prefill {name} D{dim}", run=prefill, seconds=15 * times),
    ]


def small_pool(
    bench: Bench,
    heads: Heads,
    stored: torch.dtype,
    *,
    block_size: int = 64,
    toy_block_size: int = 16,
    layers: int = 2,
    seed: int = 0,
) -> Pool:
    """A pool over the process's arena, filled with random keys and values."""
    arena = bench.arena(None if bench.toy else _ARENA_BYTES)
    size = toy_block_size if bench.toy else block_size
    pool = Pool(arena, heads, dtype=stored, block_size=size, layers=layers)
    blocks = min(pool.blocks, 40 if bench.toy else 512)
    pool = Pool(arena, heads, dtype=stored, block_size=size, layers=layers, blocks=blocks)
    pool.fill(seed=seed + heads.head_dim + heads.group)
    return pool


def a_batch(bench: Bench, pool: Pool, *, prefill: bool, seed: int = 1) -> Batch:
    """Ragged rows; decoding ones beside a chunk, or chunks beside a decoding one."""
    lens: tuple[int, ...]
    queries: tuple[int, ...]
    if bench.toy:
        lens, queries = ((5, 0, 20), (5, 0, 9)) if prefill else ((1, 0, 17, 33), (1, 0, 1, 1))
    else:
        lens, queries = (_PREFILL_LENS, _PREFILL_QUERIES) if prefill else (_LENS, _QUERIES)
    return make_batch(pool, lens, queries, seed=seed, slots=len(lens) + 3)


def poison(pool: Pool, batch: Batch, *, slots: bool) -> None:
    """Makes every block that no row owns NaN; with `slots`, also what lies behind the last key of each row."""
    size, step = pool.layout.block_size, pool.unit * pool.layers
    arena = pool.arena[pool.base : pool.base + pool.nbytes].view(pool.blocks, step)
    owned = torch.zeros(pool.blocks, dtype=torch.bool, device=arena.device)
    for row, keys in enumerate(batch.lens):
        entries = batch.block_table[batch.slots[row].long(), : -(-keys // size)].long()
        owned[(entries * GRANULE_BYTES - pool.base) // step] = True
        if slots and keys % size:
            for layer in range(pool.layers):
                block = pool.layout.block(pool.arena, int(entries[-1]), pool.layer_offset(layer))
                block[:, :, keys % size :].view(torch.uint8).fill_(255)
    arena[~owned] = 255


def _against_oracle(
    bench: Bench, dim: int, dtype: torch.dtype, stored: torch.dtype, *, prefill: bool
) -> list[Row]:
    checks = Checks()
    for group in (3,) if bench.toy else _GROUPS:
        heads = Heads(kv_heads=2, group=group, head_dim=dim)
        for seed in seeds(bench):
            pool = small_pool(bench, heads, stored, seed=seed)
            batch = a_batch(bench, pool, prefill=prefill, seed=seed)
            poison(pool, batch, slots=False)
            features = [(0, 0.0)]
            if not bench.toy and group in (1, 4) and seed == SEEDS[0]:
                features += [(100, 0.0), (0, 30.0), (77, 20.0)]
            for window, softcap in features:
                label = f"G{group} seed {seed}"
                label += f" window {window}" * (window > 0) + f" softcap {softcap:g}" * (softcap > 0)
                compare(checks, label, pool, batch, dtype, window=window, softcap=softcap, seed=seed)
    return checks.rows()


def seeds(bench: Bench) -> tuple[int, ...]:
    """What a case draws from; one at toy sizes."""
    return SEEDS[:1] if bench.toy else SEEDS


def compare(
    checks: Checks,
    label: str,
    pool: Pool,
    batch: Batch,
    dtype: torch.dtype,
    *,
    window: int = 0,
    softcap: float = 0.0,
    variant: Variant = "auto",
    layer: int = 1,
    mode: Mode = "invariant",
    seed: int = 3,
) -> None:
    """Outputs and log-sum-exps of a layer against float64; chunks over 8 bits also as they are widened first."""
    device, scale = pool.arena.device, pool.heads.head_dim**-0.5
    q = random_queries(batch, pool.heads, dtype, device, seed=seed)
    expected, sums, tokens = oracle.attention(
        q,
        pool.arena,
        pool.layout,
        batch,
        scale=scale,
        layer_offset=pool.layer_offset(layer),
        window=window,
        softcap=softcap,
    )
    chunks = max(batch.query_lens) > 1
    limits = _limits(pool, dtype, chunks=chunks)

    features = {"window": window, "softcap": softcap, "mode": mode, "variant": variant}
    if pool.layout.is_quantised and chunks:
        wide = Widened(pool, batch, dtype)
        wide.gather(layer)
        decode = Attend(pool, batch, **features, part="decode")  # type: ignore[arg-type]
        prefill = Attend(wide.pool, wide.batch, **features, part="prefill")  # type: ignore[arg-type]
        attends = [(decode, layer), (prefill, 0)]
    else:
        attends = [(Attend(pool, batch, **features), layer)]  # type: ignore[arg-type]
    out = empty_out(batch, pool, dtype, poison=True)
    lse = torch.full(out.shape[:2], float("nan"), device=device)
    for attend, at_layer in attends:
        attend(q, out, at_layer, lse=lse)
    exact = dtype is torch.bfloat16 and not pool.layout.is_quantised and device.type != "cpu"
    checks.near(label, out[tokens], expected, limits[0], elements=exact)
    checks.within(f"{label} lse", lse[tokens], sums, limits[1])


def _limits(pool: Pool, dtype: torch.dtype, *, chunks: bool) -> tuple[float, float]:
    """Of outputs, relative, and of log-sum-exps, absolute."""
    interpreted = pool.arena.device.type == "cpu"
    # Quantised keys of chunks are widened to 16 bits before the product: scores carry that rounding.
    loose = 20 if pool.layout.is_quantised and chunks else 1
    lse = oracle.LSE_INTERPRETED if interpreted else oracle.LSE
    return oracle.tolerance(dtype, pool.layout, interpreted=interpreted), loose * lse


def usual(bench: Bench) -> tuple[Heads, torch.dtype]:
    """The shape that most models have, at toy sizes the smallest."""
    if bench.toy:
        return Heads(kv_heads=2, group=2, head_dim=32), torch.float32
    return Heads(kv_heads=8, group=4, head_dim=128), torch.bfloat16


def _far(bench: Bench) -> list[Row]:
    """Blocks whose bytes, and whose elements, lie beyond what 32 bits count."""
    if bench.toy:
        raise NotHere("needs more memory than toy sizes take")
    heads, _ = usual(bench)
    checks = Checks()
    bench.drop_arena()
    arena = bench.arena(_FAR_BYTES)
    for stored in (torch.bfloat16, torch.float8_e4m3fn):
        far = _FAR_BYTES - (600 << 20)
        pool = Pool(arena, heads, dtype=stored, block_size=64, layers=2, blocks=512, base=far)
        pool.fill(seed=5)
        for prefill in (False, True):
            batch = a_batch(bench, pool, prefill=prefill)
            label = f"{'prefill' if prefill else 'decode'} {name_of(stored)}"
            compare(checks, label, pool, batch, torch.bfloat16)
    bench.drop_arena()
    return checks.rows()


def _tma(bench: Bench) -> list[Row]:
    """The variant with tensor descriptors against float64, and near the one with pointers."""
    checks = Checks()
    dims = (32,) if bench.toy else (64, 128, 256)
    for dim in dims:
        for group in (2,) if bench.toy else (1, 4, 7, 8):
            heads = Heads(kv_heads=2, group=group, head_dim=dim)
            dtype = torch.float16 if bench.toy else torch.bfloat16
            pool = small_pool(bench, heads, dtype, block_size=128, toy_block_size=64)
            batch = a_batch(bench, pool, prefill=True)
            for variant in _VARIANTS:
                compare(checks, f"{variant} D{dim} G{group}", pool, batch, dtype, variant=variant)
    return checks.rows()


def _small_blocks(bench: Bench) -> list[Row]:
    heads, dtype = usual(bench)
    checks = Checks()
    for size in (16,) if bench.toy else (16, 32):
        pool = small_pool(bench, heads, dtype, block_size=size)
        if not bench.toy:
            pool = Pool(pool.arena, heads, dtype=dtype, block_size=size, layers=2)
        for prefill in (False, True):
            pool.fill(seed=size)
            batch = a_batch(bench, pool, prefill=prefill)
            poison(pool, batch, slots=prefill is False)
            compare(checks, f"N{size} {'prefill' if prefill else 'decode'}", pool, batch, dtype)
    return checks.rows()
