"""Others' attention over the inputs of one comparison. Each maker returns a call per layer or raises NotHere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from airi.kernels.layout import GRANULE_BYTES
from benches.gpu import oracle, vllm_kernels
from benches.gpu.bench import Bench, NotHere
from benches.gpu.pool import Batch, Pool

Run = Callable[[int], torch.Tensor]
"""Attends over a layer; outputs [tokens, q_heads, dim], or [rows, q_heads, queries, dim] where it makes those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Rows of equal lengths over a block-major pool."""

    bench: Bench
    pool: Pool
    batch: Batch
    q: torch.Tensor
    """[kv_heads, tokens, group, dim]"""
    layers: int

    @property
    def scale(self) -> float:
        return float(self.pool.heads.head_dim**-0.5)

    @property
    def queries(self) -> int:
        return self.batch.query_lens[0]

    @property
    def keys(self) -> int:
        return self.batch.lens[0]

    @property
    def flat_q(self) -> torch.Tensor:
        """[tokens, q_heads, dim]"""
        heads = self.pool.heads
        return self.q.transpose(0, 1).reshape(-1, heads.q_heads, heads.head_dim).contiguous()

    def dense(self) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Queries [rows, q_heads, queries, dim] and each layer's keys and values [rows, kv_heads, keys, dim]."""
        heads, rows = self.pool.heads, self.batch.rows
        q = self.flat_q.view(rows, self.queries, heads.q_heads, heads.head_dim).transpose(1, 2).contiguous()
        found = []
        for layer in range(self.layers):
            shape = (rows, heads.kv_heads, self.keys, heads.head_dim)
            pair = tuple(torch.empty(shape, dtype=self.q.dtype, device=self.q.device) for _ in range(2))
            for row in range(rows):
                entries = self.batch.block_table[self.batch.slots[row].long()]
                offset = self.pool.layer_offset(layer)
                stored = oracle.stored(self.pool.arena, self.pool.layout, entries, self.keys, offset)
                for target, source in zip(pair, stored, strict=True):
                    target[row] = source.to(target.dtype)
            found.append((pair[0], pair[1]))
        return q, found

    def flattened(self, out: torch.Tensor) -> torch.Tensor:
        """A run's outputs as [tokens, q_heads, dim]: a copy for some, which is none of their attention's time."""
        return out if out.dim() == 3 else out.transpose(1, 2).reshape(-1, out.shape[1], out.shape[3])

    def blocks(self) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Block numbers int32 [rows, blocks] and each layer's keys and values as views [blocks, heads, tokens, dim]."""
        pool, layout = self.pool, self.pool.layout
        step = pool.unit * pool.layers
        numbers = self.batch.block_table[self.batch.slots.long()].long() * GRANULE_BYTES // step
        size = layout.dtype.itemsize
        shape = (pool.blocks, layout.num_kv_heads, layout.block_size, layout.head_dim)
        strides = (step // size, layout.head_stride // size, layout.token_stride // size, 1)
        elements = pool.arena.view(layout.dtype)
        found = []
        for layer in range(self.layers):
            start = (pool.base + pool.layer_offset(layer)) // size
            keys, values = (
                torch.as_strided(elements, shape, strides, start + kv * layout.kv_stride // size)
                for kv in (0, 1)
            )
            found.append((keys, values))
        return numbers.int(), found


def torch_attention(backend: str) -> Callable[[Inputs], Run]:
    """scaled_dot_product_attention held to one of its backends."""

    def make(inputs: Inputs) -> Run:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.attention.bias import causal_lower_right

        chosen = SDPBackend.MATH if inputs.bench.toy else getattr(SDPBackend, backend)
        chunk = 1 < inputs.queries < inputs.keys
        if chunk and backend != "FLASH_ATTENTION":
            raise NotHere("no mask for a chunk behind a context")
        q, layers = inputs.dense()
        mask = causal_lower_right(inputs.queries, inputs.keys) if chunk else None
        causal = inputs.queries == inputs.keys and inputs.queries > 1

        def run(layer: int) -> torch.Tensor:
            keys, values = layers[layer]
            with sdpa_kernel(chosen):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, keys, values, attn_mask=mask, is_causal=causal, scale=inputs.scale, enable_gqa=True
                )

        return run

    return make


def flex_attention(inputs: Inputs) -> Run:
    """torch's FlexAttention, compiled, with a causal mask of its own."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    context = inputs.keys - inputs.queries
    mask = None
    if inputs.queries > 1:

        def causal(_b: Any, _h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return query + context >= key

        mask = create_block_mask(causal, None, None, inputs.queries, inputs.keys, device=str(inputs.q.device))
    q, layers = inputs.dense()
    torch._dynamo.reset()  # every shape is compiled anew, and only so many are before it gives up
    attend: Any = flex if inputs.bench.toy else torch.compile(flex, dynamic=False)

    def run(layer: int) -> torch.Tensor:
        keys, values = layers[layer]
        out: torch.Tensor = attend(q, keys, values, block_mask=mask, scale=inputs.scale, enable_gqa=True)
        return out

    return run


def flashinfer(inputs: Inputs) -> Run:
    """FlashInfer's paged wrappers over the arena's own blocks."""
    if importlib.util.find_spec("flashinfer") is None:
        raise NotHere("flashinfer is not installed")
    import flashinfer as library  # type: ignore[import-not-found, unused-ignore]

    heads, batch, size = inputs.pool.heads, inputs.batch, inputs.pool.layout.block_size
    numbers, layers = inputs.blocks()
    per_row = -(-inputs.keys // size)
    indptr = torch.arange(batch.rows + 1, dtype=torch.int32, device=inputs.q.device) * per_row
    indices = numbers[:, :per_row].reshape(-1).contiguous()
    last = torch.full_like(indptr[1:], (inputs.keys - 1) % size + 1)
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=inputs.q.device)
    q = inputs.flat_q
    sizes = (heads.q_heads, heads.kv_heads, heads.head_dim, size)
    wrapper: Any
    if inputs.queries == 1:
        wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
        wrapper.plan(indptr, indices, last, *sizes, q_data_type=q.dtype, kv_data_type=q.dtype)
    else:
        wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        wrapper.plan(
            batch.query_start,
            indptr,
            indices,
            last,
            *sizes,
            causal=True,
            q_data_type=q.dtype,
            kv_data_type=q.dtype,
        )
    return lambda layer: wrapper.run(q, layers[layer])


def vllm(inputs: Inputs) -> Run:
    """vLLM's unified Triton kernel over the arena's own blocks."""
    folder = inputs.bench.options.vllm_kernels
    if folder is None:
        raise NotHere("no --vllm-kernels")
    try:
        attend = vllm_kernels.load(folder)
    except (FileNotFoundError, ImportError) as error:
        raise NotHere(str(error)) from None
    heads, batch = inputs.pool.heads, inputs.batch
    table, layers = inputs.blocks()
    q, device = inputs.flat_q, inputs.q.device
    outs = [torch.full_like(q, float("nan")) for _ in layers]
    segments = vllm_kernels.segments_for(batch.rows, heads.kv_heads, heads.q_heads, heads.head_dim, device)

    def run(layer: int) -> torch.Tensor:
        keys, values = (tensor.transpose(1, 2) for tensor in layers[layer])
        attend(
            q,
            keys,
            values,
            outs[layer],
            query_start=batch.query_start,
            seq_lens=batch.seq_lens,
            block_table=table,
            most_queries=inputs.queries,
            most_keys=inputs.keys,
            scale=inputs.scale,
            segments=segments if inputs.queries == 1 else {},
        )
        return outs[layer]

    return run


PEERS: dict[str, Callable[[Inputs], Run]] = {
    "vLLM's Triton": vllm,
    "torch flash": torch_attention("FLASH_ATTENTION"),
    "torch cuDNN": torch_attention("CUDNN_ATTENTION"),
    "FlashInfer": flashinfer,
    "FlexAttention": flex_attention,
}
