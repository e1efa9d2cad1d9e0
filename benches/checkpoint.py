"""The model of the throughput benches: Llama's shape at 135 M parameters, bf16, random weights.

    python -m benches.checkpoint WORK          a Hugging Face folder that AIRI, vLLM and transformers load
    python -m benches.checkpoint WORK --gguf   and the same weights for llama.cpp (needs the `gguf` package)

The weights are noise of the usual scale, so the text is noise too; speed does not depend on it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from airi.bench.shapes import SHAPES, cached_checkpoint
from airi.engine.checkpoint import Checkpoint

NAME = "llama-135m"
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


def bench_checkpoint(work: Path) -> Path:
    """The model's folder below `work`, an absolute path; written when it is first asked for."""
    return cached_checkpoint(NAME, work).resolve()


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    if name.startswith("model.layers."):
        _, _, layer, *rest = name.split(".")
        return f"blk.{layer}.{GGUF_NAMES['.'.join(rest[:-1])]}.weight"
    return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]


def bench_gguf(work: Path) -> Path:
    """The same weights as one GGUF file without a vocabulary.

    llama.cpp permutes q and k for its rope; on noise that changes nothing.
    """
    path = work / f"{NAME}.gguf"
    if path.exists():
        return path
    import gguf

    shape, weights = SHAPES[NAME], Checkpoint(bench_checkpoint(work))
    config = shape.config()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(shape.window)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, size in shape.tensors().items():
        tensor = weights.tensor(name, size).float32()
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
    parser.add_argument("work", type=Path)
    parser.add_argument("--gguf", action="store_true")
    options = parser.parse_args()
    print(bench_checkpoint(options.work))
    if options.gguf:
        print(bench_gguf(options.work))


if __name__ == "__main__":
    main()
