"""YAML as configs are read: what is a number, where things stand, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from airi.config.document import MAX_BYTES, parse_document, resolve
from airi.errors import ConfigFileError


def plain(text: str) -> Any:
    return parse_document(text, "f").root.plain()


def refusals(text: str | bytes) -> tuple[str, ...]:
    with pytest.raises(ConfigFileError) as caught:
        parse_document(text, "f")
    return caught.value.lines


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2026-01-02", "2026-01-02"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("007", 7),
        ("-12", -12),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", 15),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("8GiB", "8GiB"),
        ("1.2.3", "1.2.3"),
        ("9" * 5000, "9" * 5000),
        ("1e99999", "1e99999"),
    ],
)
def test_plain_scalars_are_what_yaml_1_2_says(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


def test_quoted_scalars_are_texts() -> None:
    assert plain("a: '1'\nb: \"true\"\nc: |\n  5\n") == {"a": "1", "b": "true", "c": "5\n"}


def test_escapes_of_json_are_characters() -> None:
    text = "\U0001f600 and \ud7ff \ue000 \U0010ffff"
    document = {"a": text, "list": [text], text: 1}
    assert plain(json.dumps(document)) == document
    assert plain('a: "\\ud83d\\ude00"') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"version": 1,\n"models": [{"name": "a"}, {"name": "x\\ud83d y"}]}', "f:2: models[1].name has"),
        ('a: {b: "\\ude00\\ud83d"}', "f:1: a.b has"),
        ('a: ["\\ud83d\\ud83d\\ude00"]', "f:1: a[0] has"),
        ('"\\uD83D": 1', "f:1: has"),
        ('a: {"\\ud83d": 1}', "f:1: a has"),
    ],
)
def test_half_a_character_is_one_line_that_says_where(text: str, where: str) -> None:
    (line,) = refusals(text)
    assert line.startswith(f"{where} an escape of half a character, \\ud")
    assert line.endswith(
        "; accepted: characters as they are, or the escapes of both halves, such as \\ud83d\\ude00"
    )


def test_entries_without_a_value_are_left_out() -> None:
    assert plain("a:\nb: [~, 1]\n") == {"b": [None, 1]}


def test_values_know_their_lines() -> None:
    document = parse_document("a:\n  b:\n    - 1\n    - c: 2\n\n  d:\n    x\n", "f")
    where: list[tuple[str | int, ...]] = [
        ("a",),
        ("a", "b", 0),
        ("a", "b", 1),
        ("a", "b", 1, "c"),
        ("a", "d"),
    ]
    assert [document.line(path) for path in where] == [1, 3, 4, 4, 6]
    assert document.line(("a", "b", 7, "nowhere")) == 2
    assert document.find(("a", "b", 7)) is None


def test_anchors_are_written_out_and_merges_yield_to_own_keys() -> None:
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [{x: 0}, *b]}\nlist: [*b]\n"
    assert plain(text) == {
        "base": {"x": 1, "y": 2},
        "one": {"x": 1, "y": 3},
        "two": {"x": 0, "y": 2},
        "list": [{"x": 1, "y": 2}],
    }


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "f:1: the file is empty; accepted: a mapping with version and models"),
        ("# nothing\n", "f:1: the file is empty; accepted: a mapping with version and models"),
        ("- 1\n", "f:1: the file holds a list; accepted: a mapping with version and models"),
        ("text", "f:1: the file holds 'text'; accepted: a mapping with version and models"),
        ("a: 1\nb: 2\na: 3\n", "f:3: the key a is given twice, first in line 1; accepted: each key once"),
        ("a: &a [*a]\n", "f:1: *a names no anchor that is complete; accepted: an anchor before it"),
        ("a: *b\n", "f:1: *b names no anchor that is complete; accepted: an anchor before it"),
        ("a: !!python/name:os.system x\n", "f:1: a value has a tag; accepted: values without tags"),
        ("a: 1\n---\nb: 1\n", "f:2: a second document begins; accepted: one document"),
        ("[a]: 1\n", "f:1: a key is no text; accepted: keys that are text"),
        ("a: {<<: 1}\n", "f:1: << merges what is no mapping; accepted: a mapping, or a list of mappings"),
        ("a: [" * 40, "f:1: values lie 33 levels deep; accepted: 32 at most"),
        ("- " * 2000, "f:1: values lie 33 levels deep; accepted: 32 at most"),
        (BOMB, "f:5: the file, its aliases written out, has too many values; accepted: 100000 at most"),
        ("a: b: c\n", "f:1: not YAML: mapping values are not allowed here; accepted: YAML 1.2"),
        ("a: \x00\n", "f:1: not YAML: special characters are not allowed; accepted: YAML 1.2"),
        ("x: 1\ny: '\n", "f:3: not YAML: found unexpected end of stream; accepted: YAML 1.2"),
        ("%YAML 9.9\n---\na: 1\n", "f:1: not YAML: found incompatible YAML document"),
        (
            "a: {port: ${P}}\n",
            "f:1: not YAML: expected ',' or '}', but got '{'; accepted: YAML 1.2; between { and }",
        ),
    ],
)
def test_what_is_no_config_is_one_line(text: str, line: str) -> None:
    assert len(refusals(text)) == 1
    assert refusals(text)[0].startswith(line)


def test_bytes_that_are_not_utf_8_and_files_that_are_too_large_are_refused() -> None:
    assert refusals(b"a: 1\nb: \xff\n") == ("f:2: the file is not UTF-8; accepted: UTF-8",)
    assert refusals(b"#" * (MAX_BYTES + 1))[0].startswith(f"f:1: the file has {MAX_BYTES + 1} bytes")
    assert parse_document("\ufeffa: ä".encode(), "f").root.plain() == {"a": "ä"}


def test_several_mistakes_are_all_told() -> None:
    assert len(refusals("a: 1\na: 2\nb: !x 1\nc: *d\n")) == 3


_texts = st.text(st.characters(codec="utf-8"), max_size=20)
_values = st.recursive(
    st.integers(-(10**9), 10**9) | st.booleans() | _texts,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(_texts.filter(lambda key: key != "<<"), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(
    st.dictionaries(_texts.filter(lambda key: key != "<<"), _values, min_size=1, max_size=5), st.booleans()
)
def test_what_another_writer_wrote_is_read_as_it_was(value: dict[str, Any], flow: bool) -> None:  # noqa: FBT001
    text = yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True, default_style='"')
    quoted = parse_document(text, "f").root.plain()
    assert _as_texts(quoted) == _as_texts(value)


def _as_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_texts(item) for item in value]
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)
