"""Turns generated dialogues into packed training batches."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from .chat_format import SPECIAL_TOKENS, pieces
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


def _dialogue_rows(
    seed: int, tokenizer: Tokenizer, tokens_per_batch: int, read_back: float, worker: int, workers: int
) -> Iterator[tuple[list[list[Encoded]], int]]:
    """Endless batches of one worker as rows of dialogues and the length of a row."""
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
        yield from ready
        chunk += workers


def _repeats(rng: random.Random, vocab_size: int) -> Encoded:
    """Random tokens twice or three times over; from the second token of the second time on each is known."""
    body = [rng.randrange(len(SPECIAL_TOKENS), vocab_size) for _ in range(rng.randint(4, 40))]
    ids = body * rng.randint(2, 3)
    return ids, [place > len(body) for place in range(len(ids))]


def _repeat_rows(rng: random.Random, vocab_size: int, count: int, length: int) -> list[list[Encoded]]:
    """Rows filled with repeats up to the last one that fits."""
    rows = []
    for _ in range(count):
        row: list[Encoded] = []
        room = length
        while len((drawn := _repeats(rng, vocab_size))[0]) <= room:
            row.append(drawn)
            room -= len(drawn[0])
        rows.append(row)
    return rows


def batches(
    seed: int,
    tokenizer: Tokenizer,
    tokens_per_batch: int,
    *,
    read_back: float = 0.0,
    repeat_every: int = 0,
    worker: int = 0,
    workers: int = 1,
    skip: int = 0,
) -> Iterator[Batch]:
    """Endless batches of one worker; the same arguments give the same ones.

    Every `repeat_every`-th batch (0: none) is of random tokens repeated instead of dialogues. `skip` leaves out the
    first so many batches.
    """
    rows = _dialogue_rows(seed, tokenizer, tokens_per_batch, read_back, worker, workers)
    short = ROW_LENGTHS[0]
    for number in itertools.count():
        if repeat_every and number % repeat_every == repeat_every - 1:
            rng = random.Random(f"{seed}/{worker}/{number}")
            chosen = _repeat_rows(rng, tokenizer.get_vocab_size(), max(1, tokens_per_batch // short), short)
            length = short
        else:
            chosen, length = next(rows)
        if number >= skip:
            yield _batch(chosen, length)
