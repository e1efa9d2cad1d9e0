"""Whether a model can take a prompt, and what is asked about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from airi.engine.loading import HostedModel
from airi.errors import ContextLengthError, RequestError
from airi.sampling_params import MAX_PRIORITY, SamplingParams

__all__ = ["check_request"]


def check_request(
    tokens: Sequence[int] | NDArray[np.int32],
    params: SamplingParams,
    model: HostedModel,
    *,
    priority: int,
    places: Mapping[str, int],
) -> NDArray[np.int32]:
    """The prompt as the core takes it; raises RequestError for anything that the model cannot take.

    `places`: by field, what is to be a place in the prompt.
    """
    _check_priority(priority)
    prompt = _check_prompt(tokens, model)
    _check_ids(params, model)
    _check_room(len(prompt), params, model)
    for field, place in places.items():
        _check_place(field, place, len(prompt))
    return prompt


def _check_prompt(tokens: Sequence[int] | NDArray[np.int32], model: HostedModel) -> NDArray[np.int32]:
    """The prompt as the core takes it; raises RequestError for an empty one or ids outside the vocabulary."""
    if len(tokens) == 0:
        raise RequestError("the prompt is empty; at least one token is needed", field="prompt")
    if len(tokens) >= model.max_model_len:
        raise ContextLengthError(
            f"the prompt has {len(tokens)} tokens; {model.name} takes at most {model.max_model_len - 1} "
            f"(window {model.max_model_len})",
            field="prompt",
        )
    try:
        prompt = np.ascontiguousarray(tokens, dtype=np.int32)
    except (OverflowError, TypeError, ValueError):
        raise RequestError("the prompt must be a list of token ids", field="prompt") from None
    low, high = int(prompt.min()), int(prompt.max())
    if low < 0 or high >= model.vocab_size:
        raise RequestError(
            f"token id {low if low < 0 else high} is outside the vocabulary of {model.name} "
            f"(0 to {model.vocab_size - 1})",
            field="prompt",
        )
    return prompt


def _check_room(prompt: int, params: SamplingParams, model: HostedModel) -> None:
    """Raises ContextLengthError when what is asked for cannot follow the prompt in the window."""
    if params.max_tokens is not None and prompt + params.max_tokens > model.max_model_len:
        raise ContextLengthError(
            f"the prompt has {prompt} tokens and max_tokens is {params.max_tokens}; together at most "
            f"{model.max_model_len} fit the window of {model.name}",
            field="max_tokens",
        )


def _check_ids(params: SamplingParams, model: HostedModel) -> None:
    """Raises RequestError for ids in `logit_bias` or `stop_token_ids` outside the vocabulary."""
    for field_name, ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
        if ids and max(ids) >= model.vocab_size:
            raise RequestError(
                f"{field_name} names token id {max(ids)}; {model.name} has ids 0 to {model.vocab_size - 1}",
                field=field_name,
            )


def _check_priority(priority: int) -> None:
    """Raises RequestError for a priority that there is not."""
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise RequestError(
            f"priority must be in [{-MAX_PRIORITY}, {MAX_PRIORITY}], got {priority}", field="priority"
        )


def _check_place(field: str, place: int, prompt: int) -> None:
    """Raises RequestError for what begins outside a prompt of this length."""
    if not 0 <= place <= prompt:
        raise RequestError(
            f"{field} is {place}; it must be a place in the prompt, 0 to {prompt}", field=field
        )
