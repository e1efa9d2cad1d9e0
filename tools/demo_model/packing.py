"""Turns generated dialogues into packed training batches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .chat_format import pieces
from .generate import Generator
from .vocabulary import Split

ROW_LENGTHS = (256, 768)
UNCUT_SHARE = 0.15  # of the dialogues that do not fit a short row; the others lose their last turns
DIALOGUES_PER_CHUNK = 2000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of packed dialogues, int64 [rows, length], and where to predict which token, int64 [count]."""

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    picked: Tensor
    targets: Tensor


Encoded = tuple[list[int], list[bool]]


def _limit(rng: random.Random) -> int:
    return ROW_LENGTHS[-1] if rng.random() < UNCUT_SHARE else ROW_LENGTHS[0]


def _encode(seed: int, tokenizer: Tokenizer, read_back: float, rng: random.Random) -> list[Encoded]:
    source = Generator(seed, Split.TRAIN, read_back=read_back).dialogues()
    texts: list[tuple[int, str, bool]] = []
    for index in range(DIALOGUES_PER_CHUNK):
        texts += [(index, text, ours) for text, ours in pieces(next(source))]
    encodings = tokenizer.encode_batch([text for _, text, _ in texts])
    found: list[Encoded] = [([], []) for _ in range(DIALOGUES_PER_CHUNK)]
    limits = [_limit(rng) for _ in found]
    for (index, _, ours), encoding in zip(texts, encodings, strict=True):
        ids, marks = found[index]
        if marks and len(ids) + len(encoding.ids) > limits[index]:
            limits[index] = 0  # what follows a turn left out is left out too
        else:
            ids.extend(encoding.ids)
            marks.extend([ours] * len(encoding.ids))
    return [(ids, marks) for ids, marks in found if any(marks)]


def _fit(dialogues: list[Encoded], length: int) -> list[list[Encoded]]:
    """Rows filled first-fit, longest dialogue first."""
    rows: list[list[Encoded]] = []
    room: list[int] = []
    for dialogue in sorted(dialogues, key=lambda d: -len(d[0])):
        size = len(dialogue[0])
        target = next((i for i, left in enumerate(room) if size <= left), len(rows))
        if target == len(rows):
            rows.append([])
            room.append(length)
        rows[target].append(dialogue)
        room[target] -= size
    return rows


def _as_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _batch(rows: list[list[Encoded]], length: int) -> Batch:
    tokens = np.zeros((len(rows), length + 1), dtype=np.int64)
    positions = np.zeros_like(tokens)
    segments = np.full_like(tokens, -1)
    ours = np.zeros_like(tokens, dtype=bool)
    for r, row in enumerate(rows):
        start = 0
        for s, (ids, marks) in enumerate(row):
            end = start + len(ids)
            tokens[r, start:end] = ids
            positions[r, start:end] = np.arange(len(ids))
            segments[r, start:end] = s
            ours[r, start:end] = marks
            start = end
    picked = np.flatnonzero(
        ours[:, 1:]
    )  # a dialogue never starts with a reply, so the token before is its own
    targets = tokens[:, 1:].reshape(-1)[picked]
    return Batch(
        tokens=_as_tensor(tokens[:, :length]),
        positions=_as_tensor(positions[:, :length]),
        segments=_as_tensor(segments[:, :length]),
        picked=_as_tensor(picked),
        targets=_as_tensor(targets),
    )


def batches(
    seed: int,
    tokenizer: Tokenizer,
    tokens_per_batch: int,
    *,
    read_back: float = 0.0,
    worker: int = 0,
    workers: int = 1,
    skip: int = 0,
) -> Iterator[Batch]:
    """Endless batches of one worker; the same arguments give the same ones. `skip` leaves out the first so many."""
    chunk = worker
    while True:
        chunk_seed = seed * 1_000_003 + chunk
        rng = random.Random(chunk_seed)
        dialogues = _encode(chunk_seed, tokenizer, read_back, rng)
        ready: list[tuple[list[list[Encoded]], int]] = []
        shortest = 0
        for length in ROW_LENGTHS:
            fitting = [d for d in dialogues if shortest < len(d[0]) <= length]
            rows = _fit(fitting, length)
            rng.shuffle(rows)
            count = max(1, tokens_per_batch // length)
            ready += [(rows[i : i + count], length) for i in range(0, len(rows) - count + 1, count)]
            shortest = length
        rng.shuffle(ready)
        for rows, length in ready:
            if skip > 0:
                skip -= 1
            else:
                yield _batch(rows, length)
        chunk += workers
