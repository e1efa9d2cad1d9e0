"""What is done to logits before a token is sampled, and asked of them after, against float64."""

from __future__ import annotations

import functools

import torch

from airi.kernels.logits import (
    MAX_TOP,
    count_tokens,
    edit_logits,
    gather_logprobs,
    penalise,
    start_counts,
)
from airi.kernels.token_counts import IN_PROMPT, ONE_OUTPUT
from airi.kernels.token_masks import mask_tokens
from benches.gpu import oracle
from benches.gpu.bench import Bench, Case, Row
from benches.gpu.check_attention import name_of, seeds
from benches.gpu.checks import Checks

_LOGPROBS = 1e-5
"""Absolute, of log-probabilities; times their size, which is about 10."""


def cases(bench: Bench) -> list[Case]:
    dtypes = (torch.float32,) if bench.toy else (torch.float32, torch.bfloat16, torch.float16)
    found = []
    for dtype in dtypes:
        for name, run in (
            ("penalise", _penalise),
            ("edit_logits", _edit),
            ("mask_tokens", _mask),
            ("gather_logprobs", _logprobs),
        ):
            run = functools.partial(run, dtype=dtype)
            found.append(Case(name=f"{name} {name_of(dtype)}", run=run, seconds=8))
    return [*found, Case(name="start_counts and count_tokens", run=_counts, seconds=5)]


def _vocab(bench: Bench) -> int:
    return 5000 if bench.toy else 128_256


def _drawn(bench: Bench, rows: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Generator]:
    """Logits in steps of a tenth, so that some are equal, in rows that lie apart."""
    draw = torch.Generator(device=bench.device).manual_seed(seed)
    vocab = _vocab(bench)
    wide = torch.randn(rows, vocab + 16, generator=draw, device=bench.device)
    return (wide * 4).mul(10).round().div(10).to(dtype)[:, :vocab], draw


def _ints(bench: Bench, *values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=bench.device)


def _rounding(bench: Bench, dtype: torch.dtype) -> float:
    """Of a result that is computed in float32 and rounded once."""
    if dtype is torch.float32:
        return 1e-6
    return oracle.tolerance(dtype, interpreted=bench.toy)


def _penalise(bench: Bench, *, dtype: torch.dtype) -> list[Row]:
    checks = Checks()
    for seed in seeds(bench):
        found, draw = _drawn(bench, 6, dtype, seed)
        before = found.clone()
        vocab = found.shape[1]
        counts = torch.randint(0, 4, (3, vocab), generator=draw, device=bench.device)
        prompt = torch.randint(0, 2, (3, vocab), generator=draw, device=bench.device)
        absent = torch.rand((3, vocab), generator=draw, device=bench.device) < 0.7
        seen = (prompt * IN_PROMPT + counts * ONE_OUTPUT).masked_fill(absent, 0).int()
        rows, lines = _ints(bench, 4, -1, 1, 0), _ints(bench, 2, 0, 0, -1)
        factors = torch.tensor(
            [[1.3, 9.0, 0.7, 9.0], [0.4, 9.0, -1.0, 9.0], [0.25, 9.0, 0.0, 9.0]], device=bench.device
        )
        repetition, presence, frequency = factors
        penalise(found, rows, lines, seen, repetition=repetition, presence=presence, frequency=frequency)
        for entry, row, line in ((0, 4, 2), (2, 1, 0)):
            x, times = before[row].double(), (seen[line] // ONE_OUTPUT).double()
            by, once, each = (float(f[entry]) for f in (repetition, presence, frequency))
            wanted = torch.where(x > 0, x / by, x * by) - (once + each * times) * (times > 0)
            wanted = torch.where(seen[line] > 0, wanted, x)
            checks.near(f"seed {seed} row {row}", found[row], wanted, _rounding(bench, dtype))
            unseen = seen[line] == 0
            checks.same_bits(f"seed {seed} row {row} unseen", found[row][unseen], before[row][unseen])
        others = [0, 2, 3, 5]
        checks.same_bits(f"seed {seed} other rows", found[others], before[others])
    return checks.rows()


def _edit(bench: Bench, *, dtype: torch.dtype) -> list[Row]:
    checks = Checks()
    for seed in seeds(bench):
        found, draw = _drawn(bench, 4, dtype, seed)
        vocab, count = found.shape[1], 300
        places = torch.randperm(3 * vocab, generator=torch.Generator().manual_seed(seed))[:count]
        places = places.to(bench.device)
        rows, tokens = (places // vocab).int(), (places % vocab).int()
        rows[5], tokens[9], rows[11] = -1, vocab, 4
        values = torch.randn(count, generator=draw, device=bench.device)
        values[::7] = float("-inf")
        live = (rows >= 0) & (rows < 4) & (tokens < vocab)
        at = (rows[live].long(), tokens[live].long())
        before = found.clone()
        edit_logits(found, rows, tokens, values)
        wanted = before[at].double() + values[live].double()
        label = f"seed {seed}"
        banned = wanted == float("-inf")
        checks.same_bits(f"{label} banned", found[at].double()[banned], wanted[banned])
        checks.near(label, found[at][~banned], wanted[~banned], _rounding(bench, dtype))
        rest = found.clone()
        rest[at] = before[at]
        checks.same_bits(f"{label} others", rest, before)
    return checks.rows()


def _mask(bench: Bench, *, dtype: torch.dtype) -> list[Row]:
    checks = Checks()
    for seed in seeds(bench):
        found, draw = _drawn(bench, 4, dtype, seed)
        vocab = found.shape[1]
        found[3, 2] = float("nan")
        before = found.clone()
        words = torch.randint(-(2**31), 2**31, (3, -(-vocab // 32)), generator=draw, device=bench.device)
        mask_tokens(found, _ints(bench, 2, -1, 3), words.int())
        bits = (words[:, :, None] >> torch.arange(32, device=bench.device)) & 1
        allowed = bits.view(3, -1)[:, :vocab] == 1
        for entry, row in ((0, 2), (2, 3)):
            wanted = torch.where(allowed[entry], before[row], before[row] + float("-inf"))
            checks.same_bits(f"seed {seed} row {row}", found[row].nan_to_num(7.0), wanted.nan_to_num(7.0))
        checks.same_bits(f"seed {seed} other rows", found[:2], before[:2])
    return checks.rows()


def _logprobs(bench: Bench, *, dtype: torch.dtype) -> list[Row]:
    checks = Checks()
    for seed in seeds(bench):
        logits, draw = _drawn(bench, 5, dtype, seed)
        vocab = logits.shape[1]
        logits[2, : vocab // 2] = float("-inf")
        tokens = torch.randint(vocab // 2, vocab, (5,), generator=draw, device=bench.device).int()
        exact = torch.log_softmax(logits.double(), 1)
        picked = exact.gather(1, tokens.long()[:, None])
        ranks = 1 + (exact > picked).sum(1)
        # Equal ones by ascending id: a stable sort keeps them so.
        best = exact.sort(dim=1, descending=True, stable=True)
        for count in (0, 1, 20) if bench.toy else (0, 1, 20, MAX_TOP):
            out = gather_logprobs(logits, tokens, count)
            label = f"seed {seed} top {count}"
            checks.within(f"{label} logprobs", out.logprobs, picked[:, 0], 10 * _LOGPROBS)
            checks.within(f"{label} tops", out.top_logprobs, best.values[:, :count], 10 * _LOGPROBS)
            checks.same_bits(f"{label} ranks", out.ranks, ranks.int())
            checks.same_bits(f"{label} ids", out.top_ids, best.indices[:, :count].int())
        whole = gather_logprobs(logits, tokens, 4)
        logits[1, 7], logits[3, 9] = float("nan"), float("inf")
        broken = gather_logprobs(logits, tokens, 4)
        bad = broken.logprobs[[1, 3]]
        checks.true(f"seed {seed} broken rows", ok=bool(bad.isnan().all()), else_say=f"are {bad.tolist()}")
        kept = [0, 2, 4]
        checks.same_bits(f"seed {seed} neighbours", broken.top_logprobs[kept], whole.top_logprobs[kept])
    return checks.rows()


def _counts(bench: Bench) -> list[Row]:
    checks = Checks()
    vocab = _vocab(bench)
    for seed in seeds(bench):
        draw = torch.Generator(device=bench.device).manual_seed(seed)
        prompt, output = (
            torch.randint(-1, vocab + 1, (n,), generator=draw, device=bench.device).int() for n in (3000, 700)
        )
        seen = torch.full((3, vocab), 77, dtype=torch.int32, device=bench.device)
        start_counts(seen, 1, prompt, output)
        lines = _ints(bench, 1, -1, 2)
        count_tokens(seen, lines, _ints(bench, 5, 6, 7))
        wanted = torch.full((3, vocab), 77, dtype=torch.int32, device=bench.device)
        inside = [x[(x >= 0) & (x < vocab)].long() for x in (prompt, output)]
        wanted[1] = (torch.bincount(inside[0], minlength=vocab) > 0).int() * IN_PROMPT
        wanted[1] += torch.bincount(inside[1], minlength=vocab).int() * ONE_OUTPUT
        wanted[1, 5] += ONE_OUTPUT
        wanted[2, 7] += ONE_OUTPUT
        checks.same_bits(f"seed {seed}", seen, wanted)
    return checks.rows()
