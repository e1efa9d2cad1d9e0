"""Small random encoders with tokenizers, as folders that a server is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A plain sentence.",
    "Naïve café — “quotes”, 42 numbers; 日本語, Привет!",
    "to be or not to be, that is the question",
]
VOCAB = 300
WINDOW = 64
"""Tokens of a text at most, those around it included."""


def _wordpiece() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCAB, special_tokens=names, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _unigram() -> transformers.PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCAB, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([*TEXTS, "a < b > c / d s"], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        bos_token="<s>",
        eos_token="</s>",
    )


def _config(kind: Any, **more: Any) -> Any:
    return kind(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=VOCAB,
        **more,
    )


def _saved(folder: Path, model: transformers.PreTrainedModel, tokenizer: Any, **config: Any) -> Path:
    model.eval().save_pretrained(folder)
    tokenizer.model_max_length = WINDOW
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def embedder(folder: Path, *, normalize: bool = True, seed: int = 1, **config: Any) -> Path:
    """A BERT that gives the mean of its tokens' states; `config`: more fields of config.json."""
    torch.manual_seed(seed)
    model = transformers.BertModel(_config(transformers.BertConfig, max_position_embeddings=WINDOW))
    _saved(folder, model, _wordpiece(), **config)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules.append({"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"})
    if normalize:
        modules.append({"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder


def reranker(folder: Path) -> Path:
    """An XLM-R with one label."""
    torch.manual_seed(2)
    made = _config(transformers.XLMRobertaConfig, max_position_embeddings=WINDOW + 2, type_vocab_size=1)
    made.num_labels = 1
    model = transformers.XLMRobertaForSequenceClassification(made)
    for weight in model.classifier.parameters():
        torch.nn.init.normal_(weight, std=1.0)
    return _saved(folder, model, _unigram())


def classifier(folder: Path, **config: Any) -> Path:
    """A BERT with three labels."""
    torch.manual_seed(3)
    made = _config(transformers.BertConfig, max_position_embeddings=WINDOW)
    made.num_labels = 3
    made.id2label = {0: "good", 1: "bad", 2: "so so"}
    model = transformers.BertForSequenceClassification(made)
    for weight in model.classifier.parameters():
        torch.nn.init.normal_(weight, std=1.0)
    return _saved(folder, model, _wordpiece(), **config)


def vectors(folder: Path, texts: Sequence[str], *, most: int | None = None) -> torch.Tensor:
    """[texts, hidden]: what transformers gives for an embedder that normalises, as model cards say; cut to `most`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    given = tokenizer(
        list(texts), padding=True, truncation=most is not None, max_length=most, return_tensors="pt"
    )
    with torch.inference_mode():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1)
    means = (states * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(means, dim=1)


def logits(folder: Path, texts: Sequence[str], pairs: Sequence[str] | None = None) -> torch.Tensor:
    """[texts, labels]: what transformers gives for a classifier; `pairs`: the second text of each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    second = None if pairs is None else list(pairs)
    given = tokenizer(
        list(texts), second, padding=True, truncation="longest_first", max_length=WINDOW, return_tensors="pt"
    )
    with torch.inference_mode():
        found: torch.Tensor = model(**given).logits
    return found
