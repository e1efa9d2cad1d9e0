"""The specification of the kernels in plain torch and numpy: written to be read, not to be fast.

Attention over paged memory. A sequence's keys and values lie in blocks of `block_size` tokens; entry j of its
line in the block table is where block j starts in the arena, in granules of 4,096 bytes. A row's queries stand
at the last positions of its sequence and see the keys up to their own position:

    out[i] = sum_k softmax_k(cap(scale * q_i . k_k)) v_k      over max(0, p_i - window + 1) <= k <= p_i

A window of 0 is none; cap(s) = softcap * tanh(s / softcap), or s when softcap is 0.

Sampling. The token is argmax(logits / temperature + noise) over the tokens that the filters keep; the noise is
Gumbel distributed and a function of (seed, draw, token) alone, by Philox4x32-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

GRANULE_BYTES = 4096
GREEDY_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """Where keys and values lie in a block; strides and offsets in bytes.

    The head_dim elements of token t of kv head h start at `entry * 4096 + layer_offset + h * head_stride
    + t * token_stride` for keys and kv_stride further for values.
    """

    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    head_stride: int
    kv_stride: int
    token_stride: int

    def __post_init__(self) -> None:
        for name in ("block_size", "num_kv_heads", "head_dim"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        row = self.head_dim * self.dtype.itemsize
        for name in ("head_stride", "kv_stride", "token_stride"):
            value = getattr(self, name)
            accepted = f"a multiple of {self.dtype.itemsize} from {row}"
            _require(value >= row and value % self.dtype.itemsize == 0, name, value, accepted)

    @classmethod
    def block_major(
        cls, *, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> KvLayout:
        """The default order inside a layer: [kv_head][K|V][token][dim]."""
        row = head_dim * dtype.itemsize
        return cls(
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            head_stride=2 * block_size * row,
            kv_stride=block_size * row,
            token_stride=row,
        )

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer of one block in the default order."""
        return self.num_kv_heads * self.head_stride

    def block(self, arena: torch.Tensor, entry: int, layer_offset: int) -> torch.Tensor:
        """A view of one layer of one block: [kv_head, K|V, token, dim]."""
        size = self.dtype.itemsize
        return torch.as_strided(
            arena.view(self.dtype),
            (self.num_kv_heads, 2, self.block_size, self.head_dim),
            (self.head_stride // size, self.kv_stride // size, self.token_stride // size, 1),
            (entry * GRANULE_BYTES + layer_offset) // size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedBatch:
    """The rows of one step: row r owns tokens [query_start[r], query_start[r + 1]) of the batch.

    query_start is [rows + 1], seq_lens (keys after this step) and slots are [rows], all int32; row r uses line
    slots[r] of block_table, int32 [slots, blocks].
    """

    query_start: torch.Tensor
    seq_lens: torch.Tensor
    slots: torch.Tensor
    block_table: torch.Tensor

    def __post_init__(self) -> None:
        rows = self.seq_lens.shape[0]
        for name, shape in (("query_start", (rows + 1,)), ("seq_lens", (rows,)), ("slots", (rows,))):
            _require_tensor(name, getattr(self, name), torch.int32, shape)
        _require_tensor("block_table", self.block_table, torch.int32, (None, None))
        lens = self.query_start.diff()
        if int(self.query_start[0]) != 0 or bool((lens < 0).any()):
            raise ValueError(f"query_start must ascend from 0, got {self.query_start.tolist()}")
        if bool((self.seq_lens < lens).any()):
            raise ValueError(
                f"seq_lens must be at least the rows' queries {lens.tolist()}, got {self.seq_lens.tolist()}"
            )
        if bool(((self.slots < 0) | (self.slots >= self.block_table.shape[0])).any()):
            raise ValueError(f"slots must lie in the table's {self.block_table.shape[0]} lines")

    @property
    def tokens(self) -> int:
        """Queries of all rows."""
        return int(self.query_start[-1])

    def positions(self, row: int) -> range:
        """The positions of the row's queries in its sequence."""
        length = int(self.seq_lens[row])
        return range(length - int(self.query_start[row + 1] - self.query_start[row]), length)


def paged_attention(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    *,
    scale: float,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    accumulate: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Attends decode rows and chunks of prompts together.

    q is [tokens, q_heads, head_dim]; the result has its shape and dtype, computed in `accumulate`. The arena
    is uint8. A query head h reads kv head h // (q_heads // kv_heads).
    """
    _require_tensor("q", q, None, (batch.tokens, None, layout.head_dim))
    _require_tensor("arena", arena, torch.uint8, (None,))
    heads = q.shape[1]
    _require(heads % layout.num_kv_heads == 0, "q heads", heads, f"a multiple of {layout.num_kv_heads}")
    _require(window >= 0, "window", window, "0 (none) or more")
    _require(softcap >= 0, "softcap", softcap, "0 (none) or more")
    group = heads // layout.num_kv_heads
    out = torch.empty_like(q)
    for row in range(batch.seq_lens.shape[0]):
        positions = batch.positions(row)
        if not positions:
            continue
        lowest = max(0, positions[0] - window + 1) if window else 0
        keys, values = gather_kv(arena, layout, batch, row, lowest, layer_offset=layer_offset)
        for i, position in enumerate(positions, int(batch.query_start[row])):
            begin = max(lowest, position - window + 1) if window else 0
            for head in range(heads):
                k = keys[head // group, begin - lowest : position + 1 - lowest].to(accumulate)
                v = values[head // group, begin - lowest : position + 1 - lowest].to(accumulate)
                scores = k @ q[i, head].to(accumulate) * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                out[i, head] = (torch.softmax(scores, 0) @ v).to(q.dtype)
    return out


def paged_decode(
    q: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    layer_offset: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    accumulate: torch.dtype = torch.float32,
) -> torch.Tensor:
    """paged_attention with one query per row: q is [rows, q_heads, head_dim], row r uses line r of the table."""
    rows = torch.arange(q.shape[0] + 1, dtype=torch.int32)
    batch = PagedBatch(query_start=rows, seq_lens=seq_lens, slots=rows[:-1], block_table=block_table)
    return paged_attention(
        q,
        arena,
        layout,
        batch,
        scale=scale,
        layer_offset=layer_offset,
        window=window,
        softcap=softcap,
        accumulate=accumulate,
    )


def gather_kv(
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    row: int,
    begin: int = 0,
    *,
    layer_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of keys and values [begin, seq_len) of a row, each [kv_heads, keys, head_dim]."""
    end, size = int(batch.seq_lens[row]), layout.block_size
    entries = batch.block_table[int(batch.slots[row])].tolist()
    out = torch.empty((2, layout.num_kv_heads, end - begin, layout.head_dim), dtype=layout.dtype)
    for start in range(begin - begin % size, end, size):
        first, last = max(begin, start), min(end, start + size)
        block = layout.block(arena, entries[start // size], layer_offset)
        out[:, :, first - begin : last - begin] = block[:, :, first - start : last - start].transpose(0, 1)
    return out[0], out[1]


def write_kv(
    keys: torch.Tensor,
    values: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    *,
    layer_offset: int = 0,
) -> None:
    """Writes the tokens' keys and values, each [tokens, kv_heads, head_dim], to their places in the arena."""
    shape = (batch.tokens, layout.num_kv_heads, layout.head_dim)
    _require_tensor("keys", keys, None, shape)
    _require_tensor("values", values, None, shape)
    for row in range(batch.seq_lens.shape[0]):
        for token, position in enumerate(batch.positions(row), int(batch.query_start[row])):
            slot = _slot(arena, layout, batch, row, position, layer_offset)
            slot[0] = keys[token].to(layout.dtype)
            slot[1] = values[token].to(layout.dtype)


def rope(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotates the first rot_dim elements of each head of x, [tokens, heads, head_dim], by rotate-half.

    cos_sin is [positions, rot_dim]: rot_dim / 2 cosines, then as many sines.
    """
    rot_dim = cos_sin.shape[1]
    if rot_dim % 2 or rot_dim > x.shape[2]:
        raise ValueError(f"cos_sin must have an even width up to head_dim {x.shape[2]}, got {rot_dim}")
    _require_tensor("positions", positions, torch.int32, (x.shape[0],))
    half = rot_dim // 2
    cos, sin = cos_sin[positions.long(), None].split(half, -1) if half else (cos_sin, cos_sin)
    first, second, rest = x.split((half, half, x.shape[2] - rot_dim), -1)
    if not half:
        return x.clone()
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x scaled to a mean square of 1 along its last dimension, times weight."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rope_kv_write(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    arena: torch.Tensor,
    layout: KvLayout,
    batch: PagedBatch,
    *,
    q_heads: int,
    layer_offset: int = 0,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Splits qkv, [tokens, q_heads + 2 kv_heads, head_dim], norms (if asked for) and rotates queries and keys,
    writes keys and values to the arena, and returns the queries, [tokens, q_heads, head_dim], in its dtype."""
    kv_heads = layout.num_kv_heads
    _require_tensor("qkv", qkv, None, (batch.tokens, q_heads + 2 * kv_heads, layout.head_dim))
    q, k, v = qkv.split((q_heads, kv_heads, kv_heads), 1)
    q = q if q_norm is None else rms_norm(q, q_norm, eps)
    k = k if k_norm is None else rms_norm(k, k_norm, eps)
    write_kv(rope(k, cos_sin, positions), v, arena, layout, batch, layer_offset=layer_offset)
    return rope(q, cos_sin, positions).to(layout.dtype)


def philox(counters: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al., 2011): [n, 4] counters to [n, 4] random words."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = (np.uint64(k) for k in key)
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & mask,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack((c0, c1, c2, c3), 1).astype(np.uint32)


def gumbel_noise(seed: int, draw: int, vocab: int) -> npt.NDArray[np.float64]:
    """The noise of tokens 0 to vocab - 1 in draw number `draw` of a request.

    Token t takes word t % 4 of Philox under the seed (lower 32 bits first) with counter (t // 4, draw, 0, 0);
    a word x is u = (x + 1/2) / 2^32 and its noise -ln(-ln(1 - u)).
    """
    counters = np.zeros((-(-vocab // 4), 4), np.uint32)
    counters[:, 0] = np.arange(counters.shape[0])
    counters[:, 1] = draw
    words = philox(counters, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:vocab]
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    result: npt.NDArray[np.float64] = -np.log(-np.log1p(-u))
    return result


def keep_mask(
    logits: npt.NDArray[Any], *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Which tokens of one row the filters leave, applied in the order min_p, top_k, top_p.

    min_p keeps tokens at least min_p times as probable as the most probable one; top_k the top_k greatest
    logits and all equal to the last of them; top_p the fewest most probable of what is left whose
    renormalised probabilities sum to at least top_p, equal ones by ascending id, at least one.
    """
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max())
    kept: npt.NDArray[np.bool_] = p >= min_p
    if 0 < top_k < z.size:
        left = np.sort(z[kept])[::-1]
        kept &= z >= left[min(top_k, left.size) - 1]
    if top_p < 1:
        order = np.argsort(np.where(kept, -z, np.inf), kind="stable")[: kept.sum()]
        share = np.cumsum(p[order]) / p[order].sum()
        kept[order[1 + int(np.searchsorted(share, top_p)) :]] = False
    return kept


def sample(
    logits: npt.NDArray[Any],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    draw: int = 0,
) -> int:
    """The token of one row; below a temperature of 1e-5 the greatest logit, the lowest id among equals."""
    _require(temperature >= 0, "temperature", temperature, "0 (greedy) or more")
    if np.isnan(logits).any() or np.isinf(logits.max()):
        raise ValueError("logits must hold a finite value and neither NaN nor plus infinity")
    if temperature < GREEDY_TEMPERATURE:
        return int(np.argmax(logits))
    kept = keep_mask(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    scores = logits.astype(np.float64) / temperature + gumbel_noise(seed, draw, logits.size)
    return int(np.argmax(np.where(kept, scores, -np.inf)))


def penalise(
    logits: npt.NDArray[Any],
    prompt: npt.NDArray[np.int32],
    output: npt.NDArray[np.int32],
    *,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> npt.NDArray[np.float64]:
    """One row of logits with penalties: repetition for tokens of prompt and output, the others for output."""
    out = logits.astype(np.float64)
    seen = np.union1d(prompt, output)
    out[seen] = np.where(out[seen] > 0, out[seen] / repetition, out[seen] * repetition)
    counts = np.bincount(output, minlength=out.size)
    out -= frequency * counts + presence * (counts > 0)
    return out


def _slot(
    arena: torch.Tensor, layout: KvLayout, batch: PagedBatch, row: int, position: int, layer_offset: int
) -> torch.Tensor:
    """A view of one token's keys and values: [K|V, kv_head, dim]."""
    entry = int(batch.block_table[int(batch.slots[row]), position // layout.block_size])
    return layout.block(arena, entry, layer_offset)[:, :, position % layout.block_size].transpose(0, 1)


def _require(ok: bool, name: str, value: object, accepted: str) -> None:  # noqa: FBT001
    if not ok:
        raise ValueError(f"{name} is {value}, accepted is {accepted}")


def _require_tensor(
    name: str, tensor: torch.Tensor, dtype: torch.dtype | None, shape: tuple[int | None, ...]
) -> None:
    fits = tensor.dim() == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=False)
    )
    if fits and dtype in (None, tensor.dtype):
        return
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise ValueError(
        f"{name} must be {dtype or 'a tensor'} [{wanted}], got {tensor.dtype} {list(tensor.shape)}"
    )
