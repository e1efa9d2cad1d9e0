"""The supported families: how each one's config.json becomes a `DecoderSpec`.

A family is a row of `FAMILIES`; code is shared. Configs of both generations are read: `rope_theta`,
`rope_scaling`, `torch_dtype`, `rope_local_base_freq` (transformers 4) and `rope_parameters`, `dtype`
(transformers 5).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from airi.engine.config_json import JsonFields, read_json
from airi.engine.rope import parse_rope
from airi.engine.spec import Activation, DecoderSpec, LayerSpec, MoeSpec, NormPlacement, QkNorm, RopeSpec
from airi.errors import ConfigError


class WindowRule(enum.Enum):
    """Which layers slide when config.json does not list `layer_types`."""

    NEVER = "never"
    EVERY_LAYER = "every layer, when sliding_window is set"
    ABOVE_MAX_WINDOW_LAYERS = "with use_sliding_window, layers from max_window_layers on"
    WITH_USE_SLIDING_WINDOW = "with use_sliding_window, every layer"
    PATTERN = "all but every sliding_window_pattern-th layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How one architecture differs from Llama."""

    name: str
    architecture: str
    norms: NormPlacement = NormPlacement.PRE
    qk_norm: QkNorm = QkNorm.NONE
    norm_offset: float = 0.0
    activation: Activation = "silu"
    head_dim: int | None = None
    """Used when config.json has none; None means hidden_size / num_attention_heads."""
    windows: WindowRule = WindowRule.NEVER
    window_pattern: int = 2
    default_window: int | None = None
    always_qkv_bias: bool = False
    """Qwen2 has biases on q, k, v and no field that says so."""
    reads_attention_bias: bool = True
    reads_mlp_bias: bool = False
    fused_projections: bool = False
    scales_embeddings: bool = False
    ties_by_default: bool = False
    theta: float = 10000.0
    moe: str | None = None
    """The naming scheme of the experts: "mixtral" or "qwen"."""

    @property
    def network(self) -> str:
        """The architecture without the head that gives tokens."""
        return self.architecture.replace("ForCausalLM", "Model")


_GEMMA: dict[str, Any] = {
    "norms": NormPlacement.SANDWICH,
    "norm_offset": 1.0,
    "activation": "gelu_tanh",
    "head_dim": 256,
    "windows": WindowRule.PATTERN,
    "default_window": 4096,
    "scales_embeddings": True,
    "ties_by_default": True,
}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(name="llama", architecture="LlamaForCausalLM", reads_mlp_bias=True),
        Family(
            name="mistral",
            architecture="MistralForCausalLM",
            windows=WindowRule.EVERY_LAYER,
            default_window=4096,
            reads_attention_bias=False,
        ),
        Family(
            name="qwen2",
            architecture="Qwen2ForCausalLM",
            windows=WindowRule.ABOVE_MAX_WINDOW_LAYERS,
            always_qkv_bias=True,
            reads_attention_bias=False,
        ),
        Family(
            name="qwen3",
            architecture="Qwen3ForCausalLM",
            qk_norm=QkNorm.PER_HEAD,
            head_dim=128,
            windows=WindowRule.ABOVE_MAX_WINDOW_LAYERS,
        ),
        Family(
            name="phi3",
            architecture="Phi3ForCausalLM",
            windows=WindowRule.EVERY_LAYER,
            reads_attention_bias=False,
            fused_projections=True,
        ),
        Family(
            name="olmo2",
            architecture="Olmo2ForCausalLM",
            norms=NormPlacement.POST,
            qk_norm=QkNorm.FULL_WIDTH,
        ),
        Family(name="gemma2", architecture="Gemma2ForCausalLM", **_GEMMA),
        Family(
            name="gemma3_text",
            architecture="Gemma3ForCausalLM",
            qk_norm=QkNorm.PER_HEAD,
            window_pattern=6,
            theta=1e6,
            **_GEMMA,
        ),
        Family(
            name="mixtral",
            architecture="MixtralForCausalLM",
            windows=WindowRule.EVERY_LAYER,
            reads_attention_bias=False,
            theta=1e6,
            moe="mixtral",
        ),
        Family(
            name="qwen3_moe",
            architecture="Qwen3MoeForCausalLM",
            qk_norm=QkNorm.PER_HEAD,
            windows=WindowRule.WITH_USE_SLIDING_WINDOW,
            moe="qwen",
        ),
    )
}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
}
_DTYPES = ("float32", "bfloat16", "float16")
_FULL, _SLIDING = "full_attention", "sliding_attention"


def load_spec(folder: Path) -> DecoderSpec:
    """The model described by `folder`/config.json; raises `CheckpointError` or `ConfigError`."""
    path = folder / "config.json"
    return parse_spec(read_json(path), str(path))


def parse_spec(config: dict[str, Any], source: str = "config.json") -> DecoderSpec:
    """The model described by a config; `source` names it in errors."""
    fields = JsonFields(config, source)
    family = _find_family(fields)
    if fields.has("quantization_config"):
        raise ConfigError(f"{source}: quantization_config is set; accepted: weights in {', '.join(_DTYPES)}")
    hidden_size = fields.integer("hidden_size")
    num_layers = fields.integer("num_hidden_layers")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads {num_heads}")
    head_dim = fields.integer("head_dim", family.head_dim or hidden_size // num_heads)
    max_position = fields.integer("max_position_embeddings")
    ropes, local_rope = _ropes(fields, family, head_dim, max_position)
    bias = family.reads_attention_bias and fields.boolean("attention_bias", default=False)
    scalar = fields.number("query_pre_attn_scalar", head_dim) if family.norm_offset else head_dim
    return DecoderSpec(
        family=family.name,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_position_embeddings=max_position,
        layers=_layers(fields, family, num_layers, local_rope),
        ropes=ropes,
        norm_eps=fields.number("rms_norm_eps"),
        norm_offset=family.norm_offset,
        norms=family.norms,
        qk_norm=family.qk_norm,
        activation=_activation(fields, family),
        embed_scale=hidden_size**0.5 if family.scales_embeddings else 1.0,
        attention_scale=scalar**-0.5,
        attention_softcap=fields.optional_number("attn_logit_softcapping"),
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        qkv_bias=bias or family.always_qkv_bias,
        output_bias=bias,
        mlp_bias=family.reads_mlp_bias and fields.boolean("mlp_bias", default=False),
        fused_projections=family.fused_projections,
        tie_embeddings=fields.boolean("tie_word_embeddings", default=family.ties_by_default),
        moe=_moe(fields, family),
        eos_token_ids=fields.integers("eos_token_id"),
        bos_token_id=fields.optional_integer("bos_token_id"),
        checkpoint_dtype=_dtype(fields),
    )


def _layers(fields: JsonFields, family: Family, num_layers: int, local_rope: int) -> tuple[LayerSpec, ...]:
    window = _window(fields, family)
    sparse = _moe_layers(fields, num_layers) if family.moe else frozenset[int]()
    return tuple(
        LayerSpec(
            window=window if kind == _SLIDING else None,
            rope=local_rope if kind == _SLIDING else 0,
            moe=index in sparse,
        )
        for index, kind in enumerate(_layer_kinds(fields, family, num_layers))
    )


def _find_family(fields: JsonFields) -> Family:
    named = fields.strings("architectures") if fields.has("architectures") else []
    for family in FAMILIES.values():
        # Embedders may name the network without its head.
        if family.architecture in named or family.network in named:
            return family
    model_type = fields.string("model_type", "")
    if not named and model_type in FAMILIES:
        return FAMILIES[model_type]
    if not named and not model_type:
        raise ConfigError(f"{fields.source}: field architectures is missing")
    supported = ", ".join(family.architecture for family in FAMILIES.values())
    found = ", ".join(named) or model_type
    raise ConfigError(f"{fields.source}: architecture {found} is not supported; supported: {supported}")


def _activation(fields: JsonFields, family: Family) -> Activation:
    field = "hidden_activation" if fields.has("hidden_activation") else "hidden_act"
    name = fields.string(field, family.activation)
    if name not in _ACTIVATIONS:
        raise fields.fail(field, ", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _dtype(fields: JsonFields) -> str | None:
    field = "dtype" if fields.has("dtype") else "torch_dtype"
    if not fields.has(field):
        return None
    name = fields.string(field).removeprefix("torch.")
    if name not in _DTYPES:
        raise fields.fail(field, ", ".join(_DTYPES))
    return name


def _window(fields: JsonFields, family: Family) -> int | None:
    if "sliding_window" in fields.values:
        return fields.optional_integer("sliding_window", minimum=1)
    return family.default_window


def _layer_kinds(fields: JsonFields, family: Family, num_layers: int) -> list[str]:
    """ "full_attention" or "sliding_attention" for every layer."""
    rule = family.windows
    gated = (WindowRule.ABOVE_MAX_WINDOW_LAYERS, WindowRule.WITH_USE_SLIDING_WINDOW)
    if rule is WindowRule.NEVER or (
        rule in gated and not fields.boolean("use_sliding_window", default=False)
    ):
        return [_FULL] * num_layers
    if fields.has("layer_types"):
        kinds = fields.strings("layer_types")
        if len(kinds) != num_layers or not set(kinds) <= {_FULL, _SLIDING}:
            raise fields.fail("layer_types", f"{num_layers} entries, each {_FULL} or {_SLIDING}")
        return kinds
    if rule is WindowRule.PATTERN:
        pattern = fields.optional_integer("sliding_window_pattern", minimum=1)
        pattern = pattern or fields.integer("_sliding_window_pattern", family.window_pattern)
        return [_FULL if (index + 1) % pattern == 0 else _SLIDING for index in range(num_layers)]
    first = 0
    if rule is WindowRule.ABOVE_MAX_WINDOW_LAYERS:
        first = fields.integer("max_window_layers", num_layers, minimum=0)
    return [_SLIDING if index >= first else _FULL for index in range(num_layers)]


def _ropes(
    fields: JsonFields, family: Family, head_dim: int, max_position: int
) -> tuple[tuple[RopeSpec, ...], int]:
    """The model's rotary embeddings, and the index of the one that sliding layers use."""
    name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    stored = fields.nested(name)
    values = dict(stored.values) if stored else {}
    source = f"{fields.source}: {name}"

    def parse(own: Any, default_theta: float, theta_field: str = "rope_theta") -> RopeSpec:
        if own is not None and not isinstance(own, dict):
            raise fields.fail(name, "an object, or one object for each kind of layer")
        merged = {key: value for key, value in (own or {}).items() if value is not None}
        for field, key in ((theta_field, "rope_theta"), ("partial_rotary_factor", "partial_rotary_factor")):
            if fields.has(field):
                merged.setdefault(key, fields.number(field))
        if fields.has("original_max_position_embeddings"):
            merged["original_max_position_embeddings"] = fields.integer("original_max_position_embeddings")
        return parse_rope(
            merged,
            source,
            head_dim=head_dim,
            max_position_embeddings=max_position,
            default_theta=default_theta,
        )

    if _FULL in values or _SLIDING in values:
        local = parse(values.get(_SLIDING), 10000.0, "rope_local_base_freq")
        return (parse(values.get(_FULL), family.theta), local), 1
    if family.name == "gemma3_text":
        return (parse(values, family.theta), parse(None, 10000.0, "rope_local_base_freq")), 1
    return (parse(values, family.theta),), 0


def _moe(fields: JsonFields, family: Family) -> MoeSpec | None:
    if family.moe is None:
        return None
    experts_field = "num_local_experts" if fields.has("num_local_experts") else "num_experts"
    num_experts = fields.integer(experts_field)
    top_k = fields.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise fields.fail("num_experts_per_tok", f"at most {experts_field} {num_experts}")
    if family.moe == "mixtral":
        stem = "block_sparse_moe.experts.{e}."
        return MoeSpec(
            num_experts=num_experts,
            top_k=top_k,
            intermediate_size=fields.integer("intermediate_size"),
            normalize_top_k=True,
            router_name="block_sparse_moe.gate",
            expert_names=(stem + "w1", stem + "w3", stem + "w2"),
        )
    names = tuple(f"mlp.experts.{{e}}.{part}_proj" for part in ("gate", "up", "down"))
    return MoeSpec(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=fields.integer("moe_intermediate_size"),
        normalize_top_k=fields.boolean("norm_topk_prob", default=False),
        router_name="mlp.gate",
        expert_names=cast("tuple[str, str, str]", names),
    )


def _moe_layers(fields: JsonFields, num_layers: int) -> frozenset[int]:
    step = fields.integer("decoder_sparse_step", 1)
    dense = set(fields.integers("mlp_only_layers"))
    return frozenset(index for index in range(num_layers) if index not in dense and (index + 1) % step == 0)
