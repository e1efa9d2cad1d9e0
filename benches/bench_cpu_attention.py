"""How long does paged attention take per step of the 135 M Llama shape, against torch's dense attention?

9 query heads, 3 KV heads, head dim 64, 30 layers, bfloat16, KV blocks of 16 tokens. Both read every layer's own
keys and values, so that these come from memory as in a real step. torch's scaled_dot_product_attention gets them
gathered, dense and grouped by length beforehand, at no cost; a server would have to gather them. `share` is
attention's part of attention plus linear layers (ours, same tokens, output head on the last token of each row);
rope and norms are left out of both. Nothing here says how fast a whole step is.
"""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from airi._core import cpu
from airi.bench.rows import percentile
from benches.common import plain_parser, print_rows, verdict

Q_HEADS, KV_HEADS, HEAD_DIM, LAYERS = 9, 3, 64, 30
HIDDEN, INNER, VOCAB = 576, 1536, 49152
BLOCK, GRANULE, ITEM = 16, 4096, 2
SCALE = HEAD_DIM**-0.5
SHARE_TARGET = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One step: key and query counts of its rows."""

    name: str
    seq_lens: Sequence[int]
    query_lens: Sequence[int]


def shapes() -> list[Shape]:
    """Decode at even, mixed and long lengths; prompts alone, in a long context, and beside decoding rows."""
    mixed = np.random.default_rng(0).integers(32, 2000, 64).tolist()
    one = [1] * 64
    return [
        Shape(name="decode 64 x 320", seq_lens=[320] * 64, query_lens=one),
        Shape(name="decode 64 x 32..2000", seq_lens=mixed, query_lens=one),
        Shape(name="decode 1 x 100", seq_lens=[100], query_lens=[1]),
        Shape(name="decode 1 x 2000", seq_lens=[2000], query_lens=[1]),
        Shape(name="prefill 2 x 256", seq_lens=[256, 256], query_lens=[256, 256]),
        Shape(name="prefill 512 at 1488", seq_lens=[2000], query_lens=[512]),
        Shape(name="mixed 256 + 48 x 320", seq_lens=[256] + [320] * 48, query_lens=[256] + [1] * 48),
    ]


def aligned_empty(count: int) -> npt.NDArray[np.uint16]:
    """Page-aligned memory on huge pages, as the engine's arena."""
    memory = mmap.mmap(-1, count * 2, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint16)


class Paged:
    """The step in a paged arena, block-major."""

    def __init__(self, shape: Shape) -> None:
        self.layer_bytes = KV_HEADS * 2 * BLOCK * HEAD_DIM * ITEM
        granules = -(-LAYERS * self.layer_bytes // GRANULE)
        blocks = [-(-n // BLOCK) for n in shape.seq_lens]
        order = np.random.default_rng(1).permutation(sum(blocks)).astype(np.int32) * granules
        self.arena = aligned_empty(sum(blocks) * granules * GRANULE // ITEM)
        self.arena[:] = np.random.default_rng(2).integers(0x3C00, 0x3F80, self.arena.size, dtype=np.uint16)
        self.table = np.zeros((len(blocks), max(blocks)), np.int32)
        for row, count in enumerate(blocks):
            self.table[row, :count], order = order[:count], order[count:]
        self.query_start = np.concatenate([[0], np.cumsum(shape.query_lens)]).astype(np.int32)
        self.seq_lens = np.array(shape.seq_lens, np.int32)
        self.slots = np.arange(len(blocks), dtype=np.int32)
        self.tokens = int(self.query_start[-1])
        self.q = torch.randn(self.tokens, Q_HEADS, HEAD_DIM).to(torch.bfloat16)
        self.out = torch.empty_like(self.q)
        token = HEAD_DIM * ITEM
        self.layout = cpu.KvLayout(
            base=self.arena.ctypes.data,
            block_size=BLOCK,
            num_kv_heads=KV_HEADS,
            head_dim=HEAD_DIM,
            dtype=cpu.DType.BF16,
            head_stride=2 * BLOCK * token,
            kv_stride=BLOCK * token,
            token_stride=token,
        )

    def run(self) -> None:
        """All layers of one step."""
        batch = cpu.PagedBatch(
            rows=len(self.seq_lens),
            tokens=self.tokens,
            query_start=self.query_start.ctypes.data,
            seq_lens=self.seq_lens.ctypes.data,
            slots=self.slots.ctypes.data,
            block_table=self.table.ctypes.data,
            table_stride=self.table.shape[1],
        )
        q, out = self.q.data_ptr(), self.out.data_ptr()
        for layer in range(LAYERS):
            cpu.paged_attention(batch, self.layout, layer * self.layer_bytes, q, out, Q_HEADS, SCALE)

    def dense(self, row: int, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of a row's keys and values, each [kv_heads, keys, dim]."""
        blocks = self.arena.reshape(-1, GRANULE // ITEM)
        count = -(-int(self.seq_lens[row]) // BLOCK)
        start, stop = layer * self.layer_bytes // ITEM, (layer + 1) * self.layer_bytes // ITEM
        granules = -(-stop * ITEM // GRANULE)
        parts = [
            blocks[entry : entry + granules].reshape(-1)[start:stop]
            for entry in self.table[row, :count].tolist()
        ]
        shaped = np.stack(parts).reshape(count, KV_HEADS, 2, BLOCK, HEAD_DIM)
        kv = torch.from_numpy(np.ascontiguousarray(shaped.transpose(2, 1, 0, 3, 4))).view(torch.bfloat16)
        flat = kv.reshape(2, KV_HEADS, count * BLOCK, HEAD_DIM)[:, :, : int(self.seq_lens[row])]
        return flat[0].clone(), flat[1].clone()


class Dense:
    """The same step for torch: rows of equal lengths stacked, one call per group and layer."""

    def __init__(self, shape: Shape, paged: Paged) -> None:
        groups: dict[tuple[int, int], list[int]] = {}
        for row, key in enumerate(zip(shape.seq_lens, shape.query_lens, strict=True)):
            groups.setdefault(key, []).append(row)
        self.groups = []
        for (keys, queries), rows in groups.items():
            starts = paged.query_start[rows]
            q = torch.stack([paged.q[s : s + queries].transpose(0, 1) for s in starts.tolist()])
            layers = []
            for layer in range(LAYERS):
                kv = [paged.dense(row, layer) for row in rows]
                layers.append((torch.stack([k for k, _ in kv]), torch.stack([v for _, v in kv])))
            mask = None
            if queries not in (1, keys):
                distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
                mask = distance >= 0
            self.groups.append((rows, q, layers, mask, queries == keys and queries > 1))

    def run(self) -> list[torch.Tensor]:
        """All layers of one step; the last layer's outputs, [rows, q_heads, queries, dim] per group."""
        outputs = []
        for layer in range(LAYERS):
            outputs = [
                torch.nn.functional.scaled_dot_product_attention(
                    q, *layers[layer], attn_mask=mask, is_causal=causal, scale=SCALE, enable_gqa=True
                )
                for _, q, layers, mask, causal in self.groups
            ]
        return outputs

    def check(self, paged: Paged) -> float:
        """The largest difference between the two results of the last layer."""
        paged.run()
        worst = 0.0
        for (rows, q, *_), out in zip(self.groups, self.run(), strict=True):
            for row, expected in zip(rows, out, strict=True):
                start = int(paged.query_start[row])
                ours = paged.out[start : start + q.shape[2]].transpose(0, 1)
                worst = max(worst, (ours.float() - expected.float()).abs().max().item())
        return worst


class Linear:
    """The linear layers of the same step, random weights."""

    def __init__(self) -> None:
        def packed(n: int, k: int) -> cpu.PackedLinear:
            weight = np.random.default_rng(0).integers(0x3C00, 0x3D00, n * k, dtype=np.uint16)
            return cpu.PackedLinear(weight.ctypes.data, n, k, cpu.DType.BF16, cpu.DType.BF16)

        sizes = ((960, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER))
        self.layers = [[packed(n, k) for n, k in sizes] for _ in range(LAYERS)]
        self.head = packed(VOCAB, HIDDEN)
        self.x = np.zeros((1024, INNER), np.uint16)
        self.out = np.zeros((1024, VOCAB), np.float32)

    def run(self, tokens: int, rows: int) -> None:
        """All layers over `tokens`, the output head over `rows`."""
        x, out = self.x.ctypes.data, self.out.ctypes.data
        for layer in self.layers:
            for linear in layer:
                linear.forward(x, tokens, out)
        self.head.forward(x, rows, out)


def timed(runs: Sequence[Callable[[], Any]], turns: int) -> list[list[float]]:
    """Milliseconds of each run, taken in alternation after one warm-up."""
    samples: list[list[float]] = [[] for _ in runs]
    for turn in range(turns + 1):
        for run, sample in zip(runs, samples, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                sample.append((time.perf_counter() - start) * 1e3)
    return samples


def measure(shape: Shape, linear: Linear, turns: int) -> list[dict[str, Any]]:
    """Rows of one shape; raises RuntimeError where the two results disagree."""
    paged = Paged(shape)
    dense = Dense(shape, paged)
    worst = dense.check(paged)
    # Two bfloat16 results of size about 1, each rounded in its own places.
    if not worst < 3e-2:
        raise RuntimeError(f"{shape.name}: results differ by {worst}, no speed is reported")
    rows = len(shape.seq_lens)
    samples = timed([paged.run, dense.run, lambda: linear.run(paged.tokens, rows)], turns)
    ours, theirs, rest = (percentile(s, 50) for s in samples)
    kv_bytes = sum(shape.seq_lens) * LAYERS * KV_HEADS * HEAD_DIM * 2 * ITEM
    result = verdict(shape.name, ours, theirs, 1.0, unit="ms per step", smaller_is_better=True)
    share = ours / (ours + rest)
    return [
        {
            **result,
            "p20": round(percentile(samples[0], 20), 3),
            "p80": round(percentile(samples[0], 80), 3),
            "linear": round(rest, 3),
            "share": round(share, 3),
            "share_reached": share < SHARE_TARGET,
            "kv_gb_per_s": round(kv_bytes / ours / 1e6, 1),
            "threads": cpu.num_threads(),
            "n": turns,
        }
    ]


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--threads", type=int, default=cpu.num_threads())
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", default="", help="run shapes whose name contains this")
    options = parser.parse_args()
    cpu.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    linear = Linear()
    rows = []
    for shape in shapes():
        if options.only in shape.name:
            print(shape.name, file=sys.stderr)
            rows += measure(shape, linear, options.turns)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
