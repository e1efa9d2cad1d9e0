"""Choices under content rules: what is delivered depends on the text alone, and nothing leaks beside it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airi.gateway.choice import Choice, Piece
from airi.gateway.content import CallContent, Rules
from airi.gateway.filtered import FilteredChoice
from airi.gateway.generation import Generation
from airi.gateway.http import CallRecord
from airi.gateway.judging import Judge
from airi.gateway.metrics import Metrics, now
from airi.gateway.models import ServedModel
from airi.policy import ANYONE
from airi.policy.content import ContentAction, ContentRules
from airi.sampling_params import SamplingParams
from airi.text import Tokenizer
from airi.transport import EngineClient, ModelInfo, Output, TokenLogprobs

from .content import ALL, CARD, REDACT_MAIL, content_part, uncounted
from .test_generation import FakeClient

WORDS = [" ", "x", "7", "Ünï🙂", "me@example.org", CARD, "4111 1111", "owl", "heron", ".", "<im", "中"]
texts = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)
some_rules = st.lists(st.sampled_from(range(len(ALL))), min_size=1, unique=True)


@cache
def rules_of(chosen: tuple[int, ...]) -> ContentRules:
    rules = content_part(output=[ALL[i] for i in chosen]).table.rules("output", tenant="anyone", model="tiny")
    assert rules is not None
    return rules


def cut(tokenizer: Tokenizer, text: str, data: st.DataObject) -> list[list[int]]:
    """Tokens of the text, cut anywhere, also within characters; in outputs of any size."""
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    tokens: list[int] = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        piece = whole[start:end]
        try:
            tokens += tokenizer.encode(piece.decode(), add_special_tokens=False)
        except UnicodeDecodeError:
            tokens += [BYTES(tokenizer)[byte] for byte in piece]
    outputs = []
    while tokens:
        size = data.draw(st.integers(1, len(tokens)))
        outputs.append(tokens[:size])
        tokens = tokens[size:]
    return outputs


@cache
def BYTES(tokenizer: Tokenizer) -> dict[int, int]:
    """The token of each byte."""
    singles = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return {byte: singles[bytes([byte])] for byte in range(256)}


class Call:
    """One request of choices under rules; the test plays the engine."""

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, rules: ContentRules, *params: SamplingParams
    ) -> None:
        self.client = FakeClient()
        model = ServedModel(
            info=ModelInfo(name="tiny", path=str(folder), max_model_len=512, vocab_size=600),
            tokenizer=tokenizer,
            client=cast(EngineClient, self.client),
            metrics=Metrics("1").model("tiny"),
        )
        record = CallRecord(request_id="r", started=now())
        judge = Judge(record, lambda *_: model, uncounted)
        content = CallContent(record, model, Rules(None), Rules(rules), judge, None, 0)
        self.generation = Generation(model, ANYONE, arrived=now(), content=content)
        for one in params:
            self.generation.add([5, 6], one, priority=None, cache_salt=None)
        self.generation.begin()

    @property
    def requests(self) -> list[int]:
        return list(self.client.sinks)

    def give(self, request_id: int, tokens: list[int], reason: Any = None) -> None:
        logprobs = [TokenLogprobs(token, -0.5, 1, [], []) for token in tokens]
        self.client.sinks[request_id](Output(request_id, tokens, reason, logprobs=logprobs))

    async def take(self, *, per_token: bool = True) -> dict[Choice, list[Piece]]:
        return await self.generation.take(per_token=per_token)


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def run(call: Call, outputs: list[list[int]], *, per_token: bool) -> tuple[Choice, list[Piece]]:
    """Everything that comes of the first choice."""
    (request_id, *_) = call.requests
    (choice, *_) = call.generation.choices
    pieces: list[Piece] = []
    for i, tokens in enumerate([*outputs, []]):
        call.give(request_id, tokens, "length" if i == len(outputs) else None)
        pieces += (await call.take(per_token=per_token)).get(choice, [])
        if choice.finish_reason is not None:
            break
    return choice, pieces


COMMON = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@COMMON
@given(text=texts, chosen=some_rules, per_token=st.booleans(), data=st.data())
async def test_what_is_delivered_does_not_depend_on_the_tokens(
    model_folder: Path,
    tokenizer: Tokenizer,
    text: str,
    chosen: list[int],
    per_token: bool,  # noqa: FBT001
    data: st.DataObject,
) -> None:
    rules = rules_of(tuple(chosen))
    call = Call(model_folder, tokenizer, rules, SamplingParams())
    choice, pieces = await run(call, cut(tokenizer, text, data), per_token=per_token)
    expected, blocked = rules.check(text)
    assert joined(pieces) == expected.text
    assert choice.finish_reason == ("length" if blocked is None else "content_filter")
    assert blocked is not None or call.client.cancelled == []
    assert call.generation.done
    told: dict[str, dict[str, int]] = {}
    for event in expected.events:
        # What is only told of behind a blocked match is found where it came with it, and not where it would have later.
        if event.action is not ContentAction.AUDIT and (blocked is None or event.action.holds):
            counts = told.setdefault(event.rule, {})
            counts[event.pattern] = counts.get(event.pattern, 0) + 1
    results = choice.filter_results or {}
    found = {name: result.matches for name, result in results.items() if blocked is None or result.filtered}
    assert found == told


def spans(tokenizer: Tokenizer, tokens: list[int]) -> Iterator[tuple[int, int, int]]:
    """Tokens with the bytes of the text that are theirs."""
    at = 0
    for token in tokens:
        size = len(tokenizer.token_bytes(token))
        yield token, at, at + size
        at += size


@COMMON
@given(text=texts, chosen=some_rules, data=st.data())
async def test_logprobs_are_of_the_tokens_that_no_filtered_match_touches(
    model_folder: Path, tokenizer: Tokenizer, text: str, chosen: list[int], data: st.DataObject
) -> None:
    rules = rules_of(tuple(chosen))
    call = Call(model_folder, tokenizer, rules, SamplingParams(logprobs=0))
    outputs = cut(tokenizer, text, data)
    _, pieces = await run(call, outputs, per_token=True)
    filtered, blocked = rules.check(text)
    gone = [(e.start, e.end) for e in filtered.events if e.action is ContentAction.REDACT]
    if blocked is not None:
        gone.append((blocked.start, len(text.encode())))
    expected = [
        token
        for token, start, end in spans(tokenizer, [token for tokens in outputs for token in tokens])
        if not any(start < b and end > a for a, b in gone)
    ]
    entries = [entry.token for piece in pieces for entry in piece.logprobs]
    assert entries == expected
    offsets = [offset for piece in pieces for offset in piece.offsets]
    assert offsets == sorted(offsets)
    for entry, offset in zip(entries, offsets, strict=True):
        shown = tokenizer.token_bytes(entry).decode(errors="ignore")
        assert filtered.text[offset:].startswith(shown) or not tokenizer.token_bytes(entry).isascii()


@COMMON
@given(text=texts, chosen=some_rules, data=st.data())
async def test_no_piece_shows_what_more_text_would_take_back(
    model_folder: Path, tokenizer: Tokenizer, text: str, chosen: list[int], data: st.DataObject
) -> None:
    rules = rules_of(tuple(chosen))
    call = Call(model_folder, tokenizer, rules, SamplingParams())
    (request_id,) = call.requests
    shown = ""
    outputs = cut(tokenizer, text, data)
    for tokens in outputs:
        call.give(request_id, tokens)
        (choice,) = call.generation.choices
        shown += joined((await call.take()).get(choice, []))
        if choice.finish_reason is not None:
            break
    for more in ("", "1", " 1111 1111", "@example.org", "x"):
        assert rules.check(text + more)[0].text.startswith(shown)


async def test_the_entry_of_a_token_waits_until_its_text_is_certain(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    call = Call(model_folder, tokenizer, rules_of((1,)), SamplingParams(logprobs=0))
    (request_id,) = call.requests
    tokens = tokenizer.encode("is it for me@b.org.", add_special_tokens=False)
    seen: list[tuple[str, list[str]]] = []
    for token in tokens:
        call.give(request_id, [token])
        for pieces in (await call.take()).values():
            seen += [(p.text, [tokenizer.token_text(e.token) for e in p.logprobs]) for p in pieces]
    assert "".join(text for text, _ in seen) == "is it for "
    call.give(request_id, [], "length")
    ((_, pieces),) = (await call.take()).items()
    assert joined(pieces) == "<mail>."
    assert [tokenizer.token_text(e.token) for p in pieces for e in p.logprobs] == ["."]
    assert [offset for p in pieces for offset in p.offsets] == [len("is it for <mail>")]


async def test_a_stop_string_is_found_before_the_rules_see_the_text(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    text = "To me@example.org and more"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for stop, delivered in ((".org", "To me@example"), ("<mail>", "To <mail> and more"), ("@", "To me")):
        params = SamplingParams(stop=(stop,))
        call = Call(model_folder, tokenizer, rules_of((1,)), params)
        choice, pieces = await run(call, [tokens], per_token=True)
        assert joined(pieces) == delivered
        assert choice.finish_reason == ("length" if stop == "<mail>" else "stop")


async def test_a_blocked_choice_ends_and_the_others_go_on(model_folder: Path, tokenizer: Tokenizer) -> None:
    call = Call(model_folder, tokenizer, rules_of((0,)), *[SamplingParams()] * 3)
    first, second, third = call.requests
    card = tokenizer.encode(f"It is {CARD}. ", add_special_tokens=False)
    fine = tokenizer.encode("It is 7 1 ", add_special_tokens=False)
    for request_id, tokens in ((first, fine), (second, card), (third, fine)):
        call.give(request_id, tokens)
    taken = await call.take()
    assert [joined(taken[choice]) for choice in call.generation.choices] == [
        "It is 7 1 ",
        "It is ",
        "It is 7 1 ",
    ]
    assert [c.finish_reason for c in call.generation.choices] == [None, "content_filter", None]
    assert call.client.cancelled == [second]
    assert call.generation.choices[1].completion_tokens == len(card)
    for request_id in (first, second, third):
        call.give(request_id, fine, "length")
    taken = await call.take()
    assert len(taken) == 2
    assert call.generation.num_generated == 5 * len(fine) + len(card)  # also behind what was blocked
    assert call.generation.done


async def test_what_is_held_when_the_client_goes_is_never_shown(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    call = Call(model_folder, tokenizer, rules_of((0,)), SamplingParams())
    (request_id,) = call.requests
    call.give(request_id, tokenizer.encode("It is 4111 1111", add_special_tokens=False))
    ((_, pieces),) = (await call.take()).items()
    assert joined(pieces) == "It is "
    call.generation.close()
    assert call.client.cancelled == [request_id]


async def test_a_replacement_is_one_for_matches_that_overlap(
    model_folder: Path, tokenizer: Tokenizer
) -> None:
    both = [REDACT_MAIL, {"name": "org", "regexes": [r"example\.org and"], "action": "redact"}]
    rules = content_part(output=both).table.rules("output", tenant="anyone", model="tiny")
    assert rules is not None
    call = Call(model_folder, tokenizer, rules, SamplingParams(logprobs=0))
    tokens = tokenizer.encode("To me@example.org and more", add_special_tokens=False)
    _, pieces = await run(call, [tokens], per_token=True)
    assert joined(pieces) == "To <mail> more"
    offsets = [offset for piece in pieces for offset in piece.offsets]
    assert len("To <mail>") in offsets
    assert not set(offsets) & set(range(len("To "), len("To <mail>")))


@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_a_match_that_the_end_decides_is_filtered(
    model_folder: Path, tokenizer: Tokenizer, reason: str
) -> None:
    call = Call(model_folder, tokenizer, rules_of((0,)), SamplingParams())
    (request_id,) = call.requests
    call.give(request_id, tokenizer.encode(f"It is {CARD}", add_special_tokens=False), reason)
    ((choice, pieces),) = (await call.take()).items()
    assert (joined(pieces), choice.finish_reason) == ("It is ", "content_filter")


async def test_logprobs_keep_no_more_text_than_is_held(model_folder: Path, tokenizer: Tokenizer) -> None:
    call = Call(model_folder, tokenizer, rules_of((1,)), SamplingParams(logprobs=0))
    (request_id,) = call.requests
    (choice,) = call.generation.choices
    tokens = tokenizer.encode("An owl. To me@example.org, 中. ", add_special_tokens=False)
    for _ in range(20):
        call.give(request_id, tokens)
        await call.take()
        assert isinstance(choice, FilteredChoice)
        assert choice._trail is not None
        assert len(choice._trail._text) <= 16
        assert len(choice._trail._gone) <= 1
