"""Encoders: what a BERT-like checkpoint is, and where its tensors lie.

Sources: BERT (arXiv:1810.04805), RoBERTa (arXiv:1907.11692), XLM-R (arXiv:1911.02116).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airi.engine.checkpoint import Checkpoint, RawTensor
from airi.engine.config_json import JsonFields, read_json, read_json_if_present
from airi.engine.decoder import Matrix
from airi.engine.vectors import VectorSpec, load_vector_spec

__all__ = ["EncoderLayerWeights", "EncoderSpec", "EncoderWeights", "Head", "is_encoder", "load_encoder_spec"]

EncoderActivation = Literal["gelu", "gelu_tanh", "relu"]

_ACTIVATIONS: dict[str, EncoderActivation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """How an architecture differs from BERT."""

    prefix: str
    """Of tensor names, where the encoder is part of a larger model."""
    pads_positions: bool
    """The first token's position is the padding token's id and one: RoBERTa."""
    pooled_head: bool
    """Its classifier reads the pooler's output, else has a layer of its own."""


_BERT = _Family(prefix="bert.", pads_positions=False, pooled_head=True)
_ROBERTA = _Family(prefix="roberta.", pads_positions=True, pooled_head=False)
_ARCHITECTURES = {
    "BertModel": _BERT,
    "BertForSequenceClassification": _BERT,
    "RobertaModel": _ROBERTA,
    "RobertaForSequenceClassification": _ROBERTA,
    "XLMRobertaModel": _ROBERTA,
    "XLMRobertaForSequenceClassification": _ROBERTA,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """An encoder of any supported family. Sizes are counts of elements."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_layers: int
    max_tokens: int
    """Of one text, special tokens included."""
    first_position: int
    """Row of the position table that the first token gets."""
    num_positions: int
    """Rows of the position table."""
    num_types: int
    """Rows of the token type table: with two, what follows the first separator has the second."""
    separator_id: int | None
    norm_eps: float
    activation: EncoderActivation
    vectors: VectorSpec
    """What is made of its states; of a classifier nothing."""
    labels: tuple[str, ...]
    """Of a classifier, by output; empty where the model gives vectors."""
    is_multi_label: bool
    """Each label of a classifier holds or does not, whatever the others do."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def is_classifier(self) -> bool:
        return bool(self.labels)


def is_encoder(folder: Path) -> bool:
    """Whether the folder's config.json names an encoder's architecture. Raises CheckpointError."""
    named = read_json(folder / "config.json").get("architectures")
    return isinstance(named, list) and any(name in _ARCHITECTURES for name in named)


def load_encoder_spec(folder: Path) -> EncoderSpec:
    """The encoder described by a checkpoint folder. Raises CheckpointError or ConfigError."""
    path = folder / "config.json"
    fields = JsonFields(read_json(path), str(path))
    named = fields.strings("architectures")
    architecture = next((name for name in named if name in _ARCHITECTURES), None)
    if architecture is None:
        raise fields.fail("architectures", ", ".join(_ARCHITECTURES))
    family = _ARCHITECTURES[architecture]
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    if hidden % heads:
        raise fields.fail("num_attention_heads", f"a divisor of hidden_size {hidden}")
    kind = fields.string("position_embedding_type", "absolute")
    if kind != "absolute":
        raise fields.fail("position_embedding_type", "absolute")
    activation = fields.string("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise fields.fail("hidden_act", ", ".join(_ACTIVATIONS))
    positions = fields.integer("max_position_embeddings")
    first = fields.integer("pad_token_id", 1, minimum=0) + 1 if family.pads_positions else 0
    vectors = load_vector_spec(folder, fields, hidden)
    classifies = architecture.endswith("ForSequenceClassification")
    return EncoderSpec(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=heads,
        num_layers=fields.integer("num_hidden_layers"),
        max_tokens=min(positions - first, vectors.max_tokens or positions),
        first_position=first,
        num_positions=positions,
        num_types=fields.integer("type_vocab_size", 2),
        separator_id=_separator(folder) if not family.pads_positions else None,
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        activation=_ACTIVATIONS[activation],
        vectors=vectors,
        labels=_labels(fields) if classifies else (),
        is_multi_label=fields.string("problem_type", "") == "multi_label_classification",
    )


def _separator(folder: Path) -> int | None:
    """The id of the token between two texts, where tokenizer.json tells it."""
    tokens = read_json_if_present(folder / "tokenizer.json").get("added_tokens", [])
    found = [token["id"] for token in tokens if token.get("content") == "[SEP]"]
    return found[0] if found else None


def _labels(fields: JsonFields) -> tuple[str, ...]:
    names: Any = fields.values.get("id2label") or {}
    count = len(names) or int(fields.values.get("num_labels") or 2)
    return tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(count))


@dataclass(frozen=True, slots=True)
class Norm:
    """weight and bias, each [hidden]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EncoderLayerWeights:
    """One layer: x = norm(x + attention(x)), then x = norm(x + mlp(x))."""

    qkv: Matrix
    output: Matrix
    output_norm: Norm
    up: Matrix
    down: Matrix
    down_norm: Norm


@dataclass(frozen=True, slots=True)
class Head:
    """logits = classifier(tanh(dense(state of the first token)))."""

    dense: Matrix
    classifier: Matrix


class EncoderWeights:
    """Finds a spec's tensors in a checkpoint. Raises CheckpointError naming the first that is missing or misshapen.

    *Thread safety*: all methods only read.
    """

    def __init__(self, spec: EncoderSpec, checkpoint: Checkpoint) -> None:
        self.spec = spec
        self.checkpoint = checkpoint
        self._family = _ARCHITECTURES[spec.architecture]
        inside = f"{self._family.prefix}embeddings.word_embeddings.weight" in checkpoint
        self._prefix = self._family.prefix if inside else ""

    def tokens(self) -> RawTensor:
        """[vocab_size, hidden]"""
        spec = self.spec
        return self._tensor("embeddings.word_embeddings.weight", (spec.vocab_size, spec.hidden_size))

    def positions(self) -> NDArray[np.float32]:
        """[max_tokens, hidden] by position in the text."""
        spec = self.spec
        name = "embeddings.position_embeddings.weight"
        table = self._tensor(name, (spec.num_positions, spec.hidden_size))
        return table.rows(spec.first_position, spec.first_position + spec.max_tokens).float32()

    def types(self) -> NDArray[np.float32]:
        """[num_types, hidden]"""
        spec = self.spec
        return self._tensor(
            "embeddings.token_type_embeddings.weight", (spec.num_types, spec.hidden_size)
        ).float32()

    def embedding_norm(self) -> Norm:
        return self._norm("embeddings.LayerNorm")

    def layer(self, index: int) -> EncoderLayerWeights:
        """The weights of layer `index`."""
        hidden, inner, name = self.spec.hidden_size, self.spec.intermediate_size, f"encoder.layer.{index}."
        parts = [
            self._matrix(f"{name}attention.self.{part}", hidden, hidden) for part in ("query", "key", "value")
        ]
        bias = np.concatenate([part.bias for part in parts if part.bias is not None])
        return EncoderLayerWeights(
            qkv=Matrix(tuple(part.blocks[0] for part in parts), bias),
            output=self._matrix(f"{name}attention.output.dense", hidden, hidden),
            output_norm=self._norm(f"{name}attention.output.LayerNorm"),
            up=self._matrix(f"{name}intermediate.dense", inner, hidden),
            down=self._matrix(f"{name}output.dense", hidden, inner),
            down_norm=self._norm(f"{name}output.LayerNorm"),
        )

    def head(self) -> Head:
        """Of a classifier."""
        hidden, labels = self.spec.hidden_size, len(self.spec.labels)
        if self._family.pooled_head:
            return Head(
                self._matrix("pooler.dense", hidden, hidden), self._named("classifier", labels, hidden)
            )
        return Head(
            self._named("classifier.dense", hidden, hidden),
            self._named("classifier.out_proj", labels, hidden),
        )

    def _tensor(self, name: str, shape: tuple[int, ...]) -> RawTensor:
        return self.checkpoint.tensor(self._prefix + name, shape)

    def _matrix(self, name: str, n: int, k: int) -> Matrix:
        return self._named(self._prefix + name, n, k)

    def _named(self, name: str, n: int, k: int) -> Matrix:
        bias = np.ascontiguousarray(self.checkpoint.tensor(f"{name}.bias", (n,)).float32())
        return Matrix((self.checkpoint.tensor(f"{name}.weight", (n, k)),), bias)

    def _norm(self, name: str) -> Norm:
        shape = (self.spec.hidden_size,)
        weight, bias = (self._tensor(f"{name}.{part}", shape).float32() for part in ("weight", "bias"))
        return Norm(np.ascontiguousarray(weight), np.ascontiguousarray(bias))
