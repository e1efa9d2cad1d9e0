"""From what a request asks for to a grammar of the library, and from its errors to a line for the user."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from airi.engine.constraints.schemas import MAX_PATTERN, SchemaError, explained, prepare, user_place
from airi.errors import RequestError
from airi.structured_output import StructuredKind, StructuredOutput

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

    from airi.engine.constraints.tokens import TokenTable

__all__ = ["grammar_of", "new_matcher", "refusal_of"]

_MAX_MESSAGE = 300
_MAX_GRAMMAR = 64 * 1024
"""Characters beside schemas. Optional pieces take time that grows with the square of their number."""
_MAX_ROW = 1000
"""Ways in which a grammar may be going on at one place of a text; the library's own limit lets a mask take a second."""
_JSON_BLOCK = "%json"
_COSTS = (
    "too many expressions",
    "Too many items",
    "Current row has",
    "increase limits.",
    "Unable to determine if regex is empty",
)
"""Words of the library where one of its limits was met; its options are nothing that a user could set."""


def grammar_of(structured: StructuredOutput) -> str:
    """The grammar in the library's form; RequestError for what it cannot enforce exactly."""
    from llguidance import LLMatcher

    match structured.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(_schema(structured.text))
        case "json_object":
            return LLMatcher.grammar_from_json_schema(_schema('{"type": "object"}'))
        case "regex":
            if len(structured.text) > MAX_PATTERN:
                raise _too_long("regex", len(structured.text), MAX_PATTERN)
            return LLMatcher.grammar_from_regex(structured.text)
        case "choice":
            # One terminal: alternatives of a rule are followed one by one, and too many are too complex.
            texts = " | ".join(json.dumps(each, ensure_ascii=False) for each in structured.choices)
            return LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {texts}")
        case "grammar":
            return LLMatcher.grammar_from_lark(_with_prepared_schemas(_as_lark(structured.text)))


def new_matcher(tokens: TokenTable, grammar: str, kind: StructuredKind) -> LLMatcher:
    """A matcher at the start of a grammar, its first mask made. Whether it is one, `is_error` says.

    What is too costly from the beginning is known so before a step has it, and what the mask has found out is kept.
    """
    from llguidance import LLMatcher

    matcher = LLMatcher(tokens.tokenizer, grammar, log_level=0, limits=_limits(kind))
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def _as_lark(grammar: str) -> str:
    """Rules with `::=`, from `root`, are a notation of others."""
    if "::=" not in grammar:
        return grammar
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(grammar))
    except Exception as error:  # the converter raises what its parts happen to
        reason = " ".join(str(error).split())[:_MAX_MESSAGE]
        raise RequestError(f"structured: the grammar is not accepted: {reason}", field="structured") from None


def refusal_of(structured: StructuredOutput, error: str) -> RequestError:
    """The error for a request, from what the library said of its grammar."""
    message = _in_a_line(error)
    if structured.kind == "json_schema":
        return _explained(message, structured.text, None)
    if structured.kind == "grammar":
        for number, (begin, end) in enumerate(_schema_blocks(structured.text)):
            schema = structured.text[begin:end]
            if reason := _why_not(_schema(schema, number)):
                return _explained(reason, schema, number)
    return RequestError(f"structured: the {structured.kind} is not accepted: {message}", field="structured")


def _explained(reason: str, schema: str, number: int | None) -> RequestError:
    error = explained(reason, json.loads(_schema(schema, number)), _why_not)
    return _schema_refusal(SchemaError(str(error), user_place(error.place, json.loads(schema))), number)


def _why_not(schema: str) -> str:
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(schema)
    error = LLMatcher.validate_grammar(grammar, limits=_limits("json_schema"))
    return _in_a_line(error) if error else ""


def _limits(kind: StructuredKind) -> LLParserLimits:
    from llguidance import LLParserLimits

    # Errors of the library go to users and logs: without the state of the parser, which quotes the text.
    return LLParserLimits(max_items_in_row=_MAX_ROW if kind == "grammar" else None, verbose_errors=False)


def _in_a_line(error: str) -> str:
    """What the library said, for a user."""
    if any(words in error for words in _COSTS):
        return "it is too complex"
    return " ".join(error.partition("<state>")[0].split())[:_MAX_MESSAGE]


def _too_long(kind: StructuredKind, length: int, most: int) -> RequestError:
    return RequestError(
        f"structured: the {kind} has {length} characters; at most {most} are accepted", field="structured"
    )


def _schema(text: str, number: int | None = None) -> str:
    """A schema as the library is to have it; `number`: which of a grammar's it is."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"structured: the JSON Schema is not JSON: {reason}", field="structured") from None
    try:
        return json.dumps(prepare(schema), ensure_ascii=False)
    except SchemaError as error:
        raise _schema_refusal(error, number) from None
    except RecursionError:
        raise _schema_refusal(SchemaError("is nested too deeply", ""), number) from None


def _schema_refusal(error: SchemaError, number: int | None) -> RequestError:
    field = "structured" if number is None else f"structured.schemas[{number}]"
    return RequestError(f"{field}: cannot be enforced exactly: at {error.place or '/'}: {error}", field=field)


def _with_prepared_schemas(grammar: str) -> str:
    """A Lark grammar whose `%json {...}` blocks are treated as schemas given by themselves."""
    out, at = [], 0
    blocks = _schema_blocks(grammar)
    beside = len(grammar) - sum(end - begin for begin, end in blocks)
    if beside > _MAX_GRAMMAR:
        raise _too_long("grammar", beside, _MAX_GRAMMAR)
    for number, (begin, end) in enumerate(blocks):
        out += [grammar[at:begin], _schema(grammar[begin:end], number)]
        at = end
    return "".join([*out, grammar[at:]])


def _schema_blocks(grammar: str) -> list[tuple[int, int]]:
    """Where the schemas in a grammar begin and end; what is no JSON is left to the library."""
    decoder = json.JSONDecoder()
    blocks, at = [], 0
    while (found := grammar.find(_JSON_BLOCK, at)) >= 0:
        at = found + len(_JSON_BLOCK)
        while grammar[at : at + 1].isspace():
            at += 1
        try:
            _, end = decoder.raw_decode(grammar, at)
        except (ValueError, RecursionError):
            continue
        blocks.append((at, end))
        at = end
    return blocks
