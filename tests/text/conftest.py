"""Tokenizers of every kind that generates text, trained here, and transformers' reading of each folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import transformers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RustTokenizer

from airi.text import Tokenizer

MULTILINGUAL = [
    "Привет, мир! Как дела? 你好,世界。 こんにちは世界。 안녕하세요 세계. مرحبا بالعالم. שלום עולם.",
    "naïve café résumé — “quotes” … ½ ° € £ 🙂 🚀 👩‍👩‍👧‍👦 🇩🇪 ✅",
    "def f(x):\n\treturn [i**2 for i in range(x) if i % 2 == 0]\n\n\n# tabs\tand   spaces\r\n",
] * 20
CORPUS = [v[:1500] for v in list(topics.topics.values())[:60]] + MULTILINGUAL
VOCAB = 700
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Pair:
    """One folder, read by AIRI and by transformers."""

    folder: Path
    ours: Tokenizer
    theirs: Any


def _save(folder: Path, backend: RustTokenizer, **special: str) -> None:
    template = special.pop("chat_template", None)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def _byte_level(folder: Path) -> None:
    backend = RustTokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    names = ["<|begin|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=names,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]),
        ]
    )
    _save(folder, backend, bos_token="<|begin|>", eos_token="<|im_end|>", chat_template=CHATML)


def _sentencepiece(folder: Path, *, prefix: bool) -> None:
    names = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    backend = RustTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=names + byte_tokens, show_progress=False, limit_alphabet=150
    )
    backend.train_from_iterator(CORPUS, trainer)
    # Byte tokens must be plain vocabulary: as special tokens they would vanish from a text.
    data = json.loads(backend.to_str())
    data["added_tokens"] = [a for a in data["added_tokens"] if a["content"] in names]
    backend = RustTokenizer.from_str(json.dumps(data))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _save(folder, backend, **special, chat_template=INST)


def _metaspace_unigram(folder: Path) -> None:
    backend = RustTokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    _save(folder, backend, eos_token="</s>", unk_token="<unk>")


def _wordpiece(folder: Path) -> None:
    backend = RustTokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=names, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    _save(folder, backend, cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]")


MAKERS: dict[str, Callable[[Path], None]] = {
    "byte-level": _byte_level,
    "llama2": lambda folder: _sentencepiece(folder, prefix=True),
    "gemma": lambda folder: _sentencepiece(folder, prefix=False),
    "unigram": _metaspace_unigram,
    "wordpiece": _wordpiece,
}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Every kind of tokenizer, by name."""
    made = {}
    for name, make in MAKERS.items():
        folder = tmp_path_factory.mktemp(name)
        make(folder)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        made[name] = Pair(folder, Tokenizer.load(folder), theirs)
    return made


@pytest.fixture(params=["byte-level", "llama2", "gemma", "unigram"])
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    """Each kind whose tokens stand alone, in turn."""
    return pairs[request.param]
