"""Tokens that are sampled against the specification in float64: filters, noise, ties, rows that hold no number."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from airi.kernels.sample import sample
from benches.gpu.bench import Bench, Case, NotHere, Row
from benches.gpu.checks import Checks
from benches.gpu.filters import FILTERS, NEAR, Filters, shortfall
from benches.gpu.timing import capture

_SEED = 0x9E3779B97F4A7C15


def cases(bench: Bench) -> list[Case]:
    sizes = ((8, 300),) if bench.toy else ((8, 152_064), (64, 128_256), (16, 32_000), (3, 1_000))
    found = [
        Case(
            name=f"sample {rows} x {vocab}",
            run=functools.partial(_sample, rows=rows, vocab=vocab),
            seconds=15,
        )
        for rows, vocab in sizes
    ]
    return [
        *found,
        Case(name="sample rows without a number", run=_not_numbers, seconds=8),
        Case(name="sample ties", run=_ties, seconds=8),
        Case(name="sample graph replay", run=_replay, seconds=8),
    ]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Rows of logits with what is asked of each, on the device."""

    logits: torch.Tensor
    filters: Sequence[Filters]
    seeds: Sequence[int]
    draws: Sequence[int]

    def columns(self) -> dict[str, torch.Tensor]:
        """The launcher's arguments but for the logits and outputs."""
        device = self.logits.device
        signed = [seed - (1 << 64) if seed >> 63 else seed for seed in self.seeds]
        return {
            "temperature": torch.tensor([f.temperature for f in self.filters], device=device),
            "top_k": torch.tensor([f.top_k for f in self.filters], dtype=torch.int32, device=device),
            "top_p": torch.tensor([f.top_p for f in self.filters], device=device),
            "min_p": torch.tensor([f.min_p for f in self.filters], device=device),
            "seeds": torch.tensor(signed, dtype=torch.int64, device=device),
            "draws": torch.tensor(self.draws, dtype=torch.int32, device=device),
        }

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and status of a call on poisoned outputs."""
        rows, device = self.logits.shape[0], self.logits.device
        tokens = torch.full((rows,), -7, dtype=torch.int32, device=device)
        status = torch.full((rows,), 9, dtype=torch.uint8, device=device)
        sample(self.logits.clone(), **self.columns(), out_tokens=tokens, out_status=status)
        return tokens, status


def drawn(bench: Bench, rows: int, vocab: int, *, seed: int, dtype: torch.dtype = torch.float32) -> Drawn:
    """Rows with every kind of filters; a few tokens stand out, as a model's do."""
    draw = torch.Generator(device=bench.device).manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=draw, device=bench.device)
    peaks = torch.randint(0, vocab, (rows, 20), generator=draw, device=bench.device)
    heights = 4 + 6 * torch.rand(rows, 20, generator=draw, device=bench.device)
    logits.scatter_(1, peaks, heights)
    logits[:, 5 % vocab] = float("-inf")
    filters = [FILTERS[row % len(FILTERS)] for row in range(rows)]
    seeds = [(_SEED * (row + 1)) % (1 << 64) for row in range(rows)]
    return Drawn(logits.to(dtype), filters, seeds, [row * 3 for row in range(rows)])


def compare(checks: Checks, label: str, what: Drawn) -> None:
    """Every row of a call against the specification."""
    tokens, status = what.run()
    checks.true(f"{label} status", ok=not bool(status.any()), else_say=f"is {status.tolist()}")
    logits = what.logits.float().cpu().numpy()
    for row, token in enumerate(tokens.tolist()):
        if not 0 <= token < logits.shape[1]:
            checks.true(f"{label} row {row}", ok=False, else_say=f"token {token} is none")
            continue
        short = shortfall(logits[row], token, what.filters[row], what.seeds[row], what.draws[row])
        said = f"token {token} with {what.filters[row]} is {short:.3g} short of the best"
        checks.true(f"{label} row {row}", ok=short <= NEAR, else_say=said)


def _sample(bench: Bench, *, rows: int, vocab: int) -> list[Row]:
    checks = Checks()
    dtypes = (torch.float32,) if bench.toy else (torch.float32, torch.bfloat16, torch.float16)
    for dtype in dtypes:
        compare(checks, str(dtype).removeprefix("torch."), drawn(bench, rows, vocab, seed=rows, dtype=dtype))
    return checks.rows()


def _not_numbers(bench: Bench) -> list[Row]:
    """A row with a NaN, and one with no finite value, say so; their neighbours' tokens stay as they are."""
    checks = Checks()
    vocab = 300 if bench.toy else 32_000
    whole = drawn(bench, 8, vocab, seed=2)
    before, _ = whole.run()
    bad = {1: float("nan"), 4: float("-inf")}
    for row, value in bad.items():
        place = slice(None) if value == float("-inf") else vocab // 2
        whole.logits[row, place] = value
    tokens, status = whole.run()
    checks.true(
        "status", ok=status.tolist() == [int(row in bad) for row in range(8)], else_say=str(status.tolist())
    )
    kept = [row for row in range(8) if row not in bad]
    checks.same_bits("neighbours", tokens[kept], before[kept])
    return checks.rows()


def _ties(bench: Bench) -> list[Row]:
    """Greedy: the lowest id among equals, also when they lie in different pieces of the vocabulary."""
    checks = Checks()
    vocab = 300 if bench.toy else 100_000
    for low, high in ((3, 4), (10, vocab - 1), (vocab // 2, vocab // 2 + 7)):
        logits = torch.zeros(1, vocab, device=bench.device)
        logits[0, [low, high]] = 2.5
        tokens, _ = Drawn(logits, [FILTERS[0]], [1], [0]).run()
        checks.true(f"{low} and {high}", ok=tokens.tolist() == [low], else_say=f"gave {tokens.tolist()}")
    return checks.rows()


def _replay(bench: Bench) -> list[Row]:
    """A captured call gives the tokens of an eager one, also of other logits and draws."""
    if bench.toy:
        raise NotHere("graphs need a GPU")
    checks = Checks()
    first, second = (drawn(bench, 64, 128_256, seed=seed) for seed in (1, 2))
    columns, logits = first.columns(), first.logits.clone()
    tokens = torch.zeros(64, dtype=torch.int32, device=bench.device)
    status = torch.zeros(64, dtype=torch.uint8, device=bench.device)
    graph = capture([lambda: sample(logits, **columns, out_tokens=tokens, out_status=status)])
    logits.copy_(second.logits)
    columns["draws"].add_(1)
    graph.replay()
    torch.cuda.synchronize()
    other = Drawn(second.logits, first.filters, first.seeds, [draw + 1 for draw in first.draws])
    checks.same_bits("tokens", tokens, other.run()[0])
    return checks.rows()
