"""Grammars and masks beside the engine: what is taken, rewritten, kept, and where matchers stand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from airi.engine.constraints import compiler as compilers
from airi.engine.constraints import schemas
from airi.engine.constraints import tokens as token_tables
from airi.engine.constraints.compiler import ConstraintCompiler
from airi.engine.constraints.constraint import Constraint
from airi.engine.constraints.masks import MaskFiller
from airi.engine.constraints.rules import TokenRules
from airi.engine.constraints.schemas import SchemaError, explained, prepare
from airi.engine.constraints.threads import RuleThreads
from airi.errors import ExecutionError, RequestError
from airi.structured_output import MAX_CHOICES, MAX_STRUCTURED_CHARACTERS, StructuredOutput
from airi.text import Tokenizer
from tests.engine.structured_models import EOS, FAMILIES, make_structured, text_of
from tests.engine.tiny_models import VOCAB_SIZE

STOPS = np.array([EOS], np.int32)


@pytest.fixture(scope="module", params=[*FAMILIES, "pieces"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint of each family, and one of which the library does not understand the tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        family = request.param
        if family == "pieces":
            family = "sentence_piece"
            patch.setattr(token_tables, "_agrees", lambda *_: False)
        yield make_structured(tmp_path_factory.mktemp("m") / request.param, family)


@pytest.fixture
def compiler(path: Path) -> Iterator[ConstraintCompiler]:
    with RuleThreads(2) as pool:
        yield ConstraintCompiler(path, VOCAB_SIZE, (EOS,), pool)


def constraint(compiler: ConstraintCompiler, form: StructuredOutput) -> Constraint:
    return compiler.compile(form, tenant=0, stop_ids=STOPS, min_tokens=0).result()


def allowed(filler: MaskFiller, bound: Constraint, draw: int) -> tuple[list[int], NDArray[np.uint32]]:
    filler.begin([TokenRules(form=bound, stop_ids=STOPS, min_tokens=0)], [draw])
    made, masks = filler.wait()
    assert made == [True]
    bits = np.unpackbits(masks[0].view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist(), masks[0].copy()


def test_a_mask_allows_what_the_texts_of_tokens_say_and_no_more(
    path: Path, compiler: ConstraintCompiler
) -> None:
    """Against each token's own bytes, for a form whose continuations are known."""
    text = Tokenizer.load(path)
    pieces = text.pieces()
    assert pieces is not None
    bound = constraint(compiler, StructuredOutput.regex("[a-z ]{0,40}"))
    ids, _ = allowed(MaskFiller(VOCAB_SIZE, 1), bound, 0)
    wanted = [
        token
        for token in range(VOCAB_SIZE)
        if token not in text.special_ids
        and pieces[token]
        and all(c in b"abcdefghijklmnopqrstuvwxyz " for c in pieces[token])
    ]
    assert ids == sorted([*wanted, EOS])


def test_a_matcher_goes_back_when_a_token_is_sampled_again(path: Path, compiler: ConstraintCompiler) -> None:
    bound = constraint(compiler, StructuredOutput.regex("(ab|cd)*"))
    filler = MaskFiller(VOCAB_SIZE, 1)
    a, c, d = (next(i for i in range(4, 300) if text_of(path, [i]) == each) for each in "acd")
    _, mask = allowed(filler, bound, 0)
    bound.push(0, a, mask)
    after_a, _ = allowed(filler, bound, 1)
    assert c not in after_a
    begin, mask = allowed(filler, bound, 0)  # preempted: the step that gave `a` did not count
    assert {a, c} <= set(begin)
    bound.push(0, c, mask)
    after_c, mask = allowed(filler, bound, 1)
    assert d in after_c
    bound.push(1, d, mask)
    again, mask = allowed(filler, bound, 1)  # nor did the next one, which had not been looked at yet
    assert again == after_c
    bound.push(1, d, mask)
    _, mask = allowed(filler, bound, 2)
    bound.push(2, EOS, mask)
    assert allowed(filler, bound, 3)[0] == [EOS]
    assert set(allowed(filler, bound, 2)[0]) >= {a, c, EOS}, "nor an end"


def test_a_token_that_was_not_allowed_is_an_error(path: Path, compiler: ConstraintCompiler) -> None:
    bound = constraint(compiler, StructuredOutput.choice(["x"]))
    _, mask = allowed(MaskFiller(VOCAB_SIZE, 1), bound, 0)
    with pytest.raises(ExecutionError, match="does not allow"):
        bound.push(0, EOS, mask)
    assert text_of(path, []) == ""


def test_matchers_are_used_again_one_request_at_a_time(compiler: ConstraintCompiler) -> None:
    form = StructuredOutput.regex("[a-z]+")
    first, second = constraint(compiler, form), constraint(compiler, form)
    assert first.matcher is not second.matcher
    filler = MaskFiller(VOCAB_SIZE, 1)
    begin, mask = allowed(filler, first, 0)
    first.push(0, begin[-1], mask)
    allowed(filler, first, 1)
    used = first.matcher
    first.close()
    third = constraint(compiler, form)
    assert third.matcher is used
    assert allowed(filler, third, 0)[0] == begin


def test_as_many_choices_as_may_be_given_are_followed(path: Path, compiler: ConstraintCompiler) -> None:
    bound = constraint(compiler, StructuredOutput.choice([f"a{i:04}" for i in range(MAX_CHOICES)]))
    filler = MaskFiller(VOCAB_SIZE, 1)
    begin, mask = allowed(filler, bound, 0)
    [letter] = [token for token in begin if text_of(path, [token]) == "a"]
    bound.push(0, letter, mask)
    after, _ = allowed(filler, bound, 1)
    assert {text_of(path, [token])[0] for token in after} == set("01234")


def test_what_is_kept_is_bounded(compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_MAX_KEPT", 3)
    monkeypatch.setattr(compilers, "_MAX_IDLE", 2)
    for i in range(8):
        bound = [constraint(compiler, StructuredOutput.regex(f"a{{{i + 1}}}")) for _ in range(4)]
        for each in bound:
            each.close()
    assert len(compiler._kept) == 3
    assert all(len(kept.idle) == 2 for kept in compiler._kept.values())


def test_the_tokenizer_is_read_once_however_many_ask(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    load = token_tables.TokenTable.load

    def counted(*args: Any) -> Any:
        read.append(threading.get_ident())
        return load(*args)

    monkeypatch.setattr(token_tables.TokenTable, "load", counted)
    with RuleThreads(4) as pool:
        compiler = ConstraintCompiler(path, VOCAB_SIZE, (EOS,), pool)
        asked = [
            compiler.compile(StructuredOutput.regex(f"{i}"), tenant=i, stop_ids=STOPS, min_tokens=0)
            for i in range(8)
        ]
        assert all(each.result() for each in asked)
    assert len(read) == 1


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (5, ""),
        ([], ""),
        (False, ""),
        ({"properties": {"a": {"enum": [1, {"b": 2**63}]}}}, "/properties/a/enum"),
        ({"items": {"minProperties": 2}}, "/items/minProperties"),
        ({"type": "string", "pattern": "^(\\S+\\s+){0,99}$", "maxLength": 900}, "/pattern"),
    ],
)
def test_what_the_library_would_not_enforce_is_refused_here(schema: Any, place: str) -> None:
    with pytest.raises(SchemaError) as raised:
        prepare(schema)
    assert raised.value.place == place


def _refusing(parts: int) -> dict[str, Any]:
    """A schema of so many parts, the last of which is refused."""
    name = f"d{parts - 1}"
    return {
        "$defs": {f"d{i}": {"items": {"$ref": f"#/$defs/d{i ^ 1}"}} for i in range(parts)}
        | {name: {"contains": {}}},
        "properties": {f"d{i}": {"$ref": f"#/$defs/d{i}"} for i in range(parts)},
    }


def _why_not(asked: list[str]) -> Callable[[str], str]:
    def why_not(text: str) -> str:
        asked.append(text)
        return 'Unimplemented keys: ["contains"]' if '"contains"' in text else ""

    return why_not


def test_the_place_of_a_refusal_is_looked_for_with_the_definitions_that_it_needs() -> None:
    asked: list[str] = []
    error = explained("Unimplemented keys", _refusing(40), _why_not(asked))
    assert (error.place, str(error)) == ("/$defs/d38/items", "contains is not supported")
    assert all(text.count('"d') <= 2 for text in asked[1:])


def test_the_place_of_a_refusal_is_not_looked_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(schemas, "_MAX_PROBES", 10)
    error = explained('Unimplemented keys: ["contains"]', _refusing(40), _why_not(asked))
    assert (error.place, str(error), len(asked)) == ("", "contains is not supported", 10)
    monkeypatch.setattr(schemas, "_PROBES_S", 0.0)
    explained('Unimplemented keys: ["contains"]', _refusing(40), _why_not(asked))
    assert len(asked) <= 11


def test_deep_schemas_and_large_ones_are_refused_in_a_line(compiler: ConstraintCompiler) -> None:
    deep = '{"items":' * 5000 + "{}" + "}" * 5000
    wide = '{"items":' * 150 + "{}" + "}" * 150
    for text in (deep, wide, "[" * 100_000):
        with pytest.raises(RequestError, match=r"nested too deeply|not JSON"):
            constraint(compiler, StructuredOutput(kind="json_schema", text=text))
    with pytest.raises(RequestError, match=f"at most {MAX_STRUCTURED_CHARACTERS}"):
        StructuredOutput.grammar("a" * (MAX_STRUCTURED_CHARACTERS + 1))
