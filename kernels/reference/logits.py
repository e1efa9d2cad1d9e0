"""What is done to logits before a token is sampled, and what is asked of them after."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..token_counts import IN_PROMPT, ONE_OUTPUT


def penalise_row(
    logits: npt.NDArray[Any],
    prompt: npt.NDArray[np.int32],
    output: npt.NDArray[np.int32],
    *,
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> npt.NDArray[np.float64]:
    """One row of logits with penalties: repetition for tokens of prompt and output, the others for output."""
    out = logits.astype(np.float64)
    seen = np.union1d(prompt, output)
    out[seen] = np.where(out[seen] > 0, out[seen] / repetition, out[seen] * repetition)
    counts = np.bincount(output, minlength=out.size)
    out -= frequency * counts + presence * (counts > 0)
    return out


def penalise(
    logits: torch.Tensor,
    rows: torch.Tensor,
    lines: torch.Tensor,
    seen: torch.Tensor,
    *,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """Penalises rows of logits [R, V] for what lines of `seen` [P, V] count; row or line -1: none."""
    used = (rows >= 0) & (lines >= 0)
    at, counts = rows[used].long(), seen[lines[used].long()]
    x, factor = logits[at].float(), repetition[used, None]
    x = torch.where(counts > 0, torch.where(x > 0, x / factor, x * factor), x)
    outputs = counts // ONE_OUTPUT
    loss = frequency[used, None] * outputs + presence[used, None]
    logits[at] = torch.where(outputs > 0, x - loss, x).to(logits.dtype)


def start_counts(seen: torch.Tensor, line: int, prompt: torch.Tensor, output: torch.Tensor) -> None:
    """Makes a line of `seen` that of a request: its prompt, and what it generated so far."""
    seen[line] = 0
    seen[line, prompt.long()] = IN_PROMPT
    count_tokens(seen, torch.full_like(output, line), output)


def count_tokens(seen: torch.Tensor, lines: torch.Tensor, tokens: torch.Tensor) -> None:
    """Counts one more generated token of each line; line -1: none."""
    used = lines >= 0
    where = lines[used].long(), tokens[used].long()
    seen.index_put_(where, torch.tensor(ONE_OUTPUT, dtype=torch.int32), accumulate=True)


def edit_logits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Adds values to logits[rows, tokens]; row -1: none."""
    used = rows >= 0
    where = rows[used].long(), tokens[used].long()
    logits[where] = (logits[where].float() + values[used]).to(logits.dtype)


class Logprobs(NamedTuple):
    """Of R rows: of one token each, its rank from 1, and the greatest ones, equal ones by ascending id."""

    logprobs: torch.Tensor
    ranks: torch.Tensor
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


def gather_logprobs(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> Logprobs:
    """Log-probabilities of tokens [R] under softmax(logits [R, V]), and the `count` greatest.

    NaN, and ids of 0, for rows that hold NaN, plus infinity or nothing finite.
    """
    x = logits.double()
    broken = (x.isnan().any(1) | x.amax(1).isinf())[:, None]
    logprobs = torch.where(broken, torch.nan, x - torch.logsumexp(x, 1, keepdim=True))
    own = tokens.long()[:, None]
    ids = torch.argsort(-x, dim=1, stable=True)[:, :count]
    return Logprobs(
        logprobs.gather(1, own)[:, 0].float(),
        1 + (x > x.gather(1, own)).sum(1).int(),
        torch.where(broken, 0, ids).int(),
        logprobs.gather(1, ids).float(),
    )
