"""Start weights under which the network can copy what follows an earlier occurrence of a token.

That takes an induction circuit (Olsson et al. 2022, "In-context Learning and Induction Heads"): a head that notes at
every token which one came before it, and a head of a later layer that looks for the note equal to the current token.
From random weights its parts find each other only late in training, and copying names and figures waits for them. Here
they are laid out roughly, and a few hundred steps on repeated random tokens make them exact.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .model import Attention, Decoder, ModelConfig

_CONSTANT = (
    4  # leading dimensions of the embedding that are alike for all tokens: what a head of fixed offset reads
)
_CONSTANT_VALUE = 0.04  # twice the spread of the others
_OFFSET_SCORE = 30.0  # attention score of the previous token
_NOTE_SCALE = 0.03  # of the note in the residual stream, where embeddings start with a spread of 0.02
_MATCH_SCALE = 2.0
_COPY_SCALE = 0.5
_MATCHING_LAYERS = slice(1, 3)


def lay_out(model: Decoder) -> None:
    """Replaces start weights: the first key-value head of layer 0 and of the two after it becomes the circuit.

    All other output projections start at zero, so that the circuit reads plain embeddings.
    """
    config = model.config
    first = model.layers[0].self_attn
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.embed_tokens.weight[:, :_CONSTANT] = _CONSTANT_VALUE
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        slow = (
            torch.cat((frequencies, frequencies)) < 0.003
        )  # keeps its angle over a dialogue: fit for matching
        tokens, notes = (_directions(int(slow.sum()), config.hidden_size) for _ in range(2))
        _look_one_back(first, config, frequencies)
        _write_notes(first, config, tokens, notes)
        for layer in model.layers[_MATCHING_LAYERS]:
            _match(layer.self_attn, config, slow, tokens, notes)


def _directions(count: int, size: int) -> Tensor:
    """`count` orthonormal rows that leave out the constant dimensions, [count, size]."""
    rows: Tensor = torch.linalg.qr(torch.randn(size, count))[0].T
    rows[:, :_CONSTANT] = 0
    return rows


def _query_heads(config: ModelConfig) -> list[slice]:
    """The rows of the queries that share the first key-value head."""
    size = config.head_dim
    return [slice(h * size, (h + 1) * size) for h in range(config.num_heads // config.num_kv_heads)]


def _look_one_back(attention: Attention, config: ModelConfig, frequencies: Tensor) -> None:
    """A query at angle 0 and a key turned on by one position: their product peaks at the previous token."""
    fast = (frequencies > 0.03).float()
    share = (_CONSTANT * _CONSTANT_VALUE**2 + (config.hidden_size - _CONSTANT) * 0.02**2) / config.hidden_size
    normalised = _CONSTANT * _CONSTANT_VALUE / math.sqrt(share)  # what the constant dimensions add up to
    size = math.sqrt(_OFFSET_SCORE * math.sqrt(config.head_dim) / float(fast.sum())) / normalised
    key = torch.cat((fast * frequencies.cos(), fast * frequencies.sin())) * size
    query = torch.cat((fast, torch.zeros_like(fast))) * size
    attention.k_proj.weight[: config.head_dim].zero_()[:, :_CONSTANT] = key[:, None]
    for rows in _query_heads(config):
        attention.q_proj.weight[rows].zero_()[:, :_CONSTANT] = query[:, None]


def _write_notes(attention: Attention, config: ModelConfig, tokens: Tensor, notes: Tensor) -> None:
    """The head copies the token it looks at into directions of its own."""
    heads = _query_heads(config)
    attention.v_proj.weight[: config.head_dim].zero_()[: len(tokens)] = tokens
    for columns in heads:
        attention.o_proj.weight[:, columns][:, : len(notes)] = _NOTE_SCALE / len(heads) * notes.T


def _match(attention: Attention, config: ModelConfig, slow: Tensor, tokens: Tensor, notes: Tensor) -> None:
    """The current token looks for its note, and what it finds raises the score of the token found there."""
    heads = _query_heads(config)
    attention.k_proj.weight[: config.head_dim].zero_()[slow] = _MATCH_SCALE * notes
    values = attention.v_proj.weight[: config.head_dim]
    for rows in heads:
        attention.q_proj.weight[rows].zero_()[slow] = _MATCH_SCALE * tokens
        attention.o_proj.weight[:, rows] = _COPY_SCALE / len(heads) * values.T
