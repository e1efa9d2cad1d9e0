"""Whether answers meet the schemas of their requests: exact, bounded, and never on a call's way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airi.gateway.declared import Claim, Declared, Read, declared_form
from airi.gateway.forms import Form
from airi.gateway.schema_process import verdict
from airi.gateway.verdicts import Verdicts
from airi.lifecycle.observed import Seen
from airi.structured_output import StructuredOutput
from airi.text.tools import MarkerParser, ToolFormat

CITY = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
TREE = '{"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}}]}'
LEVELS = 40
ACME, GLOBEX = "acme", "globex"


def doubling(title: str = "") -> str:
    """A schema by which nobody can judge a number: with each level there is twice as much to look at."""
    both = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(LEVELS)}
    last = {f"a{LEVELS}": {"type": "string"}}
    return json.dumps({"title": title, "$defs": {**both, **last}, "$ref": "#/$defs/a0"})


def tagged() -> ToolFormat:
    return ToolFormat(
        name="hermes",
        parser=lambda _: MarkerParser("<tool_call>", "</tool_call>"),
        mark="<tool_call>",
        end_mark="</tool_call>",
    )


def call(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


@pytest.mark.parametrize(
    ("schema", "text", "said"),
    [
        (CITY, '{"city": "Rome"}', True),
        (CITY, ' {"city": "Rome", "more": 1}\n', True),
        (CITY, '{"city": 1}', False),
        (CITY, '{"city": "Rome"', False),
        ("true", "[1, 2]", True),
        ("true", "NaN", False),
        ("true", "", False),
        ("false", "1", False),
        (TREE, "[[], [null, [null]]]", True),
        (TREE, "[[], [null, [1]]]", False),
        ('{"format": "date"}', '"2026-02-30"', False),
        ('{"pattern": "^(a+)+$"}', json.dumps("a" * 5000 + "b"), False),
        # Nothing is fetched, and nothing tried over and over; by what asks for that nothing can be said.
        ('{"$ref": "http://127.0.0.1:9/schema"}', "1", None),
        ('{"$ref": "file:///etc/hostname"}', "1", None),
        ('{"$schema": "http://127.0.0.1:9/draft"}', "1", None),
        ('{"pattern": "(?=a)a"}', '"a"', None),
        ('{"type": 7}', "1", None),
        ('{"type": ', "1", None),
        ("true", "[" * 100_000, None),
    ],
)
def test_a_verdict_is_right_or_none(schema: str, text: str, *, said: bool | None) -> None:
    assert verdict([(schema, text)]) is said


def test_one_claim_that_is_wrong_makes_all_wrong() -> None:
    right, wrong, open_ = (CITY, '{"city": "Rome"}'), (CITY, "{}"), ('{"$ref": "x:y"}', "1")
    assert verdict([right, open_, wrong]) is False
    assert verdict([right, open_]) is None
    assert verdict([right, right]) is True


@pytest.fixture
async def verdicts() -> AsyncIterator[Verdicts]:
    verdicts = Verdicts()
    yield verdicts
    await verdicts.close()


def read(declared: Declared, text: str) -> Read:
    found = declared.read(text, 1 << 20)
    assert found is not None
    return found


def offer(verdicts: Verdicts, tenant: str, claims: list[Claim], seen: Seen) -> None:
    verdicts.offer(tenant, lambda _: Read(None, tuple(claims)), seen)


async def settled(verdicts: Verdicts) -> None:
    while not verdicts.is_idle:
        await asyncio.sleep(0.01)


async def test_what_ends_the_process_is_not_judged_and_all_else_is(verdicts: Verdicts) -> None:
    seen = Seen()
    for claim in (Claim(CITY, "{}"), Claim(doubling(), "1"), Claim(CITY, '{"city": "Rome"}')):
        offer(verdicts, ACME, [claim], seen)
    await settled(verdicts)
    assert (seen.schema_asked, seen.schema_valid, seen.unjudged) == (2, 1, 1)


async def test_what_is_too_much_is_counted_and_not_held(verdicts: Verdicts) -> None:
    seen = Seen()
    declared, long = Declared(answer="true"), '"' + "a" * (256 << 10) + '"'
    verdicts.offer(ACME, lambda most: declared.read(long, most), seen)
    await settled(verdicts)
    assert seen.unjudged == 1
    for _ in range(70):
        offer(verdicts, ACME, [Claim("true", "1")], seen)
    assert seen.unjudged == 1 + 70 - 32
    others = Seen()
    for i in range(70):
        offer(verdicts, f"tenant {i}", [Claim("true", "1")], others)
    assert others.unjudged == 70 - 32
    await settled(verdicts)
    assert (seen.schema_asked, seen.schema_valid) == (32, 32)
    assert (others.schema_asked, others.schema_valid) == (32, 32)


async def test_no_tenant_keeps_another_one_waiting_for_more_than_one_answer() -> None:
    verdicts, bad, good = Verdicts(), Seen(), Seen()
    for i in range(20):
        offer(verdicts, ACME, [Claim(doubling(f"bad {i}"), "1")], bad)
    for _ in range(2):
        offer(verdicts, GLOBEX, [Claim(CITY, '{"city": "Rome"}')], good)
    while good.schema_valid < 2:
        await asyncio.sleep(0.01)
    assert bad.unjudged <= 3
    await verdicts.close()


async def test_a_schema_that_ended_the_process_is_not_tried_again_for_who_sent_it(
    verdicts: Verdicts, caplog: pytest.LogCaptureFixture
) -> None:
    bad, other = Seen(), Seen()
    offer(verdicts, ACME, [Claim(doubling(), "1")], bad)
    await settled(verdicts)
    offer(verdicts, ACME, [Claim(CITY, "{}"), Claim(doubling(), "1")], bad)
    judge = verdicts._judge
    verdicts._judge = None  # type: ignore[assignment]
    await settled(verdicts)
    verdicts._judge = judge
    assert bad.unjudged == 2
    assert "cannot be judged" not in caplog.text
    offer(verdicts, GLOBEX, [Claim(doubling(), "1")], other)
    assert not verdicts.is_idle
    await settled(verdicts)
    assert other.unjudged == 1


async def test_whatever_goes_wrong_with_one_answer_the_next_one_is_judged(
    verdicts: Verdicts, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    offer(verdicts, ACME, [Claim("true", b"1")], seen)  # type: ignore[arg-type]
    await settled(verdicts)
    offer(verdicts, ACME, [Claim("true", "1")], seen)
    await settled(verdicts)
    assert (seen.schema_asked, seen.schema_valid, seen.unjudged) == (1, 1, 1)
    assert "an answer cannot be judged by schemas: TypeError" in caplog.text


async def test_it_ends_while_it_judges() -> None:
    seen, verdicts = Seen(), Verdicts()
    for _ in range(3):
        offer(verdicts, ACME, [Claim(doubling(), "1")], seen)
    await asyncio.sleep(0.1)
    await verdicts.close()
    offer(verdicts, ACME, [Claim("true", "1")], seen)
    assert (verdicts.is_idle, seen.schema_asked) == (True, 0)


async def test_where_no_process_can_be_started_nothing_is_judged(
    verdicts: Verdicts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    offer(verdicts, ACME, [Claim("true", "1")], seen)
    await settled(verdicts)
    assert (seen.schema_asked, seen.unjudged) == (0, 1)
    assert "no answers can be judged by schemas: No such file or directory" in caplog.text


@pytest.mark.parametrize(
    ("form", "claims"),
    [
        (None, None),
        (StructuredOutput.regex("a+"), None),
        (StructuredOutput.json_object(), (Claim("true", "{}"),)),
        (StructuredOutput.json_schema(CITY), (Claim(CITY, "{}"),)),
    ],
)
def test_a_form_of_json_declares_the_whole_answer(form: Any, claims: Any) -> None:
    declared = declared_form(None if form is None else Form(structured=form, field="response_format"))
    assert (declared and read(declared, "{}").claims) == claims


def test_calls_are_read_by_the_schemas_of_their_functions() -> None:
    functions: dict[str, Any] = {"look": json.loads(CITY), "other": None}
    declared = Declared(format=tagged(), parameters=functions)
    both = call("look", '{"city": 1}') + call("other", "{}")
    claims = read(declared, f"Let me see.{both}").claims
    assert [(json.loads(each.schema), each.text) for each in claims] == [
        (functions["look"], '{"city": 1}'),
        ({"type": "object"}, "{}"),
    ]
    assert read(declared, "I know it.").claims == ()  # it need not call
    cut = read(declared, call("look", '{"city": "Ro')[:-14]).claims
    assert verdict([(each.schema, each.text) for each in cut]) is False
    assert len(read(Declared(format=tagged(), parameters=functions, several=False), both).claims) == 1
    must = Declared(format=tagged(), parameters=functions, must_call=True)
    assert verdict([(each.schema, each.text) for each in read(must, "I know it.").claims]) is False


def test_an_answer_beside_tools_is_read_by_its_own_schema_unless_it_is_calls() -> None:
    declared = Declared(answer=CITY, format=tagged(), parameters={"other": None})
    assert read(declared, '{"city": "Rome"}') == ('{"city": "Rome"}', (Claim(CITY, '{"city": "Rome"}'),))
    called = read(declared, call("other", "{}"))
    assert called.json is None
    assert [each.text for each in called.claims] == ["{}"]


def test_an_answer_is_read_no_further_than_it_can_be_judged() -> None:
    """One that calls for a large schema again and again is not that schema as many times."""
    functions = {"look": {"description": "x" * 10_000}}
    many = Declared(format=tagged(), parameters=functions)
    answer = call("look", "{}") * 100
    assert many.read(answer, 256 << 10) is None
    first = Declared(format=tagged(), parameters=functions, several=False).read(answer, 256 << 10)
    assert first is not None
    assert [claim.text for claim in first.claims] == ["{}"]
    assert Declared(answer="true").read("1" * 100, 103) is None


async def test_answers_are_read_beside_the_calls_of_others(verdicts: Verdicts) -> None:
    seen, began, ends = Seen(), threading.Event(), threading.Event()

    def slow(most: int) -> Read:
        began.set()
        assert ends.wait(60)
        return Read("{}", (Claim("true", "{}"),))

    verdicts.offer(ACME, slow, seen)
    while not began.is_set():  # the event loop goes on meanwhile
        await asyncio.sleep(0.001)
    assert not verdicts.is_idle
    ends.set()
    await settled(verdicts)
    assert (seen.json_asked, seen.json_valid, seen.schema_valid) == (1, 1, 1)
