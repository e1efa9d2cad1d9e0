"""Checkpoints of a given shape with random weights: speed does not depend on what the weights say."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SHAPES", "Shape", "cached_checkpoint", "make_checkpoint"]

_EOS = "<|endoftext|>"
_WRITE_ELEMENTS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Llama architecture in bfloat16."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    window: int = 8192
    tied: bool = True

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.window,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "bos_token_id": 0,
            "eos_token_id": 0,
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            layer = f"model.layers.{i}."
            found[layer + "input_layernorm.weight"] = (self.hidden,)
            found[layer + "self_attn.q_proj.weight"] = (queries, self.hidden)
            found[layer + "self_attn.k_proj.weight"] = (keys, self.hidden)
            found[layer + "self_attn.v_proj.weight"] = (keys, self.hidden)
            found[layer + "self_attn.o_proj.weight"] = (self.hidden, queries)
            found[layer + "post_attention_layernorm.weight"] = (self.hidden,)
            found[layer + "mlp.gate_proj.weight"] = (self.inner, self.hidden)
            found[layer + "mlp.up_proj.weight"] = (self.inner, self.hidden)
            found[layer + "mlp.down_proj.weight"] = (self.hidden, self.inner)
        found["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            found["lm_head.weight"] = (self.vocab, self.hidden)
        return found


SHAPES = {
    "llama-2m": Shape(hidden=128, inner=384, layers=4, heads=4, kv_heads=2, head_dim=32, vocab=4096),
    "llama-135m": Shape(hidden=576, inner=1536, layers=30, heads=9, kv_heads=3, head_dim=64, vocab=49152),
    "llama-360m": Shape(hidden=960, inner=2560, layers=32, heads=15, kv_heads=5, head_dim=64, vocab=49152),
    "llama-1b": Shape(hidden=2048, inner=8192, layers=16, heads=32, kv_heads=8, head_dim=64, vocab=128256),
}
"""Shapes that `airi bench --shape` knows, named after their number of parameters."""


def cached_checkpoint(name: str, root: Path | None = None) -> Path:
    """The folder of `SHAPES[name]` below `root` (the user's cache), written when it is first asked for."""
    if root is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "airi" / "bench"
    folder = root / name
    if not (folder / "config.json").is_file():
        root.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=root))
        try:
            make_checkpoint(SHAPES[name], unfinished)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def make_checkpoint(shape: Shape, folder: Path, *, seed: int = 0) -> None:
    """Writes a checkpoint folder with seeded random weights."""
    _write_weights(shape, folder / "model.safetensors", seed)
    (folder / "tokenizer.json").write_text(
        json.dumps(_tokenizer(shape.vocab), ensure_ascii=False), encoding="utf-8"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _EOS, "bos_token": _EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))


def _write_weights(shape: Shape, path: Path, seed: int) -> None:
    """One safetensors file, written as it is drawn: numpy has no bfloat16, its bits are a float's upper half."""
    tensors = shape.tensors()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, size in tensors.items():
        end = offset + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size in tensors.values():
            scale = np.float32(1 / np.sqrt(size[-1]))
            left = int(np.prod(size))
            while left:
                count = min(left, _WRITE_ELEMENTS)
                values = (
                    np.ones(count, np.float32)
                    if len(size) == 1
                    else draw.standard_normal(count, np.float32) * scale
                )
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """A byte-level tokenizer of that size: the bytes, then letters joined to pairs, pairs to triples and so on."""
    from tokenizers import pre_tokenizers

    vocab = {token: i for i, token in enumerate([_EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["Ġ"]
    merges: list[list[str]] = []
    stems = letters
    while len(vocab) < vocab_size:
        longer = [(stem, letter) for stem in stems for letter in letters][: vocab_size - len(vocab)]
        stems = [stem + letter for stem, letter in longer]
        vocab |= {word: len(vocab) + i for i, word in enumerate(stems)}
        merges += [list(pair) for pair in longer]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 0, "content": _EOS, **flags}],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
