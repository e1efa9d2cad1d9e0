"""The reference backend: the decoder in plain torch on the kernels' specification (`airi.kernels.reference`).

It defines what the other backends must compute, and shows that the specification computes what transformers does.
Written to be read; slow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.engine.backends import KvBinding, LoadedModel, LoadOptions, ModelInfo, StepInputs
from airi.engine.checkpoint import RawTensor
from airi.engine.decoder import LayerWeights, Matrix, MlpWeights
from airi.engine.loader import LoadProgress, OpenedModel, open_model
from airi.engine.rope import cos_sin_table
from airi.engine.spec import QkNorm

if TYPE_CHECKING:
    import torch

    from airi.kernels import reference


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


@dataclass(frozen=True, slots=True)
class _Kv:
    """The memory of a binding as tensors."""

    arena: torch.Tensor
    block_table: torch.Tensor
    layout: reference.KvLayout


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
        self._kv: _Kv | None = None
        self._hidden = torch.empty(0, self._spec.hidden_size)

    @property
    def info(self) -> ModelInfo:
        return self._info

    def bytes_per_block(self, block_size: int) -> int:
        return self._info.bytes_per_block(block_size)

    def bind_kv(self, binding: KvBinding) -> None:
        import torch

        from airi.kernels import reference

        layout = reference.KvLayout.block_major(
            block_size=binding.block_size,
            num_kv_heads=self._spec.num_kv_heads,
            head_dim=self._spec.head_dim,
            dtype=self._dtype,
        )
        self._kv = _Kv(torch.from_numpy(binding.arena), torch.from_numpy(binding.block_table), layout)

    def forward(self, step: StepInputs) -> NDArray[np.float32]:
        import torch

        from airi.kernels import reference

        if self._kv is None:
            raise RuntimeError("bind_kv must be called before forward")
        batch = reference.PagedBatch(
            query_start=torch.from_numpy(step.query_start),
            seq_lens=torch.from_numpy(step.seq_lens),
            slots=torch.from_numpy(step.slots),
            block_table=self._kv.block_table,
        )
        positions = torch.from_numpy(step.positions)
        with torch.inference_mode():
            x = self._embedding[torch.from_numpy(step.tokens).long()].float() * self._embed_scale
            for index in range(self._spec.num_layers):
                x = self._run_layer(x, index, batch, positions)
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
        self, x: torch.Tensor, index: int, batch: reference.PagedBatch, positions: torch.Tensor
    ) -> torch.Tensor:
        layer, weights = self._layers[index], self._layers[index].weights
        attended = self._attention(self._norm(x, weights.attention_norm), index, batch, positions)
        x = x + self._norm(attended, weights.attention_post_norm)
        h = self._norm(x, weights.mlp_norm)
        out = layer.mlp(h) if layer.mlp else self._sparse_mlp(h, layer)
        return x + self._norm(out, weights.mlp_post_norm)

    def _norm(self, x: torch.Tensor, weight: NDArray[np.float32] | None) -> torch.Tensor:
        """RMS norm over the last dimension; no weight means no norm."""
        import torch

        from airi.kernels import reference

        return x if weight is None else reference.rms_norm(x, torch.from_numpy(weight), self._spec.norm_eps)

    def _attention(
        self, h: torch.Tensor, index: int, batch: reference.PagedBatch, positions: torch.Tensor
    ) -> torch.Tensor:
        import torch

        from airi.kernels import reference

        spec, layer, layer_spec, kv = self._spec, self._layers[index], self._spec.layers[index], self._kv
        if kv is None:
            raise RuntimeError("bind_kv must be called before forward")
        q, k, v = layer.qkv(h).split([spec.q_size, spec.kv_size, spec.kv_size], dim=-1)
        q_norm, k_norm = layer.weights.q_norm, layer.weights.k_norm
        if spec.qk_norm is QkNorm.FULL_WIDTH:
            q, k = self._norm(q, q_norm), self._norm(k, k_norm)
        per_head = spec.qk_norm is QkNorm.PER_HEAD
        offset = index * kv.layout.layer_bytes
        q = reference.rope_kv_write(
            torch.cat([q, k, v], dim=-1).unflatten(-1, (-1, spec.head_dim)),
            self._ropes[layer_spec.rope],
            positions,
            kv.arena,
            kv.layout,
            batch,
            q_heads=spec.num_heads,
            layer_offset=offset,
            q_norm=torch.from_numpy(q_norm) if per_head else None,
            k_norm=torch.from_numpy(k_norm) if per_head else None,
            eps=spec.norm_eps,
        )
        out = reference.paged_attention(
            q,
            kv.arena,
            kv.layout,
            batch,
            scale=spec.attention_scale,
            layer_offset=offset,
            window=layer_spec.window or 0,
            softcap=spec.attention_softcap or 0.0,
        )
        return layer.output(out.flatten(1))

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


def _to_torch(raw: RawTensor, dtype: torch.dtype) -> torch.Tensor:
    import torch

    if dtype is torch.bfloat16:
        return torch.from_numpy(raw.bfloat16()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(raw.float32()))
