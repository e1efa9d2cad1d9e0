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
    from airi.engine.constraints import TokenRules

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
    MASKED = 32
    ALTERS_LOGITS = PENALTIES | BIAS | MIN_TOKENS | MASKED


class RequestState:
    """One request of one model. Lives from `add_request` to its last output, across preemptions."""

    __slots__ = (
        "bias_ids",
        "bias_values",
        "deadline_us",
        "features",
        "generated",
        "metered",
        "num_generated",
        "params",
        "prompt",
        "prompt_logprobs",
        "prompt_logprobs_from",
        "request_id",
        "rules",
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
        *,
        metered: bool = False,
        masked: bool = False,
        prompt_logprobs_from: int = 0,
    ) -> None:
        """`masked`: there will be `rules` which its tokens must keep to; where the text has a form there are."""
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.stop_ids = stop_ids
        """[n] end of sequence and stop ids of this request."""
        self.seed = seed
        self.deadline_us = deadline_us
        """On the clock of `now_us`."""
        self.metered = metered
        """Whether each of its steps is told."""
        self.rules: TokenRules | None = None
        """There before the core hears of a request that has some."""
        self.features = _features(params, stop_ids, masked=masked or params.structured is not None)
        self.num_generated = 0
        self.generated = np.empty(32 if self.features & Feature.PENALTIES else 0, np.int32)
        """Tokens generated so far in its first `num_generated` elements; kept for penalties only."""
        self.bias_ids = np.fromiter(params.logit_bias.keys(), np.int32, len(params.logit_bias))
        self.bias_values = np.fromiter(params.logit_bias.values(), np.float32, len(params.logit_bias))
        self.prompt_logprobs_from = max(1, prompt_logprobs_from)
        """The prompt's first token of which log-probabilities are taken: nothing predicts token 0."""
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]
        """Grows with the prompt's chunks, when asked for; entry i belongs to prompt token i."""
        if params.prompt_logprobs is not None:
            self.prompt_logprobs *= min(self.prompt_logprobs_from, len(prompt))

    def needed_rules(self) -> TokenRules:
        """The rules of a request that has some."""
        if self.rules is None:
            raise RuntimeError(f"request {self.request_id} was queued without its rules")
        return self.rules

    def remember(self, token: int) -> None:
        """Appends a generated token for the penalties."""
        if self.num_generated == len(self.generated):
            self.generated = np.resize(self.generated, 2 * len(self.generated))
        self.generated[self.num_generated] = token
        self.num_generated += 1


def _features(params: SamplingParams, stop_ids: NDArray[np.int32], *, masked: bool) -> Feature:
    features = Feature.NONE
    if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
        features |= Feature.PENALTIES
    if params.logit_bias:
        features |= Feature.BIAS
    if masked:
        features |= Feature.MASKED  # which sees to min_tokens too
    elif params.min_tokens and len(stop_ids):
        features |= Feature.MIN_TOKENS
    if params.logprobs is not None:
        features |= Feature.LOGPROBS
    if params.prompt_logprobs is not None:
        features |= Feature.PROMPT_LOGPROBS
    return features
