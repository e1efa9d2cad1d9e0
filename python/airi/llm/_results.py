"""What `airi.LLM` gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

from airi.outputs import FinishReason

__all__ = ["Chunk", "CompletionOutput", "Logprob", "RequestOutput", "TokenLogprob"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """A token and how likely the model held it at one position."""

    token_id: int
    token: str
    """The token's own text; a part of a character shows as a replacement character."""
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob(Logprob):
    """The token that stands at a position, and the likeliest ones there."""

    rank: int
    """1 is the likeliest token."""
    top: tuple[Logprob, ...] = ()
    """The likeliest tokens, likeliest first; as many as were asked for."""


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    """Which of the `n` completions this is."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    """Generated ids, the end of sequence included."""
    logprobs: list[TokenLogprob] | None = None
    """One entry per id of `token_ids`, where `SamplingParams.logprobs` asked for them."""
    finish_reason: FinishReason | None = None
    """"stop", "length", ...; None while it runs."""
    stop_reason: str | int | None = None
    """The stop string or stop id that ended it; None for the end of sequence and for "length"."""

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the tokens' log-probabilities, None where none were asked for."""
        return None if self.logprobs is None else sum(position.logprob for position in self.logprobs)


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its completions."""

    prompt: str | None
    """The prompt's text (rendered, for a chat); None where token ids were given."""
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    """`SamplingParams.n` of them."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry per id of the prompt, None for the first, where asked for."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that came from the prefix cache."""


@dataclass(slots=True, kw_only=True)
class Chunk:
    """What was added to one completion; the texts of its chunks add up to its text."""

    request: int
    """Which prompt of the call, from 0."""
    index: int
    """Which of the prompt's `n` completions."""
    text: str
    """Whole characters; empty where a token completes none."""
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    """Set in a completion's last chunk, and only there."""
    stop_reason: str | int | None = None
