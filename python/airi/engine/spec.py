"""What a decoder-only model is, in one value: everything a backend needs besides the weights themselves."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]


class NormPlacement(enum.Enum):
    """Where a layer normalises. `x` is the residual stream, `f` attention or MLP."""

    PRE = "pre"
    """x + f(norm(x)): Llama and most others."""
    POST = "post"
    """x + norm(f(x)): OLMo-2."""
    SANDWICH = "sandwich"
    """x + norm(f(norm(x))): Gemma-2, Gemma-3."""


class QkNorm(enum.Enum):
    """How queries and keys are normalised before rotation."""

    NONE = "none"
    PER_HEAD = "per_head"
    """Each head on its own, weights [head_dim]: Qwen3, Gemma-3."""
    FULL_WIDTH = "full_width"
    """All heads of the projection together, weights [heads * head_dim]: OLMo-2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """One rotary embedding. Fields that a kind does not use stay at their defaults."""

    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    theta: float = 10000.0
    rotary_dim: int
    """Leading dimensions of a head that rotate; even, at most head_dim."""
    max_position_embeddings: int
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """A sparse MLP: each token goes through its `top_k` best experts, weighted by the router's softmax."""

    num_experts: int
    top_k: int
    intermediate_size: int
    normalize_top_k: bool
    """Rescale the chosen experts' weights to sum to one."""
    router_name: str
    """Tensor name below the layer, for example `mlp.gate`."""
    expert_names: tuple[str, str, str]
    """Gate, up and down tensor names below the layer, with `{e}` for the expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """What differs between the layers of one model."""

    window: int | None = None
    """Keys a query sees, itself included; None sees all before it."""
    rope: int = 0
    """Index into `DecoderSpec.ropes`."""
    moe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A decoder of any supported family. Sizes are counts of elements."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    norm_eps: float
    norm_offset: float = 0.0
    """Added to every norm weight: Gemma stores w for a factor of 1 + w."""
    norms: NormPlacement = NormPlacement.PRE
    qk_norm: QkNorm = QkNorm.NONE
    activation: Activation = "silu"
    embed_scale: float = 1.0
    attention_scale: float
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    fused_projections: bool = False
    """q, k, v and gate, up are stored as one tensor each: Phi-3."""
    tie_embeddings: bool = False
    moe: MoeSpec | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    checkpoint_dtype: str | None = None
    """What config.json says: "float32", "bfloat16", "float16"; None when it does not."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads, together."""
        return self.num_kv_heads * self.head_dim
