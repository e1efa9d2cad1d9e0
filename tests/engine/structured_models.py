"""Tiny checkpoints with tokenizers, so that their texts can have forms, and what reads those texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from airi.text import Tokenizer
from tests.engine.tiny_models import VOCAB_SIZE, make_checkpoint

SPECIAL = ["<unk>", "<s>", "</s>", "<|call|>"]
EOS = 2
CORPUS = [
    '{"name": "Ada", "age": 36, "tags": ["x", "y"], "ok": true, "none": null}',
    "yes no maybe",
    "Grüße 你好 🙂",
] * 4


def byte_level() -> RustTokenizer:
    """As Llama 3 and Qwen have it."""
    backend = RustTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 3,  # the model's vocabulary is padded
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def sentence_piece() -> RustTokenizer:
    """As Llama 2, Mistral and Gemma have it: a mark for spaces, and bytes for what has no piece."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["▁", "{", "}", '"', ":", ",", *"aegmnst0123456789"]
    words = ["▁{", '{"', '":', "na", "me", "name", "ag", "age", "▁3", '",', "ta", "gs", "tags"]
    pieces += letters + words
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [(a, b) for word in words for a, b in [_halves(word, vocab)]]
    backend = RustTokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return backend


def _halves(word: str, vocab: dict[str, int]) -> tuple[str, str]:
    for cut in range(1, len(word)):
        if word[:cut] in vocab and word[cut:] in vocab:
            return word[:cut], word[cut:]
    raise ValueError(word)


FAMILIES = {"byte_level": byte_level, "sentence_piece": sentence_piece}


def make_structured(folder: Path, family: str, name: str = "llama") -> Path:
    """A checkpoint of random weights with a tokenizer of a family."""
    path = make_checkpoint(name, folder)
    FAMILIES[family]().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))
    return path


def text_of(path: Path, tokens: list[int]) -> str:
    """Tokens without the end of sequence, as a stream shows them behind a prompt."""
    stream = Tokenizer.load(path).stream([10, 11, 12])
    return stream.push([token for token in tokens if token != EOS]) + stream.finish()


def wild(seed: int, **fields: Any) -> dict[str, Any]:
    """Sampling that takes every token that it may about as often."""
    return {"temperature": 100.0, "seed": seed, **fields}
