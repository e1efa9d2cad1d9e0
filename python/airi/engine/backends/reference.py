"""The reference backend: the decoder in plain torch, written to be read.

It defines what the other backends must compute. Slow on purpose: attention gathers each row's keys in a loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import KV_GRANULE, KvBinding, LoadedModel, LoadOptions, ModelInfo, StepInputs
from airi.engine.checkpoint import RawTensor
from airi.engine.decoder import LayerWeights, Matrix, MlpWeights
from airi.engine.loader import LoadProgress, OpenedModel, open_model
from airi.engine.rope import cos_sin_table
from airi.engine.spec import DecoderSpec, LayerSpec, QkNorm

if TYPE_CHECKING:
    import torch


class ReferenceBackend:
    """Runs models with torch on the CPU."""

    name = "reference"

    def load_model(self, path: Path, options: LoadOptions) -> LoadedModel:
        """As `Backend.load_model`."""
        return ReferenceModel(open_model(path, options), options)


class _Linear:
    """y = x @ W.T + bias with float32 results; the product runs in the weights' dtype."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        import torch

        self.weight = torch.cat([_to_torch(block, dtype) for block in matrix.blocks])
        self.bias = None if matrix.bias is None else torch.from_numpy(matrix.bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out = (x.to(self.weight.dtype) @ self.weight.T).float()
        return out if self.bias is None else out + self.bias


class _Mlp:
    def __init__(self, weights: MlpWeights, activation: str, dtype: torch.dtype) -> None:
        self.gate, self.up, self.down = (_Linear(m, dtype) for m in (weights.gate, weights.up, weights.down))
        self.activation = activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        gate = self.gate(x)
        silu = self.activation == "silu"
        gate = functional.silu(gate) if silu else functional.gelu(gate, approximate="tanh")
        return self.down(gate * self.up(x))


class _Layer:
    def __init__(self, weights: LayerWeights, activation: str, dtype: torch.dtype) -> None:
        self.weights = weights
        self.qkv = _Linear(weights.qkv, dtype)
        self.output = _Linear(weights.output, dtype)
        self.mlp = _Mlp(weights.mlp, activation, dtype) if weights.mlp else None
        self.router = _Linear(weights.router, dtype) if weights.router else None
        self.experts = [_Mlp(expert, activation, dtype) for expert in weights.experts]


class ReferenceModel:
    """A model in torch. *Thread safety*: none."""

    def __init__(self, opened: OpenedModel, options: LoadOptions) -> None:
        import torch

        self._info = opened.info
        self._spec = opened.spec
        self._dtype = torch.bfloat16 if opened.info.dtype == "bfloat16" else torch.float32
        weights = opened.weights
        progress = LoadProgress(weights.checkpoint.nbytes, options.progress)
        self._embedding = _to_torch(weights.embedding(), self._dtype)
        self._head = _Linear(weights.head(), self._dtype)
        self._final_norm = weights.final_norm()
        progress.add(weights.embedding().nbytes)
        self._layers = []
        for index in range(self._spec.num_layers):
            layer = weights.layer(index)
            self._layers.append(_Layer(layer, self._spec.activation, self._dtype))
            progress.add(layer.nbytes)
        progress.finish()
        tables = (cos_sin_table(rope, self._info.max_model_len) for rope in self._spec.ropes)
        self._ropes = [torch.from_numpy(table) for table in tables]
        # As transformers: the factor takes the precision of the embeddings it multiplies.
        self._embed_scale = float(torch.tensor(self._spec.embed_scale).to(self._dtype))
        self._kv: _PagedKv | None = None
        self._hidden = torch.empty(0, self._spec.hidden_size)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def bytes_per_block(self, block_size: int) -> int:
        return self._info.bytes_per_block(block_size)

    def bind_kv(self, binding: KvBinding) -> None:
        self._kv = _PagedKv(self._spec, binding, self._dtype)

    def forward(self, step: StepInputs) -> NDArray[np.float32]:
        import torch

        if self._kv is None:
            raise RuntimeError("bind_kv must be called before forward")
        with torch.inference_mode():
            self._kv.start_step(step)
            x = self._embedding[torch.from_numpy(step.tokens).long()].float() * self._embed_scale
            for index, (layer, layer_spec) in enumerate(zip(self._layers, self._spec.layers, strict=True)):
                x = self._run_layer(x, step, index, layer, layer_spec)
            self._hidden = x
        return self.logits(step.logit_rows)

    def logits(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            x = self._norm(self._hidden[torch.from_numpy(rows).long()], self._final_norm)
            out = self._head(x)
            cap = self._spec.logit_softcap
            result: NDArray[np.float32] = (out if cap is None else torch.tanh(out / cap) * cap).numpy()
        return result

    def _run_layer(
        self, x: torch.Tensor, step: StepInputs, index: int, layer: _Layer, layer_spec: LayerSpec
    ) -> torch.Tensor:
        weights = layer.weights
        attended = self._attention(self._norm(x, weights.attention_norm), step, index, layer, layer_spec)
        x = x + self._norm(attended, weights.attention_post_norm)
        h = self._norm(x, weights.mlp_norm)
        out = layer.mlp(h) if layer.mlp else self._sparse_mlp(h, layer)
        return x + self._norm(out, weights.mlp_post_norm)

    def _norm(self, x: torch.Tensor, weight: NDArray[np.float32] | None) -> torch.Tensor:
        """RMS norm over the last dimension; no weight means no norm."""
        if weight is None:
            return x
        import torch

        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self._spec.norm_eps)
        return x * scale * torch.from_numpy(weight)

    def _attention(
        self, h: torch.Tensor, step: StepInputs, index: int, layer: _Layer, layer_spec: LayerSpec
    ) -> torch.Tensor:
        import torch

        spec, kv = self._spec, self._kv
        if kv is None:
            raise RuntimeError("bind_kv must be called before forward")
        q, k, v = layer.qkv(h).split([spec.q_size, spec.kv_size, spec.kv_size], dim=-1)
        if spec.qk_norm is QkNorm.FULL_WIDTH:
            q, k = self._norm(q, layer.weights.q_norm), self._norm(k, layer.weights.k_norm)
        q, k, v = (part.unflatten(-1, (-1, spec.head_dim)) for part in (q, k, v))
        if spec.qk_norm is QkNorm.PER_HEAD:
            q, k = self._norm(q, layer.weights.q_norm), self._norm(k, layer.weights.k_norm)
        cos_sin = self._ropes[layer_spec.rope][torch.from_numpy(step.positions).long()]
        q, k = _rotate(q, cos_sin), _rotate(k, cos_sin)
        kv.write(index, k, v)
        out = torch.empty_like(q)
        for row in range(len(step.seq_lens)):
            span = slice(int(step.query_start[row]), int(step.query_start[row + 1]))
            keys, values = kv.read(index, row)
            positions = torch.from_numpy(step.positions[span]).long()
            queries = q[span].to(self._dtype).float()
            out[span] = self._attend(queries, keys, values, positions, layer_spec.window)
        return layer.output(out.flatten(1))

    def _attend(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor,
        window: int | None,
    ) -> torch.Tensor:
        """q [queries, heads, dim], keys, values [keys, kv_heads, dim], float32 -> [queries, heads, dim]."""
        import torch

        spec = self._spec
        grouped = q.unflatten(1, (spec.num_kv_heads, -1))
        scores = torch.einsum("qhgd,khd->hgqk", grouped, keys) * spec.attention_scale
        if spec.attention_softcap is not None:
            scores = torch.tanh(scores / spec.attention_softcap) * spec.attention_softcap
        ahead = positions[:, None] - torch.arange(keys.shape[0])[None, :]
        visible = ahead >= 0 if window is None else (ahead >= 0) & (ahead < window)
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("hgqk,khd->qhgd", weights, values).flatten(1, 2)

    def _sparse_mlp(self, h: torch.Tensor, layer: _Layer) -> torch.Tensor:
        import torch

        moe, router = self._spec.moe, layer.router
        if moe is None or router is None:
            raise RuntimeError("a sparse layer without a router")
        weights, chosen = router(h).softmax(-1).topk(moe.top_k, dim=-1)
        if moe.normalize_top_k:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(h)
        for index, expert in enumerate(layer.experts):
            token, rank = torch.nonzero(chosen == index, as_tuple=True)
            if len(token):
                out[token] += expert(h[token]) * weights[token, rank, None]
        return out


class _PagedKv:
    """Keys and values in the arena, addressed through the block table.

    A block is [layer][kv_head][K|V][token][head_dim] in the compute dtype.
    """

    def __init__(self, spec: DecoderSpec, binding: KvBinding, dtype: torch.dtype) -> None:
        import torch

        self._flat = torch.from_numpy(binding.arena).view(dtype)
        self._table = binding.block_table
        self._block_size = binding.block_size
        self._granule = KV_GRANULE // dtype.itemsize
        self._value_offset = binding.block_size * spec.head_dim
        self._layer_stride = spec.num_kv_heads * 2 * self._value_offset
        self._heads = torch.arange(spec.num_kv_heads)[:, None] * (2 * self._value_offset)
        self._dims = torch.arange(spec.head_dim)
        self._head_dim = spec.head_dim
        self._write_at = torch.empty(0)
        self._read_at: list[torch.Tensor] = []

    def start_step(self, step: StepInputs) -> None:
        """Works out the elements this step writes and reads, once for all layers."""
        lens = np.diff(step.query_start)
        self._write_at = self._elements(np.repeat(step.slots, lens), step.positions)
        self._read_at = [
            self._elements(np.full(length, slot, np.int32), np.arange(length, dtype=np.int32))
            for slot, length in zip(step.slots, step.seq_lens, strict=True)
        ]

    def _elements(self, slots: NDArray[np.int32], positions: NDArray[np.int32]) -> torch.Tensor:
        """Element index [n, kv_heads, head_dim] of each position's key in layer 0."""
        import torch

        block = self._table[slots, positions // self._block_size].astype(np.int64)
        start = block * self._granule + (positions % self._block_size) * self._head_dim
        return torch.from_numpy(start)[:, None, None] + self._heads + self._dims

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Stores this step's keys and values [tokens, kv_heads, head_dim]."""
        at = self._write_at + layer * self._layer_stride
        self._flat[at] = keys.to(self._flat.dtype)
        self._flat[at + self._value_offset] = values.to(self._flat.dtype)

    def read(self, layer: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a row, [seq_len, kv_heads, head_dim] float32."""
        at = self._read_at[row] + layer * self._layer_stride
        return self._flat[at].float(), self._flat[at + self._value_offset].float()


def _rotate(x: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotates the leading dimensions of x [tokens, heads, dim] in halves; cos_sin [tokens, rotary_dim]."""
    import torch

    half = cos_sin.shape[-1] // 2
    cos, sin = cos_sin[:, None, :half], cos_sin[:, None, half:]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def _to_torch(raw: RawTensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    if dtype is torch.bfloat16:
        return torch.from_numpy(raw.bfloat16()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(raw.float32()))
