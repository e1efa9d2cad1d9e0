"""What a request gives back, token by token; shared by engine, transport, gateway and `airi.LLM`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from airi.errors import AiriError

__all__ = ["ErrorInfo", "FinishReason", "Output", "Task", "TokenLogprobs", "error_info"]

FinishReason = Literal["stop", "length", "content_filter", "cancelled", "deadline", "error"]
"""stop: end of sequence or a stop id. length: max_tokens or the window. content_filter: forbidden texts left no token.
The others name themselves."""

Task = Literal["generate", "embed", "classify"]
"""What a model does: it continues texts, gives each a vector, or tells a number for each of its labels."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the model itself: before temperature, penalties and bias."""

    token: int
    logprob: float
    rank: int
    """1 is the most likely token."""
    top_tokens: list[int] = field(default_factory=list)
    """The most likely ids, likeliest first; as many as were asked for."""
    top_logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why a request ended with an error: an `airi.errors` code and its one line."""

    code: str
    message: str
    field: str | None = None


def error_info(error: AiriError) -> ErrorInfo:
    """An error as it travels."""
    return ErrorInfo(code=error.code, message=str(error), field=getattr(error, "field", None))


@dataclass(slots=True)
class Output:
    """What one step (or several, when the reader was slower) added to one request."""

    request_id: int
    tokens: list[int]
    """New token ids in order. A stop id that ended the request is the last of them; see `stop_token`."""
    finish_reason: FinishReason | None = None
    """Set in the request's last output, and only there."""
    stop_token: int | None = None
    """The id that ended the request, where one did; text shows nothing for it."""
    logprobs: list[TokenLogprobs] | None = None
    """One entry per token of `tokens`, where asked for."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """Once, with the first token; entry 0 is None, as nothing predicts the first token."""
    num_prompt_tokens: int = 0
    """Set with the first token and in the last output."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that came from the prefix cache; set in the last output."""
    num_generated_tokens: int = 0
    """Tokens generated over the whole request; set in the last output."""
    error: ErrorInfo | None = None
    """Set when `finish_reason` is "error"."""
    device_us: int = 0
    """Microseconds of devices' time that the request has used since this was last said: with the first token, in the
    last output, and in every output of a metered request."""
    final_state: bytes | None = None
    """Where the text stands among the forbidden ones, in the last output of a request that names a set of them."""
    vector: bytes | None = None
    """Little-endian float32, of a model that gives numbers: a text's vector, or a classifier's logits."""

    def merge(self, later: Output) -> None:
        """Append what a later output of the same request added."""
        self.tokens.extend(later.tokens)
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        if later.prompt_logprobs is not None:
            self.prompt_logprobs = later.prompt_logprobs
        self.num_prompt_tokens = later.num_prompt_tokens or self.num_prompt_tokens
        self.num_cached_tokens = later.num_cached_tokens or self.num_cached_tokens
        self.num_generated_tokens = later.num_generated_tokens
        self.finish_reason = later.finish_reason
        self.stop_token = later.stop_token
        self.error = later.error
        self.device_us += later.device_us
        self.final_state = later.final_state
        self.vector = later.vector or self.vector
