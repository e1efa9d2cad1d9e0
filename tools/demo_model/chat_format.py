"""The chat format of the demonstration model: special tokens, template, tokenizer training and files.

Each message is "<|im_start|>role\\ncontent<|im_end|>\\n". Digits are tokens of their own: copying a figure
means copying digits, and no figure is rarer than another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .generate import Dialogue, Generator
from .vocabulary import Split

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, START, END)  # ids 0, 1, 2

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}\n"
)


def pieces(dialogue: Dialogue) -> Iterable[tuple[str, bool]]:
    """The rendered dialogue cut into texts; True marks what the assistant writes, its end mark included."""
    head = "" if dialogue.system is None else f"{START}system\n{dialogue.system}{END}\n"
    for said, reply in dialogue.turns:
        yield f"{head}{START}user\n{said}{END}\n{START}assistant\n", False
        yield f"{reply.text}{END}", True
        head = "\n"


def train_tokenizer(vocab_size: int, dialogues: int, seed: int) -> Tokenizer:
    """A byte-level BPE tokenizer trained on generated dialogues of the training split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    source = Generator(seed, Split.TRAIN).dialogues()
    texts = ("\n".join(m["content"] for m in next(source).messages()) for _ in range(dialogues))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
