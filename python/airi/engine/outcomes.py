"""What the core's answers are to callers: what a step gave, why a request ended or was not taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.loading import HostedModel
from airi.engine.options import SettledOptions
from airi.engine.requests import Feature, RequestState
from airi.engine.runner import StepResult
from airi.errors import ContextLengthError, ExecutionError, QueueFullError, RequestError
from airi.outputs import FinishReason, Output, error_info

__all__ = ["ModelCounters", "StepOutputs", "add_fuller_outputs", "make_last", "refusal"]

_REASONS: Final[dict[int, FinishReason]] = {
    int(_core.FinishReason.STOP): "stop",
    int(_core.FinishReason.LENGTH): "length",
    int(_core.FinishReason.CANCELLED): "cancelled",
    int(_core.FinishReason.DEADLINE): "deadline",
    int(_core.FinishReason.FAILED): "error",
    int(_core.FinishReason.NAN): "error",
    int(_core.FinishReason.NEVER_FITS): "error",
}
"""By the core's code."""
_FAILURES = {
    int(_core.FinishReason.NAN): "the model gave not-a-number logits",
    int(_core.FinishReason.FAILED): "running the model failed",
    int(
        _core.FinishReason.NEVER_FITS
    ): "quotas or models that came since keep the KV memory that it needs for others",
}
_NO_IDS = np.empty(0, np.int64)
_NO_TOKENS = np.empty(0, np.int32)


@dataclass(slots=True)
class ModelCounters:
    """Totals of one model since the engine started."""

    steps: int = 0
    device_us: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class StepOutputs:
    """What a step gave: rows that only got one more token as columns, all others as Outputs."""

    request_ids: NDArray[np.int64] = field(default_factory=lambda: _NO_IDS)
    tokens: NDArray[np.int32] = field(default_factory=lambda: _NO_TOKENS)
    others: list[Output] = field(default_factory=list)
    progressed: bool = False
    """Whether a batch ran. Without one, nothing changes until something is added, cancelled or times out."""

    def as_list(self) -> list[Output]:
        """Every row as an Output."""
        pairs = zip(self.request_ids.tolist(), self.tokens.tolist(), strict=True)
        return [Output(request_id, [token]) for request_id, token in pairs] + self.others


def refusal(
    admit: _core.Admit,
    model: HostedModel,
    prompt: int,
    asked: int | None,
    options: SettledOptions,
    kv_blocks: int,
) -> RequestError:
    """The error that an answer of the core's queue means, to a prompt and `max_tokens` of these lengths, where the
    model can count on `kv_blocks`."""
    if admit == _core.Admit.QUEUE_FULL:
        return QueueFullError(f"the queue is full: {options.max_queued} requests wait")
    if admit == _core.Admit.TOO_LONG:
        return ContextLengthError(
            f"the prompt has {prompt} tokens; {model.name} takes at most {model.max_model_len - 1} "
            f"(window {model.max_model_len})",
            field="prompt",
        )
    if admit == _core.Admit.NEVER_FITS:
        capacity = kv_blocks * model.block_size
        return ContextLengthError(
            f"prompt ({prompt}) and max_tokens ({asked}) need more than the {capacity} tokens that "
            f"{model.name} can count on KV memory for, or than other tenants' quotas leave of them",
            field="max_tokens",
        )
    return RequestError(f"the request was refused: {admit.name.lower()}", field="request_id")


def add_fuller_outputs(
    others: dict[int, Output],
    result: StepResult,
    states: Mapping[int, RequestState],
    metered: Iterable[int],
) -> None:
    """Adds to `others` those rows of a step that have more to say than a token: first ones, log-probabilities, and
    those of `metered` requests, also without a token."""
    ids, tokens = result.request_ids.tolist(), result.tokens.tolist()
    sampled = dict(zip(ids, tokens, strict=True)) if metered else {}
    for request_id in metered:
        given = [sampled[request_id]] if request_id in sampled else []
        others.setdefault(request_id, Output(request_id, given))
    for index in np.flatnonzero(result.draws == 0).tolist():
        others[ids[index]] = _first_output(states[ids[index]], tokens[index])
    if result.vectors is not None:
        for request_id, vector in zip(ids, result.vectors, strict=True):
            others[request_id].tokens = []
            others[request_id].vector = vector.astype("<f4").tobytes()
    for index, logprobs in result.logprobs.items():
        output = others.setdefault(ids[index], Output(ids[index], [tokens[index]]))
        output.logprobs = [logprobs]


def _first_output(state: RequestState, token: int) -> Output:
    """What a request's first token brings."""
    wants_prompt = state.features & Feature.PROMPT_LOGPROBS
    return Output(
        state.request_id,
        [token],
        prompt_logprobs=state.prompt_logprobs if wants_prompt else None,
        num_prompt_tokens=len(state.prompt),
    )


def make_last(output: Output, state: RequestState, event: tuple[int, ...]) -> None:
    """Makes an output the last one of its request, which ended as `event`, a row of `Runtime.drain_events`, says."""
    _, code, _, num_prompt, num_cached, num_generated = event
    rules, reason = state.rules, _REASONS[code]
    if reason == "length" and output.vector is not None:
        reason, num_generated = "stop", 0
    if reason == "error" and rules is not None and rules.is_exhausted:
        reason = "content_filter"
    if reason == "stop" and output.vector is None:
        output.stop_token = output.tokens[-1]
    elif reason in ("error", "content_filter"):  # what the last step sampled means nothing
        output.tokens, output.logprobs, output.prompt_logprobs, output.vector = [], None, None, None
    if reason == "error":
        own = None if rules is None else rules.failure
        output.error = error_info(ExecutionError(f"{own or _FAILURES[code]}; the request was ended"))
    output.finish_reason = reason
    output.num_prompt_tokens = num_prompt
    output.num_cached_tokens = num_cached
    output.num_generated_tokens = num_generated
    if rules is not None and rules.walk is not None:
        is_hidden = reason == "stop" and not state.params.include_stop_str_in_output
        output.final_state = rules.walk.state_after(num_generated - is_hidden)
