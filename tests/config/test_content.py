"""Content rules of a config: which hold for whose texts, and those that make no automaton."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import pytest

from airi.config.content import ContentPart, ContentTable, content_mistakes
from airi.config.reload import apply
from airi.config.rules import Detector
from airi.errors import ConfigFileError
from airi.policy._detectors import DETECTOR_GROUPS, DETECTORS
from airi.policy.content import ContentRules

from .conftest import config, with_demo, write

TEXT = """\
version: 1
models: [{name: a, source: x, aliases: [gpt]}, {name: b, source: y}]
tenants: [{name: acme}, {name: lab}]
content:
  input:
    - {name: cards, detectors: [payment_card], action: block}
    - {name: birds, words: [heron], regexes: ['OWL-[0-9]'], ignore_case: true, action: redact, tenants: [lab]}
    - {name: mean, judge: b, models: [a]}
  output:
    - {name: mail, detectors: [email], action: redact, replacement: "<mail>", models: [gpt]}
"""


def cleaned(rules: ContentRules | None, text: str) -> str:
    return text if rules is None else rules.check(text)[0].text


def test_rules_hold_for_their_tenants_and_models() -> None:
    table = ContentTable(config(TEXT))
    text = "A heron and owl-7, to me@example.org."
    lab = table.rules("input", tenant="lab", model="a")
    assert cleaned(lab, text) == "A [REDACTED] and [REDACTED], to me@example.org."
    assert cleaned(table.rules("input", tenant="acme", model="a"), text) == text
    mail = table.rules("output", tenant="acme", model="a")
    assert cleaned(mail, text) == "A heron and owl-7, to <mail>."
    assert table.rules("output", tenant="acme", model="b") is None


def test_texts_with_the_same_rules_share_an_automaton() -> None:
    table = ContentTable(config(TEXT))
    assert table.rules("input", tenant="acme", model="a") is table.rules("input", tenant="acme", model="b")
    assert table.rules("input", tenant="lab", model="a") is not table.rules("input", tenant="acme", model="a")


def test_rules_that_a_reload_leaves_are_not_made_again() -> None:
    before, after = ContentTable(config(TEXT)), ContentTable(config(TEXT.replace("heron", "stork")))
    mail = after.rules("output", tenant="acme", model="a")
    assert mail is not None
    assert mail is before.rules("output", tenant="acme", model="a")
    birds = after.rules("input", tenant="lab", model="a")
    assert birds is not before.rules("input", tenant="lab", model="a")
    assert cleaned(birds, "A stork and a heron.") == "A [REDACTED] and a heron."


def test_a_judge_is_told_where_its_rule_holds() -> None:
    table = ContentTable(config(TEXT))
    assert [rule.judge for rule in table.judges("input", tenant="acme", model="a")] == ["b"]
    assert table.judges("input", tenant="acme", model="b") == ()


def test_a_block_list_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("heron\n\nblue owl\n")
    text = with_demo("content: {input: [{name: w, file: words, action: redact}]}\n")
    rules = ContentTable(write(tmp_path, text)).rules("input", tenant="anyone", model="demo")
    assert cleaned(rules, "A heron, a Blue  Owl.") == "A [REDACTED], a [REDACTED]."


def test_detectors_of_configs_are_those_that_there_are() -> None:
    assert get_args(Detector) == (*DETECTOR_GROUPS, *DETECTORS)


def test_an_expression_beyond_the_automaton_is_named_with_its_line() -> None:
    text = with_demo("content:\n  output:\n    - name: r\n      regexes:\n        - fine\n        - (a)\\1\n")
    (mistake,) = content_mistakes(config(text))
    assert str(mistake).startswith(
        "airi.yaml:9: content.output[0].regexes[1] is '(a)\\\\1'; accepted: a regular expr"
    )
    with pytest.raises(ConfigFileError):
        ContentTable(config(text))


def test_a_reload_exchanges_the_rules_of_texts_that_begin_later() -> None:
    old = config(TEXT)
    new = config(TEXT.replace("<mail>", "<address>"))
    part = ContentPart(old)
    running = part.table.rules("output", tenant="acme", model="a")
    asyncio.run(apply(new, [part]))
    assert cleaned(running, "me@example.org.") == "<mail>."
    later = part.table.rules("output", tenant="acme", model="a")
    assert cleaned(later, "me@example.org.") == "<address>."
