"""The model of the throughput benches: Llama's shape at 135 M parameters, bf16, random weights.

    python -m benches.checkpoint OUT           a Hugging Face folder that AIRI, vLLM and transformers load
    python -m benches.checkpoint OUT --gguf F  the same weights for llama.cpp (needs the `gguf` package)

The weights are noise of the usual scale, so the text is noise too; speed does not depend on it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOCAB_SIZE = 49152
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB_SIZE, hidden)}
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        found |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (hidden, hidden),
            layer + "self_attn.k_proj.weight": (kv, hidden),
            layer + "self_attn.v_proj.weight": (kv, hidden),
            layer + "self_attn.o_proj.weight": (hidden, hidden),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    return found | {"model.norm.weight": (hidden,)}


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Every tensor in float32, its values exact in bf16."""
    draw = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes().items():
        if len(shape) == 1:
            tensors[name] = np.ones(shape, np.float32)
        else:
            noise = draw.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
            tensors[name] = (noise.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return tensors


def write_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """One bf16 safetensors file, written by hand because numpy has no bf16.

    Format: https://github.com/huggingface/safetensors, section "Format".
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.size * 2
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write((tensor.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def tokenizer() -> dict[str, Any]:
    """A byte-level BPE of the right size: the 256 bytes, then merges of printable pairs and triples."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|endoftext|>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    letters = [chr(c) for c in range(33, 127)]
    merges = []
    words = [a + b for a in letters for b in letters]
    for left in letters + words:
        for right in letters:
            if len(vocab) == VOCAB_SIZE:
                break
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append([left, right])
    special = {"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [special | {"normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def make_checkpoint(out: Path) -> Path:
    """Writes the folder unless it is there already; returns it."""
    if (out / "tokenizer_config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    write_safetensors(out / "model.safetensors", weights())
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "bos_token_id": 0}))
    (out / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "bos_token": "<|endoftext|>",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings))
    return out


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    if name.startswith("model.layers."):
        _, _, layer, *rest = name.split(".")
        return f"blk.{layer}.{GGUF_NAMES['.'.join(rest[:-1])]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def make_gguf(path: Path) -> Path:
    """The same weights as one GGUF file without a vocabulary.

    llama.cpp permutes q and k for its rope; on noise that changes nothing.
    """
    if path.exists():
        return path
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_vocab_size(VOCAB_SIZE)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, tensor in weights().items():
        if tensor.ndim == 1:
            writer.add_tensor(gguf_name(name), tensor)
        else:
            raw = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path)
    options = parser.parse_args()
    make_checkpoint(options.out)
    if options.gguf:
        make_gguf(options.gguf)


if __name__ == "__main__":
    main()
