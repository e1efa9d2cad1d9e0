"""How the tokens of one request are chosen and when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from airi.errors import RequestError
from airi.structured_output import StructuredOutput

__all__ = [
    "MAX_LOGPROBS",
    "MAX_PRIORITY",
    "MAX_REPETITION_PENALTY",
    "MAX_SEED",
    "MIN_REPETITION_PENALTY",
    "SamplingParams",
]

MAX_LOGPROBS = 100
MAX_PRIORITY = 8
"""A request's priority, which stands beside these parameters, is in [-MAX_PRIORITY, MAX_PRIORITY]."""
MAX_SEED = 2**64 - 1
# Logits are float32: divided by much less than this they may become infinite.
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
_MAX_N = 128
_MAX_STOPS = 64
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Validated sampling parameters; a value out of range raises RequestError naming the field.

    Integers given for floats are accepted and stored as floats, lists given for tuples as tuples.
    """

    n: int = 1
    """Completions per prompt, 1 to 128. Each runs as a request of its own and shares the prompt's blocks."""
    max_tokens: int | None = None
    """Tokens to generate at most; None means what still fits the window and the arena."""
    min_tokens: int = 0
    """Tokens before which neither end of sequence nor a stop id may be chosen."""
    temperature: float = 1.0
    """0 is greedy (the lowest id wins a tie)."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 (or -1) keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this probability, in (0, 1]."""
    min_p: float = 0.0
    """Drop tokens less likely than this fraction of the most likely one, in [0, 1]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or output; in [0.01, 100], 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of tokens in the output, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the output, in [-2, 2]."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids, each in [-100, 100]."""
    seed: int | None = None
    """Fixes the noise: together with the position it alone decides it. None draws one per request."""
    logprobs: int | None = None
    """Log-probabilities of each generated token and of this many alternatives, 0 to 100; None is off."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; such a request takes no hits from the prefix cache."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; looked for where text is made, not in the engine."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the request, besides the model's own end of sequence."""
    ignore_eos: bool = False
    """Keep generating past the model's end of sequence (`stop_token_ids` still count)."""
    include_stop_str_in_output: bool = False
    """Keep the matched stop string in the text."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    structured: StructuredOutput | None = None
    """The form of the text. It goes before all else here: penalties, bias, top-k, top-p and the rest choose among the
    tokens that it allows, and `min_tokens` yields where it allows no other but an end. Ends of sequence, and stop ids
    that are special tokens, may come where it may end; other stop ids and stop strings cut the text wherever they
    show, and `max_tokens` does, which leaves it incomplete."""

    def __post_init__(self) -> None:
        self._normalise()
        _check_int("n", self.n, 1, _MAX_N)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, _INT32_MAX)
        _check_int("min_tokens", self.min_tokens, 0, _INT32_MAX)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, more than max_tokens ({self.max_tokens})",
                field="min_tokens",
            )
        _check_float("temperature", self.temperature, 0.0, 100.0)
        _check_int("top_k", self.top_k, 0, _INT32_MAX)
        _check_float("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float(
            "repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY
        )
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias", token, 0, _INT32_MAX)
            _check_float("logit_bias", bias, -100.0, 100.0)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, MAX_SEED)
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _check_int(name, count, 0, MAX_LOGPROBS)
        self._check_stops()
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(
                    f"{name} must be true or false, got {_shown(getattr(self, name))}", field=name
                )
        if self.structured is not None and not isinstance(self.structured, StructuredOutput):
            raise RequestError(
                f"structured must be a StructuredOutput, got {_shown(self.structured)}", field="structured"
            )

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    def for_choice(self, index: int) -> SamplingParams:
        """The parameters of completion `index` of `n`: n = 1 and, where a seed was given, seed + index."""
        if self.n == 1 and index == 0:
            return self
        seed = None if self.seed is None else (self.seed + index) & MAX_SEED
        return replace(self, n=1, seed=seed)

    def without_alternatives(self) -> SamplingParams:
        """The same, with log-probabilities of no tokens but those of prompt and text."""
        if not self.logprobs and not self.prompt_logprobs:
            return self
        return replace(
            self,
            logprobs=None if self.logprobs is None else 0,
            prompt_logprobs=None if self.prompt_logprobs is None else 0,
        )

    def _normalise(self) -> None:
        """Bring accepted spellings to the stored form; wrong types stay for the checks to name."""
        put = object.__setattr__
        for name in _FLOAT_FIELDS:
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                put(self, name, float(value))
        if self.top_k == -1:
            put(self, "top_k", 0)
        if isinstance(self.seed, int) and not isinstance(self.seed, bool) and -(2**63) <= self.seed < 0:
            # Clients send signed 64-bit seeds; the same bits, read as unsigned.
            put(self, "seed", self.seed & MAX_SEED)
        if isinstance(self.stop, str):
            put(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if value is None:
                put(self, name, ())
            elif isinstance(value, list):
                put(self, name, tuple(value))
        if self.logit_bias is None:
            put(self, "logit_bias", {})
        elif not isinstance(self.logit_bias, Mapping):
            raise RequestError(
                f"logit_bias must map token ids to numbers, got {_shown(self.logit_bias)}", field="logit_bias"
            )

    def _check_stops(self) -> None:
        for name in ("stop", "stop_token_ids"):
            values = getattr(self, name)
            if not isinstance(values, tuple):
                raise RequestError(f"{name} must be a list, got {_shown(values)}", field=name)
            if len(values) > _MAX_STOPS:
                raise RequestError(f"{name} has {len(values)} entries; at most {_MAX_STOPS}", field=name)
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop must hold non-empty strings, got {_shown(text)}", field="stop")
        for token in self.stop_token_ids:
            _check_int("stop_token_ids", token, 0, _INT32_MAX)


_FLOAT_FIELDS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def _shown(value: object) -> str:
    """A value as an error may show it: numbers as they are, anything else by its type only."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return type(value).__name__ if not isinstance(value, str) else f"a string of {len(value)} characters"


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{name} must be an integer, got {_shown(value)}", field=name)
    if not low <= value <= high:
        raise RequestError(f"{name} must be in [{low}, {high}], got {value}", field=name)


def _check_float(name: str, value: object, low: float, high: float, *, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{name} must be a number, got {_shown(value)}", field=name)
    inside = low < value <= high if low_open else low <= value <= high
    if not inside or math.isnan(value):
        bracket = "(" if low_open else "["
        raise RequestError(f"{name} must be in {bracket}{low:g}, {high:g}], got {value:g}", field=name)
