"""From logits to a token."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._checks import check

GREEDY_TEMPERATURE = 1e-5


def philox(counters: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al., 2011): [n, 4] counters to [n, 4] random words."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = (np.uint64(k) for k in key)
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & mask,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & mask,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack((c0, c1, c2, c3), 1).astype(np.uint32)


def gumbel_noise(seed: int, draw: int, vocab: int) -> npt.NDArray[np.float64]:
    """The noise of tokens 0 to vocab - 1 in draw number `draw` of a request.

    Token t takes word t % 4 of Philox under the seed (lower 32 bits first) with counter (t // 4, draw, 0, 0);
    a word x is u = (x + 1/2) / 2^32 and its noise -ln(-ln(1 - u)).
    """
    counters = np.zeros((-(-vocab // 4), 4), np.uint32)
    counters[:, 0] = np.arange(counters.shape[0])
    counters[:, 1] = draw
    words = philox(counters, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:vocab]
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    result: npt.NDArray[np.float64] = -np.log(-np.log1p(-u))
    return result


def keep_mask(
    logits: npt.NDArray[Any], *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Which tokens of one row the filters leave, applied in the order min_p, top_k, top_p.

    min_p keeps tokens at least min_p times as probable as the most probable one; top_k the top_k greatest
    logits and all equal to the last of them; top_p the fewest most probable of what is left whose
    renormalised probabilities sum to at least top_p, equal ones by ascending id, at least one.
    """
    z = logits.astype(np.float64) / temperature
    p = np.exp(z - z.max())
    kept: npt.NDArray[np.bool_] = p >= min_p
    if 0 < top_k < z.size:
        left = np.sort(z[kept])[::-1]
        kept &= z >= left[min(top_k, left.size) - 1]
    if top_p < 1:
        order = np.argsort(np.where(kept, -z, np.inf), kind="stable")[: kept.sum()]
        share = np.cumsum(p[order]) / p[order].sum()
        kept[order[1 + int(np.searchsorted(share, top_p)) :]] = False
    return kept


def sample_row(
    logits: npt.NDArray[Any],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    draw: int = 0,
) -> int:
    """The token of one row; below a temperature of 1e-5 the greatest logit, the lowest id among equals."""
    check("temperature", temperature, "0 (greedy) or more", ok=temperature >= 0)
    if np.isnan(logits).any() or np.isinf(logits.max()):
        raise ValueError("logits must hold a finite value and neither NaN nor plus infinity")
    if temperature < GREEDY_TEMPERATURE:
        return int(np.argmax(logits))
    kept = keep_mask(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    scores = logits.astype(np.float64) / temperature + gumbel_noise(seed, draw, logits.size)
    return int(np.argmax(np.where(kept, scores, -np.inf)))


def sample(
    logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    draws: torch.Tensor,
    out_tokens: torch.Tensor,
    out_status: torch.Tensor,
    workspace: object = None,
) -> None:
    """The token of every row of logits [R, V], parameters [R]; seeds int64, the bits of a uint64.

    Status 1 and token 0 for a row that holds NaN, plus infinity or nothing finite, else status 0.
    """
    columns = (temperature, top_k, top_p, min_p, seeds, draws)
    for row, (values, *options) in enumerate(
        zip(logits.float().numpy(), *(c.tolist() for c in columns), strict=True)
    ):
        broken = bool(np.isnan(values).any() or np.isinf(values.max()))
        out_status[row], out_tokens[row] = int(broken), 0
        if not broken:
            names = ("temperature", "top_k", "top_p", "min_p", "seed", "draw")
            arguments = dict(zip(names, options, strict=True))
            out_tokens[row] = sample_row(values, **arguments | {"seed": arguments["seed"] % 2**64})
