"""Texts of a given form from `airi.LLM`, over the built-in model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from airi import LLM, RequestError, SamplingParams, StructuredOutput

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["sum"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(threads=1, kv_memory=16 << 20, progress=False) as made:
        yield made


def test_each_prompt_of_a_batch_has_its_own_form(llm: LLM) -> None:
    forms = (StructuredOutput.json_schema(SCHEMA), StructuredOutput.choice(["yes", "no"]))
    params = [SamplingParams(max_tokens=80, seed=i, structured=form) for i, form in enumerate(forms)]
    number, choice = llm.generate(["It costs", "It is open:"], params)
    assert (number.outputs[0].finish_reason, choice.outputs[0].finish_reason) == ("stop", "stop")
    assert 0 <= json.loads(number.outputs[0].text)["sum"] <= 99
    assert choice.outputs[0].text in ("yes", "no")
    streamed = "".join(chunk.text for chunk in llm.generate_stream(["It is open:"], params[1]))
    assert streamed == choice.outputs[0].text


def test_what_cannot_be_exact_raises_and_leaves_the_engine_usable(llm: LLM) -> None:
    form = StructuredOutput.json_schema({"properties": {"a": {"uniqueItems": True}}})
    with pytest.raises(RequestError, match="/properties/a/uniqueItems"):
        llm.generate("x", SamplingParams(structured=form))
    assert llm.generate("x", SamplingParams(max_tokens=2))[0].outputs[0].token_ids


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: StructuredOutput(kind="xml"), "kind must be one of"),  # type: ignore[arg-type]
        (lambda: StructuredOutput.regex(""), "empty"),
        (lambda: StructuredOutput.choice([]), "0 entries"),
        (lambda: StructuredOutput.choice(["a", ""]), "non-empty"),
        (lambda: StructuredOutput.choice("ab"), "list of strings"),
        (lambda: StructuredOutput(kind="choice", text='{"a": 1}'), "list of strings"),
        (lambda: StructuredOutput(kind="json_object", text="{}"), "takes no text"),
        (lambda: StructuredOutput.regex("\ud800"), "surrogate"),
        (lambda: StructuredOutput.json_schema({"a": {1, 2}}), "JSON can hold"),
        (lambda: StructuredOutput.json_schema(5), "object or JSON text"),  # type: ignore[arg-type]
        (lambda: SamplingParams(structured="json"), "StructuredOutput"),  # type: ignore[arg-type]
    ],
)
def test_forms_of_a_wrong_shape_are_refused_where_they_are_made(make: object, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        make()  # type: ignore[operator]
