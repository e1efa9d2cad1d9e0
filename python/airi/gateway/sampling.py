"""From the sampling fields of a request to the engine's `SamplingParams`."""

from __future__ import annotations

from airi.gateway.errors import bad_field
from airi.gateway.models import ServedModel
from airi.gateway.openai.schemas_common import SamplingFields
from airi.gateway.openai.schemas_pooling import PoolingFields
from airi.sampling_params import SamplingParams
from airi.structured_output import StructuredOutput


def sampling_params(
    request: SamplingFields,
    model: ServedModel,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    structured: StructuredOutput | None = None,
) -> SamplingParams:
    """The parameters asked for; fields left out take the model's own defaults, then the field's.

    Raises RequestError naming a field that is out of range.
    """
    defaults = model.defaults
    top_k = defaults.get("top_k", 0) if request.top_k is None else request.top_k
    stop = request.stop
    return SamplingParams(
        n=request.n or 1,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens or 0,
        temperature=_first(request.temperature, defaults.get("temperature"), 1.0),
        top_k=max(0, int(top_k)),
        top_p=_first(request.top_p, defaults.get("top_p"), 1.0),
        min_p=_first(request.min_p, defaults.get("min_p"), 0.0),
        repetition_penalty=_first(request.repetition_penalty, defaults.get("repetition_penalty"), 1.0),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=_logit_bias(request.logit_bias, model.info.vocab_size),
        seed=request.seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stop=(stop,) if isinstance(stop, str) else tuple(stop or ()),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        structured=structured,
    )


def check_stream_options(request: SamplingFields | PoolingFields) -> bool:
    """Whether usage is wanted at the end of the stream; raises where options are given without a stream."""
    if request.stream_options is None:
        return False
    if not request.stream:
        raise bad_field("stream_options", "is only allowed with `stream: true`")
    return bool(request.stream_options.include_usage)


def _first(given: float | None, default: float | None, otherwise: float) -> float:
    if given is not None:
        return given
    return otherwise if default is None else default


def _logit_bias(given: dict[str, float] | None, vocab_size: int) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocab_size):
            raise bad_field("logit_bias", f"keys must be token ids below {vocab_size}")
        bias[int(key)] = value
    return bias
