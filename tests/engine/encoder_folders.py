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


def with_modules(folder: Path, *, pooling: str, normalize: bool, limit: int | None = None) -> None:
    """What sentence-transformers writes beside a model."""
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    listed = [{"type": f"sentence_transformers.models.{name}", "path": paths[name]} for name in modules]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    modes = {
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": False,
        f"pooling_mode_{pooling}": True,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    if limit is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))


def embedder(folder: Path, *, normalize: bool = True, seed: int = 1, **config: Any) -> Path:
    """A BERT that gives the mean of its tokens' states; `config`: more fields of config.json."""
    torch.manual_seed(seed)
    model = transformers.BertModel(_config(transformers.BertConfig, max_position_embeddings=WINDOW))
    _saved(folder, model, _wordpiece(), **config)
    with_modules(folder, pooling="mean_tokens", normalize=normalize)
    return folder


def causal_embedder(folder: Path) -> Path:
    """A Qwen3 that gives the state of a text's last token, which its tokenizer adds, as Qwen3-Embedding does."""
    torch.manual_seed(4)
    made = _config(
        transformers.Qwen3Config, num_key_value_heads=2, head_dim=8, max_position_embeddings=WINDOW
    )
    tokenizer = _wordpiece()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", pair="$A $B:1 [SEP]:1", special_tokens=[("[SEP]", 3)]
    )
    tokenizer.padding_side = "left"
    _saved(folder, transformers.Qwen3Model(made), tokenizer)
    with_modules(folder, pooling="lasttoken", normalize=True)
    return folder


def last_vectors(folder: Path, texts: Sequence[str]) -> torch.Tensor:
    """[texts, hidden]: what transformers gives for `causal_embedder`, each text by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in texts]
    return torch.nn.functional.normalize(torch.stack(states), dim=1)


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
