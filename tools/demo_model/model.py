"""The decoder that is trained, in plain torch; its parameter names are those of a Llama checkpoint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .chat_format import END, END_OF_TEXT, SPECIAL_TOKENS


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of the network. `head_dim * num_heads` need not equal `hidden_size`."""

    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rope_theta: float = 500_000.0  # most of a head keeps its angle over a dialogue, and can match contents
    rms_norm_eps: float = 1e-5

    def as_huggingface(self) -> dict[str, Any]:
        """The contents of config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
            "rms_norm_eps": self.rms_norm_eps,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": SPECIAL_TOKENS.index(END),
            "pad_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
            "torch_dtype": "bfloat16",
        }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class RMSNorm(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Root-mean-square normalisation with a learnt scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self._eps)


class Attention(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._head_dim, self._kv_heads = config.head_dim, config.num_kv_heads
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(q, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        # Written out: with rows of 256 the compiled product takes a third of the time of torch's
        # scaled_dot_product_attention on a CPU, forward and backward together.
        rows, length, _ = x.shape
        shape = (rows, length, -1, self._head_dim)
        q = _rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = _rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        pairs = rows * self._kv_heads
        q, k, v = (t.reshape(pairs, -1, self._head_dim) for t in (q, k, v))
        scores = (
            torch.bmm(q, k.mT).view(rows, self._kv_heads, -1, length, length) * self._head_dim**-0.5 + bias
        )
        weights = torch.softmax(scores.float(), dim=-1).to(v.dtype)
        out = torch.bmm(weights.view(pairs, -1, length), v).view(rows, -1, length, self._head_dim)
        return self.o_proj(out.transpose(1, 2).reshape(rows, length, -1))


class MLP(nn.Module):  # type: ignore[misc]  # torch is not followed
    """The gated feed-forward block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):  # type: ignore[misc]  # torch is not followed
    """One decoder layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):  # type: ignore[misc]  # torch is not followed
    """The whole network over packed rows: each row holds several dialogues that do not see each other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), frequencies)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * self.config.num_layers) ** -0.5 if residual else 1.0
                nn.init.normal_(
                    parameter, std=0.02 if "embed" in name else scale * parameter.shape[1] ** -0.5
                )

    def forward(self, tokens: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """The last hidden states, [rows * length, hidden].

        tokens, positions, segments: int64 [rows, length]; a token sees the earlier ones of its own segment.
        """
        length = tokens.shape[1]
        mask = segments[:, None, :, None] == segments[:, None, None, :]
        mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))[
            :, :, None
        ]  # [rows, 1, 1, query, key]
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled("cpu"):
            cos, sin, bias = cos.bfloat16(), sin.bfloat16(), bias.bfloat16()
        for layer in self.layers:
            x = layer(x, cos, sin, bias)
        return self.norm(x).flatten(0, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, through the embedding."""
        return F.linear(hidden, self.embed_tokens.weight)

    def save(self, folder: Path) -> None:
        """Writes config.json, generation_config.json and model.safetensors (bfloat16)."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            "model." + k: v.detach().to(torch.bfloat16).contiguous() for k, v in self.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config.as_huggingface(), indent=2) + "\n")
        generation = {
            "eos_token_id": [SPECIAL_TOKENS.index(END), SPECIAL_TOKENS.index(END_OF_TEXT)],
            "pad_token_id": SPECIAL_TOKENS.index(END_OF_TEXT),
            "do_sample": False,
        }
        (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
