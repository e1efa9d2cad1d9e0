"""Random paged batches in a poisoned arena, and what attention over them must be, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from airi._core import cpu

GRANULE = 4096
DTYPES = {torch.float32: cpu.DType.F32, torch.bfloat16: cpu.DType.BF16}


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedCase:
    """Sequences of the given key and query counts; every byte that belongs to none of them is NaN.

    Blocks are laid out [layer][kv_head][K|V][token][dim]; `layer` of `layers` holds the data.
    Two rows may share blocks: `shared_prefix` blocks of row 0 open every other sequence.
    """

    seq_lens: Sequence[int]
    query_lens: Sequence[int]
    num_q_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    layers: int = 2
    layer: int = 1
    shared_prefix: int = 0
    token_major: bool = False  # [token][kv_head][K|V][dim] inside of a layer
    seed: int = 0
    block_seed: int = 0  # which blocks and slots the sequences get
    arena: torch.Tensor = field(init=False)  # [blocks, granules, ...] flat, of dtype
    table: npt.NDArray[np.int32] = field(init=False)
    slots: npt.NDArray[np.int32] = field(init=False)
    keys: list[torch.Tensor] = field(init=False, default_factory=list)  # each [kv_heads, len, dim]
    values: list[torch.Tensor] = field(init=False, default_factory=list)
    q: torch.Tensor = field(init=False)  # [tokens, q_heads, dim]

    def __post_init__(self) -> None:
        rng = torch.Generator().manual_seed(self.seed)
        blocks = [-(-n // self.block_size) for n in self.seq_lens]
        count = sum(blocks) + 3
        element = self.dtype.itemsize
        granules = -(-self.layers * self.layer_bytes // GRANULE)
        arena = torch.full((count * granules * GRANULE // element,), torch.nan, dtype=self.dtype)
        block_rng = torch.Generator().manual_seed(self.block_seed)
        order = torch.randperm(count, generator=block_rng).tolist()
        slots = torch.randperm(len(blocks) + 2, generator=block_rng)[: len(blocks)].to(torch.int32).numpy()
        # An entry that no sequence owns points far outside of the arena.
        table = np.full((len(blocks) + 2, max(blocks) + 2), 2**30, np.int32)
        for row, length in enumerate(self.seq_lens):
            line = table[slots[row]]
            shared = min(self.shared_prefix, length // self.block_size) if row else 0
            line[:shared] = table[slots[0], :shared]
            for i in range(shared, blocks[row]):
                line[i] = order.pop() * granules
            k, v = (torch.randn(self.num_kv_heads, length, self.head_dim, generator=rng) for _ in "kv")
            self.keys.append(k.to(self.dtype))
            self.values.append(v.to(self.dtype))
            for kv, source in enumerate((self.keys[row], self.values[row])):
                source[:, : shared * self.block_size] = (self.keys, self.values)[kv][0][
                    :, : shared * self.block_size
                ]
                for i in range(blocks[row]):
                    part = source[:, i * self.block_size : (i + 1) * self.block_size]
                    self._block(arena, int(line[i]))[:, kv, : part.shape[1]] = part
        q = torch.randn(sum(self.query_lens), self.num_q_heads, self.head_dim, generator=rng).to(self.dtype)
        for name, value in (("arena", arena), ("table", table), ("slots", slots), ("q", q)):
            object.__setattr__(self, name, value)

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer of one block."""
        return self.num_kv_heads * 2 * self.block_size * self.head_dim * int(self.dtype.itemsize)

    @property
    def scale(self) -> float:
        """The usual scale of the scores."""
        return float(self.head_dim**-0.5)

    def _block(self, arena: torch.Tensor, entry: int) -> torch.Tensor:
        """The case's layer of one block: [kv_head, K|V, token, dim]."""
        element = self.dtype.itemsize
        start = (entry * GRANULE + self.layer * self.layer_bytes) // element
        block = arena[start : start + self.layer_bytes // element]
        if self.token_major:
            shape = (self.block_size, self.num_kv_heads, 2, self.head_dim)
            return block.view(shape).permute(1, 2, 0, 3)
        return block.view(self.num_kv_heads, 2, self.block_size, self.head_dim)

    def layout(self) -> cpu.KvLayout:
        """How the kernels see the arena."""
        row = self.head_dim * self.dtype.itemsize
        if self.token_major:
            strides = {"head_stride": 2 * row, "kv_stride": row, "token_stride": 2 * self.num_kv_heads * row}
        else:
            strides = {"head_stride": 2 * self.block_size * row, "kv_stride": self.block_size * row}
            strides["token_stride"] = row
        return cpu.KvLayout(
            base=self.arena.data_ptr(),
            block_size=self.block_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=DTYPES[self.dtype],
            **strides,
        )

    def attend(
        self,
        *,
        rows: Sequence[int] | None = None,
        window: int = 0,
        softcap: float = 0.0,
        scale: float | None = None,
        is_causal: bool = True,
    ) -> torch.Tensor:
        """paged_attention over the given rows (default all), outputs pre-filled with NaN."""
        chosen = range(len(self.seq_lens)) if rows is None else rows
        spans = [(r, 0, self.query_lens[r]) for r in chosen]
        return self.attend_spans(spans, window=window, softcap=softcap, scale=scale, is_causal=is_causal)

    def attend_spans(
        self,
        spans: Sequence[tuple[int, int, int]],
        *,
        window: int = 0,
        softcap: float = 0.0,
        scale: float | None = None,
        is_causal: bool = True,
    ) -> torch.Tensor:
        """One batch of (row, first query, end query) chunks of the rows' queries."""
        starts = np.concatenate([[0], np.cumsum(self.query_lens)])
        lens = [end - begin for _, begin, end in spans]
        q = torch.cat([self.q[starts[r] + begin : starts[r] + end] for r, begin, end in spans])
        query_start = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
        seq_lens = np.array(
            [self.seq_lens[r] - self.query_lens[r] + end for r, _, end in spans], dtype=np.int32
        )
        slots = np.array([self.slots[r] for r, _, _ in spans], dtype=np.int32)
        batch = cpu.PagedBatch(
            rows=len(spans),
            tokens=int(query_start[-1]),
            query_start=query_start.ctypes.data,
            seq_lens=seq_lens.ctypes.data,
            slots=slots.ctypes.data,
            block_table=self.table.ctypes.data,
            table_stride=self.table.shape[1],
        )
        out = torch.full_like(q, torch.nan)
        offset = self.layer * self.layer_bytes
        for _ in range(2):  # a second call goes through the cached plan
            cpu.paged_attention(
                batch,
                self.layout(),
                offset,
                q.data_ptr(),
                out.data_ptr(),
                self.num_q_heads,
                self.scale if scale is None else scale,
                window,
                softcap,
                is_causal,
            )
        return out

    def expected(self, *, window: int = 0, softcap: float = 0.0, is_causal: bool = True) -> torch.Tensor:
        """Dense masked softmax in float64: [tokens, q_heads, dim]."""
        outputs = []
        start = 0
        group = self.num_q_heads // self.num_kv_heads
        for row, (length, queries) in enumerate(zip(self.seq_lens, self.query_lens, strict=True)):
            q = self.q[start : start + queries].double()
            start += queries
            k, v = (t[row].double() for t in (self.keys, self.values))
            scores = torch.einsum("qhgd,hkd->hgqk", q.unflatten(1, (-1, group)), k) * self.scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            distance = torch.arange(length - queries, length)[:, None] - torch.arange(length)
            hidden = (distance < 0) | ((distance >= window) if window else torch.tensor([False]))
            hidden &= is_causal
            probabilities = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1)
            outputs.append(torch.einsum("hgqk,hkd->qhgd", probabilities, v).flatten(1, 2))
        return torch.cat(outputs)
