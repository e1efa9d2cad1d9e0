"""Whether answers are what their certificates say: no text that is shown escapes the forbidden ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airi.config import load
from airi.config.forbidden import ForbiddenTable
from airi.config.load import ConfigFile
from airi.config.verify import Difference, verify_answer
from airi.errors import ConfigError
from airi.gateway.certificates import text_digest

CONFIG = """\
version: 1
models: [{name: m, source: s}]
content:
  forbid: [{name: no, words: [secret]}]
"""


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    path = tmp_path / "airi.yaml"
    path.write_text(CONFIG)
    return load(path)


def certificate(file: ConfigFile, text: str, /, **more: Any) -> dict[str, Any]:
    """What is right of a text, whoever wrote it: nobody signs it."""
    policy = ForbiddenTable(file).find(tenant="", model="m")
    assert policy is not None
    return {
        "version": 1,
        "policy": policy.digest.hex(),
        "automaton": policy.automaton_sha256,
        "tokenizer": "0" * 64,
        "final_state": policy.state_after(text).hex(),
        "tokens": 1,
        "text_sha256": text_digest(text),
        **more,
    }


def verify(
    file: ConfigFile, folder: Path, choice: dict[str, Any], request: dict[str, Any] | None = None
) -> int:
    answer, sent = folder / "answer", folder / "request"
    answer.write_text(json.dumps({"model": "m", "choices": [{"index": 0, **choice}]}))
    sent.write_text(json.dumps(request))
    return verify_answer(answer, file, request=None if request is None else sent)


def test_a_text_before_the_start_is_the_answer_s_unless_the_request_has_it(
    file: ConfigFile, tmp_path: Path
) -> None:
    choice = {"text": "a secret", "certificate": certificate(file, "", start=8)}
    for request in (None, {"prompt": "another"}, {"prompt": [5, 6]}, {"prompt": ["a", "b"]}, {}):
        with pytest.raises(Difference, match=r"choices\[0\]: what is said to be an echoed prompt matches no"):
            verify(file, tmp_path, choice, request)
    for prompt in ("a secret", ["b", "a secret"]):
        assert verify(file, tmp_path, choice, {"prompt": prompt}) == 1


def test_an_echoed_prompt_without_a_match_needs_no_request(file: ConfigFile, tmp_path: Path) -> None:
    choice = {"text": "a thing to see", "certificate": certificate(file, " to see", start=7)}
    assert verify(file, tmp_path, choice) == 1


def test_a_match_across_the_end_of_the_prompt_is_nobody_s_promise(file: ConfigFile, tmp_path: Path) -> None:
    choice = {"text": "sec" + "ret", "certificate": certificate(file, "ret", start=3)}
    with pytest.raises(Difference):
        verify(file, tmp_path, choice)
    assert verify(file, tmp_path, choice, {"prompt": "sec"}) == 1


@pytest.mark.parametrize("start", [-1, -6, 9, True, 1.0, "1", None, [], 10**9])
def test_a_start_that_is_no_place_in_the_text_is_refused(
    file: ConfigFile, tmp_path: Path, start: object
) -> None:
    choice = {"text": "a secret", "certificate": certificate(file, "", start=start)}
    with pytest.raises(Difference, match=r"choices\[0\]: start is "):
        verify(file, tmp_path, choice, {"prompt": "a secret"})


def test_nothing_that_is_shown_is_left_out(file: ConfigFile, tmp_path: Path) -> None:
    for hidden in ({"message": {"content": "secret"}}, {"delta": {"content": "secret"}}):
        with pytest.raises(Difference, match="text_sha256"):
            verify(file, tmp_path, {"text": "fine", **hidden, "certificate": certificate(file, "fine")})


TEXT = 'Look:<tool_call>{"name": "look", "arguments": {"at": "sea"}}</tool_call>'


def call(index: int | None, **function: str) -> dict[str, Any]:
    return ({} if index is None else {"index": index}) | {"type": "function", "function": function}


def test_calls_of_tools_are_verified_by_the_text_that_they_were_made_of(
    file: ConfigFile, tmp_path: Path
) -> None:
    calls = [call(None, name="look", arguments='{"at": "sea"}')]
    message = {"content": "Look:", "tool_calls": calls}
    right = certificate(file, TEXT, text=TEXT)
    assert verify(file, tmp_path, {"message": message, "certificate": right}) == 1
    for wrong, says in (
        (
            certificate(file, TEXT),
            "has calls of tools, but its certificate has no text that they were made of",
        ),
        (certificate(file, TEXT, text=TEXT + "!"), "text_sha256 is"),
        (certificate(file, "a secret", text="a secret"), "the text matches no.words"),
    ):
        with pytest.raises(Difference, match=rf"choices\[0\]: {says}"):
            verify(file, tmp_path, {"message": message, "certificate": wrong})
    for name in ("name", "arguments"):
        forged = call(None, **{"name": "look", "arguments": "{}", name: "secret"})
        with pytest.raises(Difference, match=rf"its tool_calls\[0\].function.{name} matches no\.words"):
            verify(file, tmp_path, {"message": {"tool_calls": [forged]}, "certificate": right})
    with pytest.raises(Difference, match=r"its content matches no\.words"):
        verify(file, tmp_path, {"message": message | {"content": "secret"}, "certificate": right})


def test_calls_of_a_stream_are_put_together(file: ConfigFile, tmp_path: Path) -> None:
    deltas = [
        call(0, name="look", arguments=""),
        call(0, arguments='{"at": "sec'),
        call(1, name="look", arguments="{}"),
        call(0, arguments='ret"}'),
    ]
    last = {"index": 0, "delta": {}, "certificate": certificate(file, TEXT, text=TEXT)}
    path = tmp_path / "stream"

    def write(deltas: list[dict[str, Any]]) -> None:
        choices = [*({"index": 0, "delta": {"tool_calls": [delta]}} for delta in deltas), last]
        lines = [json.dumps({"model": "m", "choices": [choice]}) for choice in choices]
        path.write_text("".join(f"data: {line}\n\n" for line in lines))

    write(deltas[:3])
    assert verify_answer(path, file) == 1
    write(deltas)
    with pytest.raises(Difference, match=r"its tool_calls\[0\].function.arguments matches no\.words"):
        verify_answer(path, file)


def test_a_stream_may_hold_every_character_that_json_may(file: ConfigFile, tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x1cf"
    shown = [{"index": 0, "delta": {"content": part}} for part in (text[:3], text[3:])]
    last = {"index": 0, "delta": {}, "certificate": certificate(file, text)}
    lines = [json.dumps({"model": "m", "choices": [choice]}, ensure_ascii=False) for choice in (*shown, last)]
    path = tmp_path / "stream"
    for end in ("\n\n", "\r\n\r\n"):
        path.write_text("".join(f"data: {line}{end}" for line in [*lines, "[DONE]"]), newline="")
        assert verify_answer(path, file) == 1


@pytest.mark.parametrize("body", ["", "[]", "{"])
def test_a_request_that_is_none_is_said_to_be_none(file: ConfigFile, tmp_path: Path, body: str) -> None:
    answer, request = tmp_path / "answer", tmp_path / "request"
    answer.write_text(json.dumps({"model": "m", "choices": [{"index": 0, "text": ""}]}))
    request.write_text(body)
    with pytest.raises(ConfigError, match="is no request"):
        verify_answer(answer, file, request=request)
