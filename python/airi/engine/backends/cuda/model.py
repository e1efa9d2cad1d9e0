"""The decoder on a device: weights, buffers, and the work of a step enqueued without waiting for it.

The residual stream is in the model's dtype; a layer's branch is added to it by the norm that follows. Buffers are
allocated by `bind` for the largest step, so that a step allocates nothing that grows with it, and graphs captured over
them stay valid.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from airi.engine.backends import KV_GRANULE, LoadOptions, ModelInfo, ProgressCallback
from airi.engine.backends.cuda.attention import Attention, AttentionWork, Limits, attention_windows
from airi.engine.backends.cuda.buffers import StepBuffers
from airi.engine.backends.cuda.device import Device
from airi.engine.backends.cuda.graphs import StepGraphs, capture_all, decode_buckets, token_buckets
from airi.engine.backends.cuda.interface import CudaBinding, CudaStep, TableChanges
from airi.engine.backends.cuda.layers import Layers
from airi.engine.backends.cuda.ops import Ops, ops_for
from airi.engine.backends.cuda.shapes import check_shapes
from airi.engine.backends.cuda.shards import Collective, SingleDevice, local_spec
from airi.engine.backends.cuda.tensors import place, placed_bytes
from airi.engine.backends.cuda.weights import DeviceWeights, load_weights
from airi.engine.loader import OpenedModel, open_model

if TYPE_CHECKING:
    import torch

    from airi.kernels.layout import KvLayout

__all__ = ["CudaBackend", "CudaDecoder"]

_TOKEN_MULTIPLE = 16
"""Steps with prompts are padded to it: fewer shapes of matrix products to choose kernels for, all aligned."""


class CudaBackend:
    """Runs models on one device, or on this one of several."""

    name = "cuda"

    def __init__(
        self,
        device: Device,
        *,
        collective: Collective | None = None,
        ops: Ops | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._device = device
        self._collective: Collective = collective or SingleDevice()
        self._ops = ops or ops_for(device.torch_device)
        self._limits = limits or Limits()

    def load_model(self, path: Path, options: LoadOptions) -> CudaDecoder:
        """Loads a Hugging Face checkpoint folder; raises `CheckpointError` or `ConfigError`."""
        opened = open_model(path, options, on_device=True)
        check_shapes(opened.spec, self._collective.shard)
        with self._device.active():
            weights = load_weights(
                opened,
                self._device,
                ops=self._ops,
                shard=self._collective.shard,
                quantization=options.quantization,
                progress=options.progress,
            )
            return CudaDecoder(opened, weights, self._device, self._ops, self._collective, self._limits)


class CudaDecoder:
    """A model on a device; see `CudaModel` for what its methods do. *Thread safety*: none.

    *Invariant*: between `bind` calls no buffer moves, and weights move in `place_weights` only.
    """

    def __init__(
        self,
        opened: OpenedModel,
        weights: DeviceWeights,
        device: Device,
        ops: Ops,
        collective: Collective,
        limits: Limits,
    ) -> None:
        import torch

        self.info: ModelInfo = opened.info
        self.ops = ops
        self._weights = weights
        self._device = device
        self._limits = limits
        self._spec = local_spec(opened.spec, collective.shard)
        self._dtype: torch.dtype = getattr(torch, opened.info.dtype)
        self._layers = Layers(self._spec, opened.info, weights, ops, collective, device.torch_device)
        self._bound: _Bound | None = None

    @property
    def weight_bytes(self) -> int:
        """As `CudaModel.weight_bytes`."""
        return placed_bytes(self._weights)

    def place_weights(self, memory: torch.Tensor) -> None:
        """As `CudaModel.place_weights`."""
        place(self._weights, memory)

    def bytes_per_block(self, block_size: int) -> int:
        """As `CudaModel.bytes_per_block`."""
        size: int = self._spec.num_layers * self._layout(block_size).layer_bytes
        return -(-size // KV_GRANULE) * KV_GRANULE

    def bind(self, binding: CudaBinding) -> None:
        """As `CudaModel.bind`."""
        self._bound = None  # its memory is free for the new one's
        layout = self._layout(binding.block_size)
        attention = Attention(
            self._spec,
            self.ops,
            binding,
            layout,
            self._dtype,
            windows=attention_windows(self._spec, self.info.max_model_len),
            max_model_len=min(self.info.max_model_len, binding.block_table.shape[1] * binding.block_size),
            limits=self._limits,
        )
        self._bound = _Bound(binding, layout, attention, self._layers, self._dtype, self._device)

    def capture(self, progress: ProgressCallback | None) -> None:
        """As `CudaModel.capture`."""
        self._bound_or_raise().capture(progress)

    def change_table(self, changes: TableChanges) -> None:
        """As `CudaModel.change_table`."""
        binding = self._bound_or_raise().binding
        self.ops.apply_table_deltas(binding.block_table, changes.deltas, changes.count)
        self.ops.zero_granules(binding.arena, changes.cleared)

    def enqueue(self, step: CudaStep) -> torch.Tensor:
        """As `CudaModel.enqueue`."""
        return self._bound_or_raise().enqueue(step)

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """As `CudaModel.logits`."""
        return self._bound_or_raise().logits(rows)

    def _layout(self, block_size: int) -> KvLayout:
        import torch

        from airi.kernels.layout import KvLayout

        stored = {"auto": self._dtype, "fp8": torch.float8_e4m3fn, "int8": torch.int8}
        return KvLayout.block_major(
            block_size=block_size,
            num_kv_heads=self._spec.num_kv_heads,
            head_dim=self._spec.head_dim,
            dtype=stored[self.info.kv_cache_dtype],
        )

    def _bound_or_raise(self) -> _Bound:
        if self._bound is None:
            raise RuntimeError("bind must be called before steps")
        return self._bound


class _Bound:
    """A model tied to an arena, a block table, metadata buffers and activations."""

    def __init__(
        self,
        binding: CudaBinding,
        layout: KvLayout,
        attention: Attention,
        layers: Layers,
        dtype: torch.dtype,
        device: Device,
    ) -> None:
        import torch

        batch, place = binding.batch, binding.arena.device
        self.binding, self._layout, self._attention, self._layers = binding, layout, attention, layers
        self._buffers = StepBuffers(layers.groups, batch.max_tokens, dtype, place)
        self._experts = layers.allocate_experts(batch.max_tokens, place)
        self._logits = torch.zeros((batch.max_rows, layers.vocab_size), dtype=torch.float32, device=place)
        self._more_logits = self._logits[:0]
        self._decodes = StepGraphs(device, decode_buckets(batch.max_rows), self._decode)
        self._mixed = StepGraphs(device, token_buckets(batch.max_tokens), self._small)

    def capture(self, progress: ProgressCallback | None) -> None:
        """Runs each kind of step once, so that all kernels are compiled, then captures; all on padding."""
        tokens = most = self.binding.batch.max_tokens
        # Kernels choose their tiles, and libraries their products, by powers of two at the finest.
        while tokens >= _TOKEN_MULTIPLE or tokens == most:
            self._run_layers(self._attention.warm_up_work(tokens), tokens)
            tokens = 1 << ((tokens - 1).bit_length() - 1) if tokens > 1 else 0
        capture_all((self._mixed, self._decodes), progress)

    def enqueue(self, step: CudaStep) -> torch.Tensor:
        """As `CudaModel.enqueue`."""
        logits = self._logits[: step.num_logits]
        fits = self._attention.fits(step)
        if fits and step.is_decode:
            self._decodes.run(step.num_rows)
            return logits
        if fits and self._mixed.holds(step.num_tokens):
            self._mixed.run(step.num_tokens)
        else:
            self._any(step)
        if step.num_logits:
            self._layers.logits(self._buffers, self.binding.batch.logit_rows[: step.num_logits], logits)
        return logits

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """As `CudaModel.logits`."""
        if len(rows) > len(self._more_logits):  # its own memory: graphs write to the other
            self._more_logits = self._logits.new_zeros((len(rows), self._logits.shape[1]))
        out = self._more_logits[: len(rows)]
        self._layers.logits(self._buffers, rows, out)
        return out

    def _decode(self, rows: int) -> None:
        """A decoding step padded to `rows` rows; touches fixed buffers alone, so that it may be captured."""
        self._run_layers(self._attention.decode_work(rows), rows)
        self._layers.logits(self._buffers, self.binding.batch.logit_rows[:rows], self._logits[:rows])

    def _small(self, tokens: int) -> None:
        """A step that fits, padded to `tokens` tokens, but for its logits; as `_decode` it may be captured."""
        self._run_layers(self._attention.mixed_work(tokens), tokens)

    def _any(self, step: CudaStep) -> None:
        """Any step, padded to a multiple of tokens, but for its logits."""
        tokens = -(-step.num_tokens // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE
        tokens = min(self.binding.batch.max_tokens, tokens)
        self._run_layers(self._attention.work(step, tokens), tokens)

    def _run_layers(self, work: AttentionWork, tokens: int) -> None:
        batch, layout, layers = self.binding.batch, self._layout, self._layers
        arena, positions = self.binding.arena, batch.positions[:tokens]
        queries = self._buffers.rows("queries", tokens).view(layout.num_kv_heads, tokens, -1, layout.head_dim)

        def attend(
            index: int,
            qkv: torch.Tensor,
            q_norm: torch.Tensor | None,
            k_norm: torch.Tensor | None,
            out: torch.Tensor,
        ) -> None:
            offset = index * layout.layer_bytes
            layers.ops.qkv_post(
                qkv,
                layers.cos_sin(index),
                positions,
                work.entries,
                arena,
                layout,
                queries,
                q_norm=q_norm,
                k_norm=k_norm,
                eps=layers.eps,
                layer_offset=offset,
            )
            self._attention.run(work, index, queries, out, offset)

        layers.run(batch.tokens[:tokens], work.entries, self._buffers, self._experts, attend)
