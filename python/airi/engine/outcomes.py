"""What the core's answers are to callers: what a step gave, why a request ended or was not taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.loading import HostedModel
from airi.engine.options import SettledOptions
from airi.engine.requests import Feature, RequestState
from airi.errors import ContextLengthError, ExecutionError, QueueFullError, RequestError
from airi.outputs import ErrorInfo, FinishReason, Output, error_info

__all__ = ["REASONS", "ModelCounters", "StepOutputs", "execution_error", "first_output", "refusal"]

REASONS: Final[dict[int, FinishReason]] = {
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
        capacity = kv_blocks * options.block_size
        return ContextLengthError(
            f"prompt ({prompt}) and max_tokens ({asked}) need more than the {capacity} tokens that "
            f"{model.name} can count on KV memory for, or than other tenants' quotas leave of them",
            field="max_tokens",
        )
    return RequestError(f"the request was refused: {admit.name.lower()}", field="request_id")


def first_output(state: RequestState, token: int) -> Output:
    """What a request's first token brings."""
    wants_prompt = state.features & Feature.PROMPT_LOGPROBS
    return Output(
        state.request_id,
        [token],
        prompt_logprobs=state.prompt_logprobs if wants_prompt else None,
        num_prompt_tokens=len(state.prompt),
    )


def execution_error(code: int, state: RequestState) -> ErrorInfo:
    """What a request is told that ended with this code of the core."""
    own = None if state.constraint is None else state.constraint.failure
    return error_info(ExecutionError(f"{own or _FAILURES[code]}; the request was ended"))
