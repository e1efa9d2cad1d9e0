"""From requests of the protocol to completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from airi.gateway.errors import bad_field, decode_body, invalid_value
from airi.gateway.kserve.schemas import GenerateRequest, InferRequest, InputTensor
from airi.gateway.openai.schemas_common import SamplingFields
from airi.gateway.openai.schemas_completions import CompletionRequest
from airi.gateway.openai.translated import Places, TranslatedText

__all__ = ["OUTPUTS", "TEXT_INPUT", "TEXT_OUTPUT", "KServeText", "read_generate", "read_infer"]

TEXT_INPUT, TEXT_OUTPUT = "text_input", "text_output"
OUTPUTS = {
    TEXT_OUTPUT: "BYTES",
    "finish_reason": "BYTES",
    "num_input_tokens": "INT32",
    "num_output_tokens": "INT32",
    "details": "BYTES",
}
"""Every output, by name, with its type; all but the text are given where they are asked for."""

_NOT_PARAMETERS = ("model", "stream", "stream_options", "n")
_PARAMETERS = tuple(name for name in SamplingFields.__struct_fields__ if name not in _NOT_PARAMETERS)
_INFER = msgspec.json.Decoder(InferRequest)
_GENERATE = msgspec.json.Decoder(GenerateRequest)
_OBJECT: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class KServeText(TranslatedText, kw_only=True):
    """A completion that a request of the protocol has become."""

    id: str | None
    outputs: tuple[str, ...] = (TEXT_OUTPUT,)


def read_infer(body: bytes, model: str) -> KServeText:
    """The completion that an inference is; raises a 400 that says what of the body cannot be served."""
    request = decode_body(_INFER, body, refused={})
    _check_inputs(request.inputs)
    prompts = _texts(request.inputs[0], "inputs[0]")
    wanted = [output.name for output in request.outputs or ()] or [TEXT_OUTPUT]
    for i, name in enumerate(wanted):
        if name not in OUTPUTS:
            accepted = ", ".join(OUTPUTS)
            raise bad_field(
                f"outputs[{i}].name",
                f"{name[:100]!r} is not given; accepted: {accepted}",
                code="invalid_value",
            )
    places = Places({"prompt": "inputs[0].data"})
    return _completion(
        model,
        {"prompt": prompts},
        {name: (value, f"parameters.{name}") for name, value in (request.parameters or {}).items()},
        places,
        {"id": request.id, "outputs": tuple(dict.fromkeys(wanted))},
    )


def read_generate(body: bytes, model: str, *, stream: bool) -> KServeText:
    """As `read_infer`, of a request to generate."""
    request = decode_body(_GENERATE, body, refused={})
    beside = {
        name: value
        for name, value in _OBJECT.decode(body).items()
        if name not in GenerateRequest.__struct_fields__
    }
    parameters = {name: (value, name) for name, value in beside.items()}
    parameters |= {name: (value, f"parameters.{name}") for name, value in (request.parameters or {}).items()}
    places = Places({"prompt": TEXT_INPUT})
    own = {"id": request.id}
    return _completion(model, {"prompt": request.text_input, "stream": stream}, parameters, places, own)


def _completion(
    model: str,
    fields: Mapping[str, Any],
    parameters: Mapping[str, tuple[Any, str]],
    places: Places,
    own: Mapping[str, Any],
) -> KServeText:
    """`parameters`: by name, each with its place."""
    for name, (_, place) in parameters.items():
        if name not in _PARAMETERS:
            accepted = ", ".join(_PARAMETERS)
            raise bad_field(place, f"is an unknown parameter; accepted: {accepted}", code="invalid_value")
        places.put(name, place)
    values = {name: value for name, (value, _) in parameters.items()}
    with places.naming():
        try:
            sampling = msgspec.convert({"model": model, "prompt": "", **values}, CompletionRequest)
        except msgspec.ValidationError as error:
            raise invalid_value(error, values, CompletionRequest, refused={}) from None
    given = {name: getattr(sampling, name) for name in values}
    return KServeText(model=model, places=places, **fields, **given, **own)


def _check_inputs(inputs: list[InputTensor]) -> None:
    """Raises a 400 for anything but the one tensor of prompts."""
    for i, tensor in enumerate(inputs):
        if tensor.name != TEXT_INPUT:
            raise bad_field(
                f"inputs[{i}].name",
                f"{tensor.name[:100]!r} is not taken; accepted: {TEXT_INPUT}, sampling is said in parameters",
                code="invalid_value",
            )
    if len(inputs) > 1:
        raise bad_field("inputs", f"has {TEXT_INPUT} {len(inputs)} times; accepted: once")


def _texts(tensor: InputTensor, place: str) -> list[str]:
    if tensor.datatype != "BYTES":
        raise bad_field(f"{place}.datatype", f"{tensor.datatype[:100]!r} is not taken; accepted: BYTES")
    shape, data = tensor.shape, tensor.data
    count = shape[0] if shape else 0
    if shape not in ([count], [count, 1]) or not count:
        raise bad_field(f"{place}.shape", f"{shape} is not taken; accepted: [n] or [n, 1], n at least 1")
    # As one list, or as rows of one text each, whatever the shape: both forms are allowed.
    texts = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in data]
    if len(texts) != count:
        raise bad_field(f"{place}.data", f"has {len(texts)} texts; accepted: {count}, as its shape says")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise bad_field(f"{place}.data[{i}]", "is no text; accepted: texts", code="invalid_type")
    return texts
