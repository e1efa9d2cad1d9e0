"""Forbidden texts in engines on the host and on a device: none is generated, and nothing else changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from airi.engine import Engine
from airi.errors import ConfigError, RequestError
from airi.forbidden import ForbiddenPattern, ForbiddenSet
from airi.outputs import Output
from airi.structured_output import StructuredOutput
from airi.text import Tokenizer
from tests.engine import engine_helpers
from tests.engine.engine_helpers import GREEDY, add, make_engine, run
from tests.engine.structured_models import FAMILIES, make_structured, wild
from tests.engine.test_structured import PLATFORMS, PROMPT

PATTERNS = [r"[aeiou]{2}", r"\bn\w*", r"[0-9] ?[0-9]", "é", r"x(?!y)", r"\W{4}"]
MATCHER = re.compile("|".join(f"(?:{each})" for each in PATTERNS), re.ASCII)
"""Has nothing in common with the automaton."""


def forbidden(*regexes: str) -> ForbiddenSet:
    return ForbiddenSet(tuple(ForbiddenPattern(name=each, regex=each) for each in regexes))


SET = forbidden(*PATTERNS)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_structured(tmp_path_factory.mktemp("m") / request.param, request.param)


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_structured(tmp_path_factory.mktemp("m") / "one", "byte_level")


@pytest.fixture(params=PLATFORMS)
def platform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(engine_helpers, "PLATFORM", PLATFORMS[request.param])
    return PLATFORMS[request.param]


def engine_with(path: Path, *sets: ForbiddenSet, **options: Any) -> Engine:
    engine = make_engine(path, **options)
    names = [model.name for model in engine.models]
    engine.forbid(0, [(each, names) for each in sets or (SET,)]).result()
    return engine


def served(engine: Engine, *requests: dict[str, Any], of: ForbiddenSet | None = SET) -> list[Output]:
    digest = None if of is None else of.digest
    for i, fields in enumerate(requests):
        prompt = fields.pop("prompt", PROMPT)
        add(engine, i, prompt, **{"max_tokens": 60, "forbidden": digest, **fields})
    outputs = run(engine)
    engine.check_invariants()
    return [outputs[i] for i in range(len(requests))]


def shown(path: Path, output: Output, prompt: list[int] = PROMPT, **options: Any) -> str:
    """What a client is shown, but for what is no whole character at the end."""
    tokens = output.tokens[:-1] if output.stop_token is not None else output.tokens
    stream = Tokenizer.load(path).stream(prompt, **options)
    text = stream.push(tokens)
    assert "�" not in text
    return text


def wilds(count: int, **fields: Any) -> list[dict[str, Any]]:
    return [wild(seed, **fields) for seed in range(count)]


@pytest.mark.usefixtures("platform")
def test_no_text_has_a_match_whyever_it_ends(model: Path) -> None:
    engine = engine_with(model)
    free = served(engine, *wilds(12), of=None)
    bound = served(engine, *wilds(40))
    assert {each.finish_reason for each in bound} == {"stop", "length"}
    assert all(each.final_state is not None for each in bound)
    for output in bound:
        assert not MATCHER.search(shown(model, output))
    found = [Tokenizer.load(model).decode(each.tokens) for each in free]
    assert sum(MATCHER.search(each) is not None for each in found) > len(found) // 2, "it would have"


@pytest.mark.usefixtures("platform")
def test_what_a_model_would_say_first_is_what_it_says_where_that_is_allowed(one_model: Path) -> None:
    tokenizer = Tokenizer.load(one_model)
    letters = [i for i in range(4, 300) if tokenizer.token_bytes(i).isascii() and tokenizer.token_bytes(i)]
    ask = {**GREEDY, "max_tokens": 12, "logit_bias": dict.fromkeys(letters, 50.0)}
    [free] = served(engine_with(one_model), dict(ask), of=None)
    text = shown(one_model, free)
    harmless, word = forbidden("neverthere"), forbidden(re.escape(text[4:6]))
    [same] = served(engine_with(one_model, harmless), dict(ask), of=harmless)
    assert (same.tokens, same.finish_reason) == (free.tokens, free.finish_reason)
    [other] = served(engine_with(one_model, word), dict(ask), of=word)
    assert text[4:6] not in shown(one_model, other)
    common = next(i for i, (a, b) in enumerate(zip(free.tokens, other.tokens, strict=True)) if a != b)
    assert text[4:6] in tokenizer.decode(free.tokens[: common + 1])


@pytest.mark.usefixtures("platform")
def test_logprobs_are_of_tokens_that_were_taken(one_model: Path) -> None:
    ask = {**GREEDY, "max_tokens": 12, "logprobs": 5, "prompt_logprobs": 5}
    engine = engine_with(one_model)
    [free], [bound] = served(engine, dict(ask), of=None), served(engine, dict(ask))
    for output, count in ((free, 5), (bound, 0)):
        assert output.logprobs is not None
        assert output.prompt_logprobs is not None
        entries = output.logprobs + [each for each in output.prompt_logprobs if each is not None]
        assert len(entries) == len(output.tokens) + len(PROMPT) - 1
        assert {len(entry.top_tokens) for entry in entries} == {count}
    assert bound.logprobs is not None
    assert [entry.token for entry in bound.logprobs] == bound.tokens


def test_a_seed_gives_the_same_text_on_a_device_ahead_and_not(one_model: Path) -> None:
    requests = [
        wild(i, **({"repetition_penalty": 1.2, "logit_bias": {40: 5.0}, "min_tokens": 9} if i % 2 else {}))
        for i in range(8)
    ]
    found = [
        [
            (each.tokens, each.final_state)
            for each in served(
                engine_with(one_model, async_scheduling=ahead, **options), *map(dict, requests)
            )
        ]
        for options in PLATFORMS.values()
        for ahead in (True, False)
    ]
    assert all(each == found[0] for each in found)


def test_two_devices_give_the_text_of_one(one_model: Path) -> None:
    options = {**PLATFORMS["device"], "threads": None}
    found = []
    for size in (1, 2):
        engine = engine_with(one_model, tensor_parallel_size=size, **options)
        found.append([(each.tokens, each.final_state) for each in served(engine, *wilds(6, max_tokens=24))])
        engine.close()
    assert found[0] == found[1]


@pytest.mark.usefixtures("platform")
@pytest.mark.parametrize("limits", [{"kv_memory": 16 * 16384}, {"max_batch_tokens": 16}])
def test_preemption_and_chunks_do_not_change_the_text(one_model: Path, limits: dict[str, Any]) -> None:
    roomy = served(engine_with(one_model), *wilds(8, max_tokens=90, ignore_eos=True, prompt=PROMPT * 8))
    tight = engine_with(one_model, **limits)
    found = served(tight, *wilds(8, max_tokens=90, ignore_eos=True, prompt=PROMPT * 8))
    assert "kv_memory" not in limits or tight.stats()[0].preemptions > 0
    assert [each.tokens for each in found] == [each.tokens for each in roomy]


@pytest.mark.usefixtures("platform")
class TestWithForms:
    def test_both_hold(self, model: Path) -> None:
        form = StructuredOutput.regex(r"[a-z0-9 ]{12}")
        for output in served(engine_with(model), *wilds(20, structured=form)):
            text = shown(model, output)
            assert re.fullmatch(r"[a-z0-9 ]{12}", text)
            assert not MATCHER.search(text)

    def test_a_request_ends_where_they_leave_nothing(self, one_model: Path) -> None:
        engine = engine_with(one_model)
        bound, other = served(
            engine,
            wild(1, structured=StructuredOutput.choice(["123"])),
            wild(1, structured=StructuredOutput.choice(["no", "yes"])),
        )
        assert bound.finish_reason == "content_filter"
        assert bound.error is None
        assert other.finish_reason == "stop"
        assert shown(one_model, other) == "yes"
        assert not engine.has_work()

    def test_min_tokens_yields_to_both(self, one_model: Path) -> None:
        form = StructuredOutput.regex("[a-z]|yes|a[aeiou]*")
        for output in served(engine_with(one_model), *wilds(10, structured=form, min_tokens=30)):
            assert output.finish_reason == "stop"
            assert not MATCHER.search(shown(one_model, output))


@pytest.mark.usefixtures("platform")
class TestEnds:
    def test_an_end_is_always_allowed(self, one_model: Path) -> None:
        everything = forbidden(r"(.|\n)")
        [output] = served(engine_with(one_model, everything), wild(1), of=everything)
        assert shown(one_model, output) == ""
        assert output.finish_reason == "stop"

    def test_without_one_the_policy_ends_the_request(self, one_model: Path) -> None:
        everything = forbidden(r"(.|\n)")
        engine = engine_with(one_model, everything)
        for output in served(engine, wild(1, min_tokens=60), wild(1, ignore_eos=True), of=everything):
            tokens = Tokenizer.load(one_model).decode(output.tokens)
            assert tokens.rstrip("\ufffd") == "", "a character that cannot be completed is not shown"
            assert output.finish_reason in ("content_filter", "length")

    def test_a_stop_id_with_text_may_be_what_would_have_been_forbidden(self, one_model: Path) -> None:
        tokenizer = Tokenizer.load(one_model)
        [letter] = tokenizer.encode("e", add_special_tokens=False)
        word = forbidden("e")
        fields = {"stop_token_ids": (letter,), "logit_bias": {letter: 100.0}, "temperature": 0.0}
        hidden, kept = served(
            engine_with(one_model, word), fields, {**fields, "include_stop_str_in_output": True}, of=word
        )
        assert (hidden.stop_token, shown(one_model, hidden)) == (letter, "")
        assert letter not in kept.tokens

    def test_special_tokens_that_are_shown_are_text(self, one_model: Path) -> None:
        call = forbidden("call")
        options = {"logit_bias": {3: 100.0}, "temperature": 0.0, "max_tokens": 5}
        hidden, all_shown, some = served(
            engine_with(one_model, call),
            options,
            {**options, "skip_special_tokens": False},
            {**options, "shown_tokens": (3,)},
            of=call,
        )
        assert hidden.tokens == [3] * 5
        assert 3 not in all_shown.tokens
        assert 3 not in some.tokens

    def test_a_request_without_a_set_is_told_nothing_of_one(self, one_model: Path) -> None:
        [output] = served(engine_with(one_model), wild(1), of=None)
        assert output.final_state is None


class TestStarts:
    """Texts that begin where a prompt has left off."""

    @pytest.mark.usefixtures("platform")
    def test_a_character_that_a_prompt_begins_is_part_of_the_text(self, one_model: Path) -> None:
        tokenizer = Tokenizer.load(one_model)
        first, second = (_byte(tokenizer, byte) for byte in "é".encode())
        for output in served(
            engine_with(one_model), *wilds(10, prompt=[*PROMPT, first], logit_bias={second: 100.0})
        ):
            text = shown(one_model, output, [*PROMPT, first])
            assert not MATCHER.search(text)
            assert second not in output.tokens[:1]

    @pytest.mark.usefixtures("platform")
    def test_a_leading_space_that_is_not_shown_does_not_count(self, tmp_path: Path) -> None:
        path = make_structured(tmp_path / "m", "sentence_piece")
        anchored = forbidden("^na")
        engine, tokenizer = engine_with(path, anchored), Tokenizer.load(path)
        name, space = (
            next(i for i in range(300) if tokenizer.token_bytes(i) == each) for each in (b"na", b" ")
        )
        ask = {"temperature": 1.0, "logit_bias": {space: 100.0, name: 100.0}, "max_tokens": 4, "prompt": [1]}
        free, bound = (
            [
                shown(path, each, [1])
                for each in served(engine, *({**ask, "seed": i} for i in range(12)), of=of)
            ]
            for of in (None, anchored)
        )
        assert any(each.startswith("na") for each in free)
        assert any("na" in each for each in bound)
        assert not any(each.startswith("na") for each in bound)

    def test_the_prompt_itself_is_nobody_s_text(self, one_model: Path) -> None:
        prompt = Tokenizer.load(one_model).encode("name 12", add_special_tokens=False)
        outputs = served(engine_with(one_model), *wilds(10, prompt=prompt))
        assert all(each.finish_reason in ("stop", "length") for each in outputs)


def _byte(tokenizer: Tokenizer, byte: int) -> int:
    return next(i for i in range(4, 300) if tokenizer.token_bytes(i) == bytes([byte]))


class TestSets:
    def test_an_unknown_set_fails_its_request_alone(self, one_model: Path) -> None:
        engine = engine_with(one_model)
        with pytest.raises(RequestError, match="told of no set"):
            add(engine, 1, PROMPT, forbidden=forbidden("other").digest)
        add(engine, 2, PROMPT, forbidden=SET.digest, max_tokens=3)
        assert run(engine)[2].finish_reason in ("stop", "length")

    def test_owners_replace_their_own_sets(self, one_model: Path) -> None:
        engine = engine_with(one_model)
        names = [engine.models[0].name]
        mine, theirs = forbidden("a"), forbidden("b")
        engine.forbid(1, [(mine, names)]).result()
        engine.forbid(2, [(mine, names), (theirs, names)]).result()
        engine.forbid(2, [])
        add(engine, 1, PROMPT, forbidden=mine.digest, max_tokens=2)
        with pytest.raises(RequestError, match="told of no set"):
            add(engine, 2, PROMPT, forbidden=theirs.digest)
        engine.forbid(1, [])
        assert run(engine)[1].finish_reason is not None, "what was taken keeps its set"
        with pytest.raises(RequestError, match="told of no set"):
            add(engine, 3, PROMPT, forbidden=mine.digest)

    def test_requests_wait_for_a_set_that_is_being_made(self, one_model: Path) -> None:
        engine = make_engine(one_model)
        many = forbidden(*(f"{a}{b}.{{0,9}}{a}" for a in "abcdefgh" for b in "xyz"))
        made = engine.forbid(0, [(many, [engine.models[0].name])])
        add(engine, 1, PROMPT, forbidden=many.digest, max_tokens=3)
        assert run(engine)[1].error is None
        assert made.done()

    def test_what_there_can_be_no_masks_of_is_refused(self, one_model: Path, tiny_llama: Path) -> None:
        engine = make_engine(one_model)
        broken = forbidden("a(b")
        with pytest.raises(ConfigError, match=r"'a\(b'"):
            engine.forbid(0, [(broken, [engine.models[0].name])]).result()
        without = make_engine(tiny_llama)
        with pytest.raises(ConfigError, match="no tokenizer"):
            without.forbid(0, [(SET, [without.models[0].name])]).result()
        add(without, 1, PROMPT, forbidden=SET.digest)
        error = run(without)[1].error
        assert error is not None
        assert "no tokenizer" in error.message
