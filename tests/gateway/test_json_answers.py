"""Content rules on JSON and calls: escapes hide nothing, and what is left is JSON of the form that was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airi.gateway.json_answers import JsonAnswer, JsonFilter
from airi.policy.content import ContentAction, ContentEvent, ContentRule, ContentRules
from airi.text.tools import CallArguments, CallStart, ToolFormat
from airi.text.tools._formats import _Either
from airi.text.tools._parsers import JsonParser, MarkerParser

CARD = "4111111111111111"
HIDDEN = f"4\\u0031{CARD[2:-1]}\\u0031"
REDACT = ContentAction.REDACT
RULES = ContentRules(
    [
        ContentRule(name="card", action=REDACT, detectors=("payment_card",), replacement='x"y\\'),
        ContentRule(name="owl", action=ContentAction.ANNOTATE, words=("owl",)),
        ContentRule(name="no", action=ContentAction.BLOCK, words=("heron",)),
    ]
)
WHOLE = JsonAnswer(whole=True, enforced=True)
HERMES = ToolFormat(
    name="hermes",
    parser=lambda _: MarkerParser("<tool_call>", "</tool_call>"),
    mark="<tool_call>",
    end_mark="</tool_call>",
)
MISTRAL = ToolFormat(name="mistral", parser=lambda _: MarkerParser("[TOOL_CALLS]"), mark="[TOOL_CALLS]")
PLAIN = ToolFormat(name="json", parser=JsonParser)
PYTHONIC = ToolFormat(name="pythonic", parser=lambda names: _Either(names, None))


def tools(format_: ToolFormat, **fields: Any) -> JsonAnswer:
    return JsonAnswer(format=format_, names={"pay"}, **fields)


def run(answer: JsonAnswer, pieces: list[str]) -> tuple[str, list[ContentEvent], ContentEvent | None]:
    stream = JsonFilter(RULES, answer)
    passed = [stream.push(piece) for piece in pieces]
    passed.append(stream.finish())
    return "".join(p.text for p in passed), [e for p in passed for e in p.events], stream.blocked


def calls(format_: ToolFormat, text: str) -> tuple[str, list[tuple[str, Any]]]:
    parser = format_.parser({"pay"})
    shown, found = "", []
    for event in [*parser.push(text), *parser.finish()]:
        match event:
            case CallStart(name=name):
                found.append([name, ""])
            case CallArguments(call=call, text=more):
                found[call][1] += more
            case more:
                shown += more
    return shown, [(name, json.loads(arguments)) for name, arguments in found]


@pytest.mark.parametrize("card", [CARD, HIDDEN, CARD.replace("4", "\\u0034")])
def test_what_is_replaced_in_a_string_leaves_json(card: str) -> None:
    text, events, blocked = run(WHOLE, [f'{{"a": ["n\\n{card}, \\"b\\" {card}\\\\"], "owl": 1.5}}'])
    assert json.loads(text) == {"a": ['n\nx"y\\, "b" x"y\\\\'], "owl": 1.5}
    assert [event.rule for event in events] == ["card", "card", "owl"]
    assert blocked is None
    start = len('{"a": ["n\\n')
    assert (events[0].start, events[0].end) == (start, start + len(card))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f'{{"card": {CARD}}}', '{"card": '),
        (f'{{"{HIDDEN}": 1}}', '{"'),
        (f'[1, {{"a": 2, "{CARD}": 1}}]', '[1, {"a": 2, "'),
        (f"[[-1], {CARD}", "[[-1], "),
        ('{"a": "a h\\u0065ron"}', '{"a": "a '),
    ],
)
def test_what_has_no_replacement_is_blocked(text: str, left: str) -> None:
    shown, events, blocked = run(WHOLE, [text])
    assert shown == left
    assert blocked is events[-1]
    assert blocked is not None
    assert blocked.action is ContentAction.BLOCK
    assert blocked.start == len(left)


@pytest.mark.parametrize(
    ("schema", "blocks"),
    [
        ({"type": "object"}, False),
        ({"properties": {"format": {"type": "string"}, "a": {"enum": ["b", 1]}}}, False),
        ({"properties": {"a": {"const": {"b": [CARD]}}}}, True),
        ({"anyOf": [{"enum": ["b", CARD]}]}, True),
        ({"properties": {"a": {"type": "string", "pattern": "."}}}, True),
        ({"items": {"maxLength": 16}}, True),
    ],
)
def test_a_string_that_a_schema_limits_is_blocked(schema: Any, blocks: bool) -> None:  # noqa: FBT001
    for given_schema in (schema, json.dumps(schema)):
        answer = JsonAnswer(whole=True, enforced=True, schemas=({}, given_schema))
        assert (run(answer, [f'{{"a": "{CARD}"}}'])[2] is not None) == blocks
        assert run(answer, ['{"a": "an owl"}'])[2] is None


CALL = f'{{"name": "pay", "arguments": {{"card": "{HIDDEN}", "n": 7}}}}'
PAID = ("pay", {"card": 'x"y\\', "n": 7})


@pytest.mark.parametrize(
    ("format_", "text", "shown"),
    [
        (
            HERMES,
            f'5" of {CARD}:\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>',
            '5" of x"y\\:',
        ),
        (MISTRAL, f"So: [TOOL_CALLS][{CALL}, {CALL}]", "So:"),
        (PLAIN, f" [{CALL}, {CALL}]", ""),
        (PYTHONIC, f"[{CALL}, {CALL}]", ""),
    ],
)
def test_calls_stay_apart_whatever_is_replaced_in_them(format_: ToolFormat, text: str, shown: str) -> None:
    for pieces in ([text], list(text)):
        left, _, blocked = run(tools(format_), pieces)
        assert blocked is None
        assert calls(format_, left) == (shown, [PAID, PAID])


def test_a_name_before_its_arguments_is_read_as_a_call() -> None:
    left, _, _ = run(tools(MISTRAL), [f'[TOOL_CALLS]pay{{"card": "{HIDDEN}"}}'])
    assert calls(MISTRAL, left) == ("", [("pay", {"card": 'x"y\\'})])


def test_arguments_within_a_string_are_blocked() -> None:
    nested = json.dumps({"name": "pay", "arguments": json.dumps({"card": CARD})})
    assert run(tools(PLAIN), [nested])[2] is not None
    assert run(tools(PLAIN), [nested.replace(CARD, "1")]) == (nested.replace(CARD, "1"), [], None)


@pytest.mark.parametrize(
    "value", ["'4\\x31" + CARD[2:] + "'", CARD, f"'41' '{CARD[2:]}'", f"{{'a': [{CARD}]}}"]
)
def test_python_calls_are_read_as_python_reads_them(value: str) -> None:
    shown, (event, *_), blocked = run(tools(PYTHONIC), ["[pay(ca", f"rd={value})]"])
    assert (shown, event.rule, event.action) == ("", "card", ContentAction.BLOCK)
    assert blocked is event
    fine = "[pay(card='an owl')]"
    assert run(tools(PYTHONIC), list(fine))[0] == fine
    assert run(tools(PYTHONIC), [f"[of {CARD}]"])[0] == '[of x"y\\]'


PIECES = [
    '"',
    "\\",
    "\\u",
    "0031",
    "\\u0034",
    CARD[1:],
    CARD,
    "{",
    "}",
    "[",
    ",",
    ": ",
    "owl",
    "heron",
    "é",
    "\\ud83d",
]
PIECES += [
    "\\ude42",
    "<tool",
    "_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "pay",
    " ",
    '{"name": "pay", "arguments": {"',
    '"}}',
]
ANSWERS = [WHOLE, *(tools(format_) for format_ in (HERMES, MISTRAL, PLAIN, PYTHONIC))]


@given(st.sampled_from(ANSWERS), st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.data())
def test_what_is_delivered_does_not_depend_on_the_pieces(
    answer: JsonAnswer, text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole, events, blocked = run(answer, [text])
    shown, found, ended = run(answer, pieces)
    assert (shown, ended) == (whole, blocked)
    if blocked is None:
        assert set(found) == set(events)
        assert whole == text or any(event.rule == "card" for event in events)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text() | st.sampled_from([CARD, f"a {CARD} b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def replaced(value: Any) -> Any:
    match value:
        case str():
            return RULES.check(value)[0].text
        case list():
            return [replaced(each) for each in value]
        case dict():
            return {key: replaced(each) for key, each in value.items()}
        case _:
            return value


@given(VALUES, st.booleans())
def test_json_is_left_as_json_of_what_rules_make_of_its_texts(value: Any, ascii: bool) -> None:  # noqa: FBT001
    text, _, blocked = run(WHOLE, list(json.dumps(value, ensure_ascii=ascii)))
    assert blocked is None
    assert json.loads(text) == replaced(value)
