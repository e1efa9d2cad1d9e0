"""Whether a sampled token is one that the specification allows, in float64.

Probabilities are summed in float32 on a device, so a token at the very edge of top-p may fall on either side: the token
must be kept by a filter wider by 1e-5, and beat what one narrower by as much keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from airi.kernels.reference import GREEDY_TEMPERATURE, gumbel_noise, keep_mask

NEAR = 1e-3
"""Scores that are this close may change places when computed in float32."""
_EDGE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Of one row."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


FILTERS = (
    Filters(temperature=0.0),
    Filters(),
    Filters(temperature=0.7, top_k=50),
    Filters(top_p=0.9),
    Filters(temperature=1.3, min_p=0.05),
    Filters(temperature=0.8, top_k=20, top_p=0.95, min_p=0.02),
    Filters(top_k=1),
    Filters(top_p=1e-6),
)


def shortfall(logits: Any, token: int, filters: Filters, seed: int, draw: int) -> float:
    """How far the token's score is below the best one's; infinite where a filter must have dropped it."""
    values = logits.astype(np.float64)
    if filters.temperature < GREEDY_TEMPERATURE:
        return float(values.max() - values[token])
    wide, narrow = (
        keep_mask(
            values,
            temperature=filters.temperature,
            top_k=filters.top_k,
            top_p=min(1.0, max(0.0, filters.top_p + shift)),
            min_p=filters.min_p * (1 - shift),
        )
        for shift in (_EDGE, -_EDGE)
    )
    if not wide[token]:
        return float("inf")
    scores = values / filters.temperature + gumbel_noise(seed, draw, values.size)
    return float(scores[narrow].max() - scores[token])
