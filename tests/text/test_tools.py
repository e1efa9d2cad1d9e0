"""Calls in what models write: found as they come, however they are cut, and forms that force them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from airi.text.tools import CallArguments, CallStart, Event, Function, ToolParser, tool_format
from airi.text.tools._parsers import JsonParser, MarkerParser, PythonicParser

NAMES = {"look", "f"}
Read = list[str | tuple[str, str]]

PARSERS: dict[str, Callable[[], ToolParser]] = {
    "hermes": lambda: MarkerParser("<tool_call>", "</tool_call>"),
    "mistral": lambda: MarkerParser("[TOOL_CALLS]"),
    "json": lambda: JsonParser(NAMES, "<|python_tag|>"),
    "pythonic": lambda: PythonicParser(NAMES, "<|python_tag|>"),
}
HERMES = '<tool_call>\n{"name": "look", "arguments": {"a": "}\\"{", "b": [1, {"c": 2}]}}\n</tool_call>'
CASES: list[tuple[str, str, Read]] = [
    ("hermes", f"Wait.\n{HERMES}\n", ["Wait.", ("look", '{"a": "}\\"{", "b": [1, {"c": 2}]}')]),
    ("hermes", f"{HERMES}\n{HERMES}", [("look", '{"a": "}\\"{", "b": [1, {"c": 2}]}')] * 2),
    ("hermes", '<tool_call>{"arguments": {"q": 1}, "name": "f"}</tool_call> bye', [("f", '{"q": 1}'), " bye"]),
    ("hermes", '<tool_call>\n{"name": "f"}\n</tool_call>', [("f", "{}")]),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', [("f", '{"a": 1}')]),
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": ', [("f", '{"a": ')]),
    ("hermes", "no call <tool", ["no call <tool"]),
    ("hermes", "<tool_call>nonsense</tool_call> x", ["<tool_call>nonsense</tool_call> x"]),
    ("hermes", '<tool_call>{"foo": 1}</tool_call>', ['<tool_call>{"foo": 1}</tool_call>']),
    ("hermes", '<tool_call>{"foo', ['<tool_call>{"foo']),
    ("hermes", "two lines\n\nand \n", ["two lines\n\nand \n"]),
    (
        "mistral",
        'So: [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "look", "arguments": {}}]',
        ["So:", ("f", '{"a": 1}'), ("look", "{}")],
    ),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]look{"b": 2}', [("f", '{"a": 1}'), ("look", '{"b": 2}')]),
    ("mistral", "[TOOL_CALLS] no, rather not", ["[TOOL_CALLS] no, rather not"]),
    ("mistral", "[TOOL_CALL", ["[TOOL_CALL"]),
    ("json", '{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')]),
    (
        "json",
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "look", "parameters": {"b": {}}}',
        [("f", "{}"), ("look", '{"b": {}}')],
    ),
    (
        "json",
        '[{"name":"f","arguments":{}} ,\n{"name":"look","arguments":{"x":null}}]',
        [("f", "{}"), ("look", '{"x":null}')],
    ),
    ("json", '{"answer": 3}', ['{"answer": 3}']),
    ("json", '{"name": "other", "arguments": {}} x', ['{"name": "other", "arguments": {}} x']),
    ("json", " plain {", [" plain {"]),
    ("json", ' {"nam', [' {"nam']),
    ("json", "[1, 2]", ["[1, 2]"]),
    ("pythonic", '[f(a=1, b="x, ]y"), look()]', [("f", '{"a": 1, "b": "x, ]y"}'), ("look", "{}")]),
    ("pythonic", "<|python_tag|>[f(a=None, b=[True, -1.5])]", [("f", '{"a": null, "b": [true, -1.5]}')]),
    ("pythonic", "[f(a=g())]", ["[f(a=g())]"]),
    ("pythonic", "[f(1)]", ["[f(1)]"]),
    ("pythonic", "[other()]", ["[other()]"]),
    ("pythonic", "hello [f()]", ["hello [f()]"]),
]  # fmt: skip


def joined(events: list[Event]) -> Read:
    """Texts and calls, each as a whole; arguments must belong to the call that began last."""
    read: list[Any] = []
    calls = 0
    for event in events:
        match event:
            case CallStart(call=call, name=name):
                assert call == calls
                calls += 1
                read.append((name, ""))
            case CallArguments(call=call, text=text):
                assert call == calls - 1
                read[-1] = (read[-1][0], read[-1][1] + text)
            case text:
                if read and isinstance(read[-1], str):
                    read[-1] += text
                else:
                    read.append(text)
    return read


@pytest.mark.parametrize(("kind", "text", "expected"), CASES)
def test_calls_are_found_however_the_text_is_cut(kind: str, text: str, expected: Read) -> None:
    rng = random.Random(text)
    for _ in range(40):
        parser, events, at = PARSERS[kind](), [], 0
        while at < len(text):
            size = rng.choice((1, 1, 2, 5, 1000))
            events += parser.push(text[at : at + size])
            at += size
        assert joined(events + parser.finish()) == expected


def test_names_and_arguments_come_out_as_soon_as_they_are_there() -> None:
    parser = PARSERS["hermes"]()
    assert parser.push('<tool_call>{"name": "loo') == []
    assert parser.push('k", "argum') == [CallStart(0, "look")]
    assert parser.push('ents": {"a') == [CallArguments(0, '{"a')]
    assert parser.push('": 1}}') == [CallArguments(0, '": 1}')]


class FakeTokenizer:
    """As much of a tokenizer as a format is told by."""

    def __init__(self, template: str, **special: int) -> None:
        self.tool_template = template
        self._special = {name.replace("_x_", "|"): token for name, token in special.items()}
        self.special_ids = frozenset(self._special.values())

    def token_id(self, token: str) -> int | None:
        return self._special.get(token)


@pytest.mark.parametrize(
    ("template", "special", "name"),
    [
        ("... [TOOL_CALLS] ...", {}, "mistral"),
        ("within <tool_call></tool_call> XML tags", {}, "hermes"),
        ("[func_name1(params_name1=params_value1", {"<|python_tag|>": 5}, "pythonic"),
        ('{"name": function name, "parameters": dictionary of', {}, "llama3_json"),
        ("{{ tools }}", {"<|python_tag|>": 5}, "llama3_json"),
        ("{{ tools }}", {}, "json"),
        ("", {}, "json"),
    ],
)
def test_the_template_tells_the_format(template: str, special: dict[str, int], name: str) -> None:
    found = tool_format(FakeTokenizer(template, **special))  # type: ignore[arg-type]
    assert found.name == name
    assert found.mark_ids == tuple(special.values())


FUNCTIONS = [
    Function(
        name="look", parameters={"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    ),
    Function(name="f"),
]


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(
    "tokenizer",
    [
        FakeTokenizer("[TOOL_CALLS]"),
        FakeTokenizer("<tool_call>"),
        FakeTokenizer('"parameters": dictionary'),
        FakeTokenizer("[func_name1("),
        FakeTokenizer(""),
    ],
)
def test_what_a_forced_form_allows_is_parsed_as_calls(tokenizer: FakeTokenizer, several: bool) -> None:  # noqa: FBT001
    from llguidance import LLMatcher, LLTokenizer

    form = tool_format(tokenizer)  # type: ignore[arg-type]
    grammar = LLMatcher.grammar_from_lark(form.grammar(FUNCTIONS, several=several))
    tokens = LLTokenizer("byte")
    rng, found = random.Random(1), set()
    for _ in range(30):
        matcher = LLMatcher(tokens, grammar, log_level=0)
        written = bytearray()
        while not matcher.is_stopped() and len(written) < 3000:
            if matcher.is_accepting() and rng.random() < 0.5:
                break
            mask = matcher.compute_bitmask()
            byte = rng.choice([i for i in range(256) if mask[i // 8] >> (i % 8) & 1 and i < 128])
            matcher.consume_token(byte)
            written.append(byte)
        if not matcher.is_accepting():
            continue
        parser = form.parser({"look", "f"})
        calls = joined(parser.push(written.decode()) + parser.finish())
        assert calls
        assert several or len(calls) == 1
        for call in calls:
            assert not isinstance(call, str)
            name, arguments = call
            found.add(name)
            value = json.loads(arguments)
            assert value["a"] in (1, 2) if name == "look" else value == {}
    assert found == {"look", "f"}


def test_a_mark_that_is_a_special_token_is_named_by_its_id() -> None:
    form = tool_format(FakeTokenizer("[TOOL_CALLS]", **{"[TOOL_CALLS]": 9}))  # type: ignore[arg-type]
    assert "<[9]>" in form.grammar(FUNCTIONS, several=False)
    assert form.mark_ids == (9,)


def test_an_answer_may_stand_instead_of_calls() -> None:
    form = tool_format(FakeTokenizer("<tool_call>"))  # type: ignore[arg-type]
    grammar = form.grammar(FUNCTIONS, several=True, answer='{"type": "integer"}')
    assert grammar.startswith("start: calls | answer\n")
    assert grammar.count("%json") == 3


GOOD, WRONG = '{"name": "look", "arguments": {"a": 1}}', '{"name": "look", "arguments": {"a": 3}}'


def byte_tokenizer(special: str) -> Any:
    """Bytes as tokens, and one special token, whose id is 256."""
    from llguidance import LLTokenizer
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, special=True)])
    return LLTokenizer(tokenizer.to_str(), eos_token=0), tokenizer


@pytest.mark.parametrize("is_special", [False, True])
@pytest.mark.parametrize(
    ("template", "call"),
    [
        ("<tool_call>", "<tool_call>\n%s\n</tool_call>"),
        ("[TOOL_CALLS]", "[TOOL_CALLS][%s]"),
        ('"parameters": dictionary', None),
        ("[func_name1(", None),
        ("", None),
    ],
)
def test_text_is_free_around_calls_that_are_not(template: str, call: str | None, is_special: bool) -> None:  # noqa: FBT001
    from llguidance import LLMatcher

    special = {template: 256} if is_special and call is not None else {}
    form = tool_format(FakeTokenizer(template, **special))  # type: ignore[arg-type]
    lark = form.grammar(FUNCTIONS, several=True, text=True)
    table, tokenizer = byte_tokenizer(template if special else "<s>")

    def accepts(text: str) -> bool:
        matcher = LLMatcher(table, LLMatcher.grammar_from_lark(lark), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())

    good, wrong = GOOD.replace("arguments", form.arguments), WRONG.replace("arguments", form.arguments)
    assert accepts("")
    assert accepts("An answer.\n\nIts {second} part.")
    if call is None:
        one = "[%s]" if form.before else "%s"
        assert accepts(one % good)
        assert not accepts(one % wrong)
        assert not accepts(one % good + " and so on")
    else:
        assert accepts(call % good)
        assert accepts("I look.\n" + call % good)
        assert accepts(call % good + "\nDone.")
        assert not accepts(call % wrong)
        assert not accepts("I look." + call % wrong)
        assert accepts("<tool" + "[TOOL")
    if form.name == "hermes":
        assert accepts("I look." + call % good + "\n" + call % good)  # type: ignore[operator]
        assert not accepts(call % good + "\n" + call % wrong)  # type: ignore[operator]
