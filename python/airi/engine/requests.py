"""What the engine remembers of a request beside the core: parameters, and state of the rarer features."""

from __future__ import annotations

import time
from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airi.outputs import TokenLogprobs
from airi.sampling_params import SamplingParams

if TYPE_CHECKING:
    from airi.engine.constraints import Constraint

__all__ = ["Feature", "RequestState", "now_us"]


def now_us() -> int:
    """The clock of deadlines and arrivals: microseconds, monotonic, the same in every process of a host."""
    return time.monotonic_ns() // 1000


class Feature(IntFlag):
    """Features that cost work per row and step; rows without any share the vectorised path."""

    NONE = 0
    PENALTIES = 1
    BIAS = 2
    MIN_TOKENS = 4
    LOGPROBS = 8
    PROMPT_LOGPROBS = 16
    STRUCTURED = 32
    ALTERS_LOGITS = PENALTIES | BIAS | MIN_TOKENS | STRUCTURED


class RequestState:
    """One request of one model. Lives from `add_request` to its last output, across preemptions."""

    __slots__ = (
        "bias_ids",
        "bias_values",
        "constraint",
        "deadline_us",
        "features",
        "generated",
        "num_generated",
        "params",
        "prompt",
        "prompt_logprobs",
        "request_id",
        "seed",
        "stop_ids",
    )

    def __init__(
        self,
        request_id: int,
        prompt: NDArray[np.int32],
        params: SamplingParams,
        stop_ids: NDArray[np.int32],
        seed: int,
        deadline_us: int | None = None,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.stop_ids = stop_ids
        """[n] end of sequence and stop ids of this request."""
        self.seed = seed
        self.deadline_us = deadline_us
        """On the clock of `now_us`."""
        self.constraint: Constraint | None = None
        """There before the core hears of a request whose text has a form."""
        self.features = _features(params, stop_ids)
        self.num_generated = 0
        self.generated = np.empty(32 if self.features & Feature.PENALTIES else 0, np.int32)
        """Tokens generated so far in its first `num_generated` elements; kept for penalties only."""
        self.bias_ids = np.fromiter(params.logit_bias.keys(), np.int32, len(params.logit_bias))
        self.bias_values = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        """Grows with the prompt's chunks, when asked for; entry i belongs to prompt token i."""

    def needed_constraint(self) -> Constraint:
        """The constraint of a request whose text has a form."""
        if self.constraint is None:
            raise RuntimeError(f"request {self.request_id} was queued without its constraint")
        return self.constraint

    def remember(self, token: int) -> None:
        """Appends a generated token for the penalties."""
        if self.num_generated == len(self.generated):
            self.generated = np.resize(self.generated, 2 * len(self.generated))
        self.generated[self.num_generated] = token
        self.num_generated += 1


def _features(params: SamplingParams, stop_ids: NDArray[np.int32]) -> Feature:
    features = Feature.NONE
    if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
        features |= Feature.PENALTIES
    if params.logit_bias:
        features |= Feature.BIAS
    if params.structured is not None:
        features |= Feature.STRUCTURED  # which sees to min_tokens too
    elif params.min_tokens and len(stop_ids):
        features |= Feature.MIN_TOKENS
    if params.logprobs is not None:
        features |= Feature.LOGPROBS
    if params.prompt_logprobs is not None:
        features |= Feature.PROMPT_LOGPROBS
    return features
