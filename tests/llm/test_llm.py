"""`airi.LLM` over an engine whose answers are known."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from airi import LLM, AiriError, ConfigError, ContextLengthError, RequestError, SamplingParams, TemplateError
from airi.outputs import ErrorInfo, Output
from tests.llm.fake_engine import FakeEngine


def test_outputs_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    outputs = llm.generate(["one", "two two two", "x"])
    assert [o.prompt for o in outputs] == ["one", "two two two", "x"]
    assert [o.outputs[0].text for o in outputs] == [" echo one", " echo two two two", " echo x"]
    assert {o.outputs[0].finish_reason for o in outputs} == {"stop"}
    assert outputs[0].outputs[0].token_ids[-1] == llm.tokenizer.eos_id
    assert outputs[0].num_cached_tokens == 1


@pytest.mark.parametrize("as_ids", [False, True])
def test_one_prompt_gives_a_list_of_one(llm: LLM, *, as_ids: bool) -> None:
    prompt: Any = llm.tokenizer.encode("abc") if as_ids else "abc"
    (output,) = llm.generate(prompt)
    assert output.outputs[0].text == " echo abc"
    assert output.prompt == (None if as_ids else "abc")
    assert output.prompt_token_ids == llm.tokenizer.encode("abc")


def test_no_prompt_gives_no_output(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_parameters_may_differ_per_prompt(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)]
    outputs = llm.generate(["aaaa", "aaaa"], params)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [1, 2]
    assert {o.outputs[0].finish_reason for o in outputs} == {"length"}
    with pytest.raises(RequestError, match="params has 2 entries for 1 prompts"):
        llm.generate("a", params)


@pytest.mark.parametrize(
    ("params", "found"),
    [({"max_tokens": 5}, "dict"), (5, "int"), ("greedy", "str"), ([{"n": 2}], "a list of something else")],
)
def test_parameters_of_another_type_are_named(llm: LLM, engine: FakeEngine, params: Any, found: str) -> None:
    for call in (llm.generate, llm.generate_stream):
        with pytest.raises(TypeError, match=f"^params must be SamplingParams, .* got {found}$"):
            call("a", params)
    with pytest.raises(TypeError, match="params must be SamplingParams"):
        llm.chat([{"role": "user", "content": "a"}], params)
    assert not engine.has_work()


def test_without_parameters_the_checkpoints_own_are_used(llm: LLM) -> None:
    assert llm.default_params == SamplingParams(temperature=0.25, top_k=7)


def test_n_completions_have_seeds_of_their_own(llm: LLM, engine: FakeEngine) -> None:
    engine.say = lambda prompt, params: f" {params.seed}"
    (output,) = llm.generate("x", SamplingParams(n=3, seed=5))
    assert [c.index for c in output.outputs] == [0, 1, 2]
    assert [c.text for c in output.outputs] == [" 5", " 6", " 7"]


@pytest.mark.parametrize("stride", [1, 3, 100])
def test_a_stop_string_ends_the_text_and_the_request(llm: LLM, engine: FakeEngine, stride: int) -> None:
    engine.stride = stride
    engine.say = lambda prompt, params: "one two three four"
    (output,) = llm.generate("x", SamplingParams(stop=("o th",), logprobs=1))
    completion = output.outputs[0]
    assert (completion.text, completion.finish_reason, completion.stop_reason) == ("one tw", "stop", "o th")
    assert "o th" in llm.tokenizer.decode(completion.token_ids)
    assert "o th" not in llm.tokenizer.decode(completion.token_ids[:-1])
    assert completion.logprobs is not None
    assert len(completion.logprobs) == len(completion.token_ids)
    assert not engine.has_work()


def test_stop_ids_are_named_and_hidden_from_the_text(llm: LLM, engine: FakeEngine) -> None:
    (output,) = llm.generate("x", SamplingParams(stop_token_ids=(0,)))
    assert output.outputs[0].stop_reason == 0
    shown = SamplingParams(include_stop_str_in_output=True, skip_special_tokens=False)
    assert llm.generate("x", shown)[0].outputs[0].text == " echo x<|endoftext|>"


def test_logprobs_carry_token_texts(llm: LLM) -> None:
    (output,) = llm.generate("ab", SamplingParams(logprobs=2, prompt_logprobs=0, max_tokens=3))
    completion = output.outputs[0]
    assert completion.logprobs is not None
    assert [p.token_id for p in completion.logprobs] == completion.token_ids
    assert "".join(p.token for p in completion.logprobs) == completion.text
    assert completion.logprobs[0].top[1].token_id == 7
    assert completion.cumulative_logprob == pytest.approx(-1.5)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    assert llm.generate("ab")[0].outputs[0].cumulative_logprob is None


def test_chat_renders_the_template_for_one_conversation_or_several(llm: LLM) -> None:
    chat = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(chat)
    assert output.prompt == "user: hi\nassistant:"
    assert output.outputs[0].text == " echo user: hi\nassistant:"
    several = llm.chat(
        [chat, [*chat, {"role": "user", "content": "ho"}]], chat_template_kwargs={"extra": "!"}
    )
    assert [o.prompt for o in several] == ["user: hi\n!assistant:", "user: hi\nuser: ho\n!assistant:"]
    with pytest.raises(TemplateError, match=r"messages\[0\]\.role"):
        llm.chat([{"content": "x"}])


def test_a_stream_adds_up_to_the_same_texts(llm: LLM, engine: FakeEngine) -> None:
    engine.stride = 2
    prompts = ["one", "another one"]
    params = SamplingParams(n=2, logprobs=0)
    whole = llm.generate(prompts, params)
    texts: dict[tuple[int, int], str] = {}
    ends = 0
    for chunk in llm.generate_stream(prompts, params):
        texts[chunk.request, chunk.index] = texts.get((chunk.request, chunk.index), "") + chunk.text
        assert chunk.logprobs is not None
        assert [p.token_id for p in chunk.logprobs] == chunk.token_ids
        ends += chunk.finish_reason is not None
    assert ends == 4
    assert texts == {(r, c.index): c.text for r, o in enumerate(whole) for c in o.outputs}
    assert "".join(c.text for c in llm.chat_stream([{"role": "user", "content": "hi"}])).startswith(
        " echo user"
    )


def test_leaving_a_stream_early_cancels_what_runs(llm: LLM, engine: FakeEngine) -> None:
    stream = llm.generate_stream(["one two three", "four"])
    next(stream)
    assert engine.has_work()
    stream.close()  # type: ignore[attr-defined]
    assert not engine.has_work()


def test_two_streams_may_be_read_in_turn(llm: LLM) -> None:
    a, b = llm.generate_stream("first"), llm.generate_stream("second")
    texts = ["", ""]
    for left, right in zip(a, b, strict=False):
        texts[0] += left.text
        texts[1] += right.text
    texts[0] += "".join(c.text for c in a)
    texts[1] += "".join(c.text for c in b)
    assert texts == [" echo first", " echo second"]


def test_calls_from_several_threads_get_their_own_answers(llm: LLM) -> None:
    answers: dict[int, list[str]] = {}

    def ask(i: int) -> None:
        answers[i] = [o.outputs[0].text for o in llm.generate([f"a{i}", f"b{i}"] * 5)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: [f" echo a{i}", f" echo b{i}"] * 5 for i in range(4)}


def test_more_prompts_than_the_queue_holds_wait_their_turn(llm: LLM, engine: FakeEngine) -> None:
    engine.room = 3
    outputs = llm.generate([f"p{i}" for i in range(20)])
    assert [o.outputs[0].text for o in outputs] == [f" echo p{i}" for i in range(20)]


def test_an_error_of_one_request_leaves_nothing_behind(llm: LLM, engine: FakeEngine) -> None:
    with pytest.raises(RequestError, match="empty"):
        llm.generate([[105, 106], [], [107]])
    assert not engine.has_work()
    engine.fail = ErrorInfo("context_length_exceeded", "too long", "prompt")
    with pytest.raises(ContextLengthError, match="too long"):
        llm.generate(["a", "b"])
    assert not engine.has_work()
    engine.fail = None
    assert llm.generate("a")[0].outputs[0].text == " echo a"


def test_an_interrupt_waits_for_the_end_of_the_step(
    llm: LLM, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, whole_steps = engine.step, []

    def interrupted_step() -> list[Output]:
        os.kill(os.getpid(), signal.SIGINT)
        outputs = step()
        whole_steps.append(len(outputs))
        return outputs

    monkeypatch.setattr(engine, "step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"])
    assert whole_steps == [2]
    assert not engine.has_work()
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("prompts", [5, None, [["a"]], [5.0], ["a", 5], [b"a"]])
def test_prompts_of_a_wrong_type_are_named(llm: LLM, prompts: Any) -> None:
    with pytest.raises(RequestError, match="prompts") as caught:
        llm.generate(prompts)
    assert caught.value.field == "prompts"


def test_a_closed_llm_says_so(llm: LLM) -> None:
    stream = llm.generate_stream("one two")
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(AiriError, match="closed"):
        list(stream)
    with pytest.raises(AiriError, match="closed"):
        llm.generate("x")


def test_unknown_options_are_named_with_what_is_accepted(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'max_seqs'; accepted: .*max_num_seqs"):
        LLM(folder, max_seqs=3)


def test_options_reach_the_engine(folder: Path, llm: LLM, engine: FakeEngine) -> None:
    with LLM(folder, max_num_seqs=3, dtype="float32", chat_template="x{{ messages }}") as other:
        fake: Any = other._engine
        assert (fake.options.max_num_seqs, fake.options.dtype) == (3, "float32")
        assert other.chat([{"role": "user", "content": "x"}])[0].prompt is not None


def test_progress_shows_loading_and_generating(
    folder: Path, llm: LLM, capfd: pytest.CaptureFixture[str]
) -> None:
    with LLM(folder, progress=True) as shown:
        shown.generate(["a", "b"])
    assert "2/2" in capfd.readouterr().err
    llm.generate("a")
    assert capfd.readouterr().err == ""
