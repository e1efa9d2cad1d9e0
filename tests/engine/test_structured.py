"""Texts of a given form, from engines on the host and on a device: what they may be, and what they leave alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from airi.engine import Engine
from airi.errors import RequestError, error_from_code
from airi.outputs import Output
from airi.structured_output import StructuredOutput
from tests.engine import engine_helpers
from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.structured_models import EOS, FAMILIES, make_structured, text_of, wild

PLATFORMS: dict[str, dict[str, Any]] = {
    "cpu": {"backend": "cpu"},
    "device": {"backend": "cuda", "device": "cpu", "block_size": 16},
}
PROMPT = [5, 6, 7, 8, 9, 10]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["x", "yy", 3, None]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[Any] = [
    PERSON,
    {"anyOf": [{"type": "null"}, {"type": "boolean"}, {"type": "string", "pattern": "^[a-f]{1,3}x$"}]},
    {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2},
    {"type": "array", "prefixItems": [{"const": "é🙂"}, {"type": "integer"}], "items": False, "minItems": 2},
    {"type": "string", "format": "date"},
    {"type": "object", "patternProperties": {"^[ab]{1,2}$": {"type": "integer", "multipleOf": 7}},
     "additionalProperties": False, "maxProperties": 1},
    {"$defs": {"node": {"type": "object", "properties": {"up": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                        "required": ["up"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
               {"properties": {"a": {"minimum": 3, "maximum": 5}}, "additionalProperties": False}]},
]  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_structured(tmp_path_factory.mktemp("m") / request.param, request.param)


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_structured(tmp_path_factory.mktemp("m") / "one", "byte_level")


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(engine_helpers, "PLATFORM", PLATFORMS[request.param])
    monkeypatch.setattr(engine_helpers.Exact, "tolerance", 0.0 if request.param == "cpu" else 1e-4)
    return PLATFORMS[request.param]


def structured(output: Any) -> StructuredOutput:
    return StructuredOutput.json_schema(output)


def served(engine: Engine, *requests: dict[str, Any]) -> list[Output]:
    for i, fields in enumerate(requests):
        add(engine, i, PROMPT, **{"max_tokens": 200, **fields})
    outputs = run(engine)
    engine.check_invariants()
    return [outputs[i] for i in range(len(requests))]


@pytest.mark.usefixtures("platform")
def test_whatever_is_sampled_ends_as_the_schema_says(model: Path) -> None:
    engine = make_engine(model)
    requests = [wild(seed, structured=structured(schema)) for seed in range(6) for schema in SCHEMAS]
    ended = 0
    for output, fields in zip(served(engine, *requests), requests, strict=True):
        assert output.finish_reason in ("stop", "length"), output.error
        if output.finish_reason == "stop":
            ended += 1
            assert output.stop_token == EOS
            schema = json.loads(fields["structured"].text)
            jsonschema_rs.validator_for(schema, validate_formats=True).validate(
                json.loads(text_of(model, output.tokens))
            )
    assert ended > len(requests) // 2


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize(
    ("form", "holds"),
    [
        (StructuredOutput.choice(["yes", "no", "Grüße 🙂", '"quoted" \\ \n']), None),
        (StructuredOutput.regex("(ab|cd){2,3}[0-9]"), r"(ab|cd){2,3}[0-9]"),
        (StructuredOutput.grammar('start: "<" WORD ">" (start)?\nWORD: /[a-c]{1,2}/'), r"(<[a-c]{1,2}>)+"),
        (StructuredOutput.grammar('root ::= "a" root? "b"'), r"a+b+"),
    ],
)
def test_other_forms_hold_too(one_model: Path, form: StructuredOutput, holds: str | None) -> None:
    import re

    for output in served(make_engine(one_model), *(wild(seed, structured=form) for seed in range(8))):
        text = text_of(one_model, output.tokens)
        assert output.finish_reason == "stop"
        if holds is None:
            assert text in form.choices
        else:
            assert re.fullmatch(holds, text)


@pytest.mark.usefixtures("platform")
def test_neighbours_get_the_same_to_the_bit(one_model: Path) -> None:
    plain = [
        {"seed": i, "temperature": 0.9, "max_tokens": 30, "ignore_eos": True, "logprobs": 2} for i in range(4)
    ]
    alone = served(make_engine(one_model), *plain)
    mixed = served(
        make_engine(one_model, max_batch_tokens=16),
        *plain,
        *(wild(i, structured=structured(PERSON)) for i in range(4)),
    )
    for mine, theirs in zip(alone, mixed, strict=False):
        assert mine.tokens == theirs.tokens
        assert mine.logprobs is not None
        assert theirs.logprobs is not None
        assert [each.logprob for each in mine.logprobs] == engine_helpers.Exact(
            each.logprob for each in theirs.logprobs
        )


def test_a_seed_gives_the_same_text_on_a_device_ahead_and_not(one_model: Path) -> None:
    requests = [
        wild(
            i,
            structured=structured(PERSON),
            **({"repetition_penalty": 1.2, "logit_bias": {40: 5.0}} if i % 2 else {}),
        )
        for i in range(6)
    ]
    found = [
        [each.tokens for each in served(make_engine(one_model, async_scheduling=ahead, **options), *requests)]
        for options in PLATFORMS.values()
        for ahead in (True, False)
    ]
    assert all(each == found[0] for each in found)


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("limits", [{"prefix_caching": False}, {}])
def test_preemption_does_not_change_the_text(one_model: Path, limits: dict[str, Any]) -> None:
    requests = [
        wild(i, structured=structured({"type": "string", "minLength": 60, "maxLength": 90})) for i in range(8)
    ]
    roomy = [each.tokens for each in served(make_engine(one_model), *requests)]
    tight = make_engine(one_model, kv_memory=16 * 16384, **limits)
    found = [each.tokens for each in served(tight, *requests)]
    assert tight.stats()[0].preemptions > 0
    assert found == roomy


@pytest.mark.usefixtures("platform")
def test_prefix_hits_do_not_change_the_text(one_model: Path) -> None:
    engine = make_engine(one_model)
    prompt = list(range(5, 75))
    texts = []
    for i in range(2):
        add(engine, i, prompt, max_tokens=100, **wild(3, structured=structured(PERSON)))
        output = run(engine)[i]
        texts.append(output.tokens)
        assert (output.num_cached_tokens > 0) == (i == 1)
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("platform")
class TestEnds:
    def test_max_tokens_cuts_and_says_so(self, one_model: Path) -> None:
        [output] = served(make_engine(one_model), wild(1, structured=structured(PERSON), max_tokens=5))
        assert (output.finish_reason, len(output.tokens)) == ("length", 5)

    def test_min_tokens_yields_where_nothing_else_is_allowed(self, one_model: Path) -> None:
        form = StructuredOutput.regex("[ab]{1,9}")
        long, short = served(
            make_engine(one_model),
            wild(1, structured=form, min_tokens=6),
            wild(1, structured=StructuredOutput.choice(["ab"]), min_tokens=50),
        )
        assert long.finish_reason == "stop"
        assert len(long.tokens) >= 7 or len(text_of(one_model, long.tokens)) == 9
        assert text_of(one_model, short.tokens) == "ab"

    def test_an_end_is_never_inside_the_text(self, one_model: Path) -> None:
        form = StructuredOutput.regex("(.|\n){12}")
        for output in served(make_engine(one_model), *(wild(i, structured=form) for i in range(10))):
            assert output.finish_reason == "stop"
            assert len(text_of(one_model, output.tokens)) == 12
            assert not {0, 1, 2, 3} & set(output.tokens[:-1])

    def test_a_special_stop_id_ends_where_the_text_may_and_another_anywhere(self, one_model: Path) -> None:
        form = StructuredOutput.regex("[a-z]{3}")
        letter = 4 + 64  # some token of one byte
        special, other = served(
            make_engine(one_model),
            wild(1, structured=form, stop_token_ids=(3,), ignore_eos=True),
            wild(1, structured=StructuredOutput.regex("(.|\n)*"), stop_token_ids=tuple(range(4, letter))),
        )
        assert (special.finish_reason, special.stop_token) == ("stop", 3)
        assert len(text_of(one_model, special.tokens[:-1])) == 3
        assert other.finish_reason == "stop"

    def test_without_any_end_it_is_refused(self, one_model: Path) -> None:
        [output] = served(make_engine(one_model), wild(1, structured=structured(PERSON), ignore_eos=True))
        assert output.finish_reason == "error"
        assert output.error is not None
        assert output.error.field == "ignore_eos"

    def test_bias_and_penalties_choose_among_what_is_allowed(self, one_model: Path) -> None:
        form = StructuredOutput.choice(["yes", "no"])
        no = next(i for i in range(4, 300) if text_of(one_model, [i]) in ("n", "no"))
        requests = [
            {**GREEDY, "ignore_eos": False, "structured": form, "logit_bias": dict.fromkeys(ids, 100.0)}
            for ids in ([no], [200, 201, 202])
        ]
        first, second = served(make_engine(one_model), *requests)
        assert text_of(one_model, first.tokens).startswith("no")
        assert text_of(one_model, second.tokens) in ("yes", "no")

    def test_logprobs_are_the_model_s_own(self, one_model: Path) -> None:
        free, bound = served(
            make_engine(one_model),
            {"temperature": 0.0, "max_tokens": 1, "ignore_eos": True, "logprobs": 3},
            {"temperature": 0.0, "max_tokens": 1, "logprobs": 3, "structured": structured(PERSON)},
        )
        assert free.logprobs is not None
        assert bound.logprobs is not None
        assert bound.logprobs[0].top_tokens == free.logprobs[0].top_tokens
        assert bound.logprobs[0].rank > 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("form", "words"),
        [
            (
                structured({"items": {"properties": {"a/b": {"uniqueItems": True}}}}),
                "/items/properties/a~1b/uniqueItems",
            ),
            (structured({"properties": {"x": {"not": {"multipleOf": 3}}}}), "/properties/x/not"),
            (structured({"type": "string", "pattern": "a(?=b)"}), "look-around"),
            (structured({"anyOf": [{"type": "string", "format": "regex"}]}), "/anyOf/0/format"),
            (structured({"properties": {"x": {"const": 2**60 + 1}}}), "/properties/x/const"),
            (structured({"minProperties": 4}), "minProperties"),
            (structured({"$ref": "http://example.com/other"}), "other"),
            (StructuredOutput(kind="json_schema", text="false"), "accepts nothing"),
            (structured({"type": "integer", "minimum": 3, "maximum": 1}), "minimum"),
            (StructuredOutput(kind="json_schema", text="{"), "not JSON"),
            (StructuredOutput.regex("("), "unclosed"),
            (StructuredOutput.grammar("start: nothing"), "nothing"),
            (StructuredOutput.regex("a?" * 9000), "18000 characters; at most 16384"),
            (StructuredOutput.grammar("start: " + '"a"? ' * 14_000), "70007 characters; at most 65536"),
            (structured({"items": {"type": "string", "pattern": "a?" * 9000}}), "/items/pattern"),
            (structured({"patternProperties": {"a?" * 9000: False}}), "/patternProperties"),
            (
                StructuredOutput.grammar(
                    'start: a\na: %json {"properties": {"q": {"not": {"multipleOf": 3}}}}'
                ),
                "/properties/q/not",
            ),
        ],
    )
    def test_what_cannot_be_exact_is_refused_by_its_place(
        self, one_model: Path, form: StructuredOutput, words: str
    ) -> None:
        engine = make_engine(one_model)
        for request_id in range(2):  # also when it is known already
            add(engine, request_id, PROMPT, structured=form)
            output = run(engine)[request_id]
            assert output.error is not None
            error = error_from_code(output.error.code, output.error.message, output.error.field)
            assert isinstance(error, RequestError)
            assert (error.field or "").startswith("structured")
            assert words in str(error)
            assert "\n" not in str(error)

    def test_a_model_without_a_tokenizer_refuses(self, tiny_llama: Path) -> None:
        engine = make_engine(tiny_llama)
        add(engine, 1, PROMPT, structured=structured(PERSON))
        output = run(engine)[1]
        assert output.error is not None
        assert "tokenizer" in output.error.message


@pytest.mark.usefixtures("platform")
def test_a_form_that_cannot_be_followed_ends_its_request_alone_and_says_so(
    one_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llguidance import LLParserLimits

    from airi.engine.constraints import grammars

    tight = LLParserLimits(max_lexer_states=30, precompute_large_lexemes=False, verbose_errors=False)
    monkeypatch.setattr(grammars, "_limits", lambda _: tight)
    form = StructuredOutput.regex("([a-h]{1,5}[i-p]{2,9}){1,40}")
    bound, plain = served(make_engine(one_model), wild(1, structured=form), {**GREEDY, "max_tokens": 30})
    assert (plain.finish_reason, len(plain.tokens)) == ("length", 30)
    assert bound.finish_reason == "error"
    assert bound.error is not None
    assert "too complex" in bound.error.message


@pytest.mark.usefixtures("platform")
def test_a_form_whose_first_mask_is_too_costly_never_reaches_a_step(
    one_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llguidance import LLParserLimits

    from airi.engine.constraints import grammars

    plain = {**GREEDY, "max_tokens": 30}
    tight = LLParserLimits(step_lexer_fuel=20, precompute_large_lexemes=False, verbose_errors=False)
    monkeypatch.setattr(grammars, "_limits", lambda _: tight)
    form = StructuredOutput.regex("([a-h]{1,5}[i-p]{2,9}){1,40}")
    costly, other = served(make_engine(one_model), wild(1, structured=form), plain)
    assert costly.error is not None
    assert (costly.error.field, costly.tokens) == ("structured", [])
    assert isinstance(error_from_code(costly.error.code, costly.error.message), RequestError)
    assert "the regex is not accepted: it is too complex" in costly.error.message
    assert other.tokens == served(make_engine(one_model), plain)[0].tokens


@pytest.mark.usefixtures("platform")
def test_a_grammar_that_goes_on_in_ever_more_ways_ends_its_request_alone(
    one_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airi.engine.constraints import grammars

    monkeypatch.setattr(grammars, "_MAX_ROW", 60)
    form = StructuredOutput.grammar("start: e\ne: e e | e e e | /[a-z]/")
    plain = {**GREEDY, "max_tokens": 30}
    bound, other = served(make_engine(one_model), wild(1, structured=form, min_tokens=200), plain)
    assert bound.error is not None
    assert "too complex" in bound.error.message
    assert bound.tokens
    assert other.tokens == served(make_engine(one_model), plain)[0].tokens
