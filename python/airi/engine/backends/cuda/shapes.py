"""Which models the kernels take, asked before weights are copied."""

from __future__ import annotations

from airi.engine.backends.cuda.shards import Shard
from airi.engine.spec import DecoderSpec, QkNorm
from airi.errors import ConfigError

__all__ = ["check_shapes"]


def check_shapes(spec: DecoderSpec, shard: Shard) -> None:
    """Raises `ConfigError` naming the first size of the whole model that is more than kernels take."""
    from airi.kernels.limits import MAX_EXPERTS, MAX_HIDDEN, MAX_VOCAB

    sizes = [("hidden_size", spec.hidden_size, MAX_HIDDEN), ("vocab_size", spec.vocab_size, MAX_VOCAB)]
    if spec.moe is not None:
        sizes.append(("num_experts", spec.moe.num_experts, MAX_EXPERTS))
    if spec.qk_norm is QkNorm.FULL_WIDTH and shard.world == 1:  # else they are not a kernel's
        sizes.append(("num_attention_heads times head_dim", spec.q_size, MAX_HIDDEN))
        sizes.append(("num_key_value_heads times head_dim", spec.kv_size, MAX_HIDDEN))
    for name, size, most in sizes:
        if size > most:
            raise ConfigError(f"{name} is {size}; on GPUs it must be at most {most}", field="model")
