"""Tiny random checkpoints of every supported family, made by transformers, and what transformers computes with them.

Weights are not the library's initial ones: norms, biases and q/k norms are perturbed and matrices scaled so that logits
are spread, or a missed 1 + w, a lost bias, a wrong rope base or an ignored window would not show. Seeds are chosen so
that the two best logits of every greedy step are further apart than rounding could move them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

VOCAB_SIZE = 323  # odd on purpose: no row of logits starts aligned
MAX_LEN = 512
WINDOW = 24
STEPS = 64
# One token, fewer than a KV block, a bit more than the window, several windows and blocks.
PROMPT_LENGTHS = (1, 7, 29, 90)

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": MAX_LEN,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _rope(kind: str = "default", theta: float = 10000.0, **fields: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **fields}


_GEMMA = {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 24}
_MOE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_HALF = 8  # rotary pairs of a 16-wide head
_SPIRAL = [1.0 + 0.15 * index for index in range(_HALF)]
_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """How to make one checkpoint: a transformers config class, what differs from the base, a seed."""

    config_class: str
    seed: int
    fields: dict[str, Any]
    max_model_len: int | None = None


# The longrope window holds every prompt and its answer, so that short factors apply throughout.
_WIDE = max(PROMPT_LENGTHS) + STEPS + 1

TINY_MODELS: dict[str, TinyModel] = {
    "llama": TinyModel("LlamaConfig", 5, {"rope_parameters": _rope(theta=500000.0)}),
    "llama-llama3": TinyModel("LlamaConfig", 6, {"rope_parameters": _rope("llama3", 500000.0, **_LLAMA3)}),
    "llama-linear-tied": TinyModel(
        "LlamaConfig", 2, {"tie_word_embeddings": True, "rope_parameters": _rope("linear", factor=4.0)}
    ),
    "llama-dynamic": TinyModel("LlamaConfig", 1, {"rope_parameters": _rope("dynamic", factor=4.0)}),
    "llama-yarn-biases": TinyModel(
        "LlamaConfig",
        5,
        {
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": _rope("yarn", factor=4.0, original_max_position_embeddings=128),
        },
    ),
    "llama-yarn-mscale": TinyModel(
        "LlamaConfig",
        6,
        {
            "rope_parameters": _rope(
                "yarn",
                factor=8.0,
                original_max_position_embeddings=64,
                mscale=0.8,
                mscale_all_dim=0.5,
                beta_fast=16.0,
            )
        },
    ),
    "mistral": TinyModel(
        "MistralConfig", 7, {"head_dim": 32, "sliding_window": WINDOW, "rope_parameters": _rope()}
    ),
    "qwen2": TinyModel("Qwen2Config", 1, {"tie_word_embeddings": True, "rope_parameters": _rope(theta=1e6)}),
    "qwen2-window": TinyModel(
        "Qwen2Config",
        1,
        {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 2,
            "rope_parameters": _rope(theta=1e6),
        },
    ),
    "qwen3": TinyModel("Qwen3Config", 5, {"head_dim": 32, "rope_parameters": _rope(theta=1e6)}),
    "phi3": TinyModel(
        "Phi3Config",
        4,
        {"sliding_window": 3 * WINDOW, "rope_parameters": _rope(partial_rotary_factor=0.5)},
    ),
    "phi3-longrope": TinyModel(
        "Phi3Config",
        7,
        {
            "original_max_position_embeddings": _WIDE,
            "rope_parameters": _rope(
                "longrope",
                short_factor=_SPIRAL,
                long_factor=[2.0 * value for value in _SPIRAL],
                original_max_position_embeddings=_WIDE,
                partial_rotary_factor=1.0,
            ),
        },
        max_model_len=_WIDE,
    ),
    "olmo2": TinyModel("Olmo2Config", 0, {"rope_parameters": _rope(theta=500000.0)}),
    "gemma2": TinyModel(
        "Gemma2Config",
        7,
        {**_GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0, "rope_parameters": _rope()},
    ),
    "gemma3": TinyModel(
        "Gemma3TextConfig",
        0,
        {
            **_GEMMA,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": _rope("linear", 1e6, factor=8.0),
                "sliding_attention": _rope(),
            },
        },
    ),
    "mixtral": TinyModel(
        "MixtralConfig",
        8,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_parameters": _rope(theta=1e6)},
    ),
    "qwen3-moe": TinyModel(
        "Qwen3MoeConfig",
        8,
        {
            **_MOE,
            "head_dim": 16,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "rope_parameters": _rope(theta=1e6),
        },
    ),
    "qwen3-moe-sparse-step": TinyModel(
        "Qwen3MoeConfig",
        9,
        {
            **_MOE,
            "head_dim": 16,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "rope_parameters": _rope(theta=1e6),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Reference:
    """What transformers computes for one prompt."""

    prompt: list[int]
    tokens: list[int]
    """[STEPS] greedy."""
    prompt_logits: NDArray[np.float32]
    """[len(prompt), vocab]"""
    step_logits: NDArray[np.float32]
    """[STEPS, vocab] the row each greedy token was taken from."""

    @property
    def smallest_gap(self) -> float:
        """Smallest distance of the two best logits, relative to the largest absolute logit of the row."""
        best = np.sort(self.step_logits, axis=-1)
        return float(((best[:, -1] - best[:, -2]) / np.abs(self.step_logits).max(-1)).min())


def prompts() -> list[list[int]]:
    """One prompt of each length, the same for every model."""
    rng = np.random.default_rng(11)
    return [rng.integers(3, VOCAB_SIZE, size=length).tolist() for length in PROMPT_LENGTHS]


def make_checkpoint(
    name: str,
    folder: Path,
    *,
    dtype: str = "float32",
    max_shard_size: str | None = None,
    seed: int | None = None,
) -> Path:
    """Writes the checkpoint called `name` and returns its folder."""
    transformers = _transformers()
    tiny = TINY_MODELS[name]
    config = getattr(transformers, tiny.config_class)(**{**_BASE, **tiny.fields})
    model = transformers.AutoModelForCausalLM.from_config(config)
    _randomise(model, tiny.seed if seed is None else seed)
    model.to(getattr(torch, dtype))
    model.save_pretrained(folder, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    return folder


def compute_references(folder: Path, *, dtype: str = "float32", steps: int = STEPS) -> list[Reference]:
    """Greedy decoding of all `prompts()` with transformers, end-of-sequence ignored."""
    transformers = _transformers()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=getattr(torch, dtype)
    ).eval()
    with torch.no_grad():
        return [_reference(model, prompt, steps) for prompt in prompts()]


def _reference(model: Any, prompt: list[int], steps: int) -> Reference:
    result = model(input_ids=torch.tensor([prompt]), use_cache=True)
    prompt_logits = result.logits[0].float()
    rows, tokens = [prompt_logits[-1]], [int(prompt_logits[-1].argmax())]
    while len(tokens) < steps:
        result = model(
            input_ids=torch.tensor([[tokens[-1]]]), past_key_values=result.past_key_values, use_cache=True
        )
        rows.append(result.logits[0, -1].float())
        tokens.append(int(rows[-1].argmax()))
    return Reference(prompt, tokens, prompt_logits.numpy(), torch.stack(rows).numpy())


def _transformers() -> Any:
    """The library, without its progress bars; imported late because it takes seconds."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def _randomise(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tied = bool(model.config.tie_word_embeddings)
    gemma = "gemma" in model.config.model_type
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_value(name, noise, tied=tied, gemma=gemma))


def _value(name: str, noise: torch.Tensor, *, tied: bool, gemma: bool) -> torch.Tensor:
    """The new value of a parameter, from normal noise of its shape."""
    if "embed_tokens" in name:
        # Small beside the layers' outputs when tied, or every model just repeats its last token.
        scale = 1.0 if not tied else 0.25 / math.sqrt(noise.shape[-1]) if gemma else 0.05
        return noise * scale
    if name.endswith("bias"):
        return noise * 0.1
    if "norm" in name:
        base = 0.0 if gemma else 1.0  # Gemma stores w for a factor of 1 + w
        if tied and name == "model.norm.weight":
            base += 7.0
        elif gemma and "post_" in name:
            base = 0.5 if "feedforward" in name else -0.5
        return base + 0.3 * noise
    gain = 2.0 if "lm_head" in name else 1.6
    return noise * gain / math.sqrt(noise.shape[-1])


def to_transformers_4(folder: Path) -> None:
    """Rewrites config.json the way transformers 4 wrote it, as most published checkpoints have it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        config["sliding_window_pattern"] = 3
        del config["layer_types"]
    config["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))
