"""`airi.LLM` over the real engine, with a small random model in float32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airi import LLM, AiriError, ConfigError, ContextLengthError, RequestError, SamplingParams, TemplateError
from airi.bench.shapes import Shape, make_checkpoint

SHAPE = Shape(hidden=64, inner=128, layers=2, heads=4, kv_heads=2, head_dim=32, vocab=512, window=256)
PROMPTS = ["the cat sat", "a", "on the mat and in the hat"]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    make_checkpoint(SHAPE, path)
    return path


@pytest.fixture(scope="module")
def real(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float32", threads=1, kv_memory=16 << 20) as made:
        yield made


def test_a_batch_gives_what_each_prompt_gives_alone(real: LLM) -> None:
    together = real.generate(PROMPTS, GREEDY)
    for prompt, output in zip(PROMPTS, together, strict=True):
        (alone,) = real.generate(prompt, GREEDY)
        assert alone.outputs[0].token_ids == output.outputs[0].token_ids
        assert len(output.outputs[0].token_ids) == 12
        assert output.outputs[0].finish_reason == "length"


def test_streams_give_the_same_tokens(real: LLM) -> None:
    whole = real.generate(PROMPTS, GREEDY)
    ids: list[list[int]] = [[] for _ in PROMPTS]
    texts = ["" for _ in PROMPTS]
    for chunk in real.generate_stream(PROMPTS, GREEDY):
        ids[chunk.request] += chunk.token_ids
        texts[chunk.request] += chunk.text
    assert ids == [o.outputs[0].token_ids for o in whole]
    assert texts == [o.outputs[0].text for o in whole]


def test_leaving_a_stream_early_leaves_nothing_in_the_engine(real: LLM) -> None:
    stream = real.generate_stream(PROMPTS, GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not real._engine.has_work()
    assert [(model.running, model.waiting) for model in real._engine.stats()] == [(0, 0)]


def test_a_seed_repeats_and_n_differ(real: LLM) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=16, seed=11, n=3, ignore_eos=True)
    first, again = (real.generate(["the", *PROMPTS][:k], params)[0] for k in (1, 4))
    assert [c.token_ids for c in first.outputs] == [c.token_ids for c in again.outputs]
    assert len({tuple(c.token_ids) for c in first.outputs}) == 3


def test_a_stop_string_of_the_real_text_cuts_it(real: LLM) -> None:
    text = real.generate("the cat", GREEDY)[0].outputs[0].text
    stop = text[4:7]
    (output,) = real.generate(
        "the cat", SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=(stop,))
    )
    assert output.outputs[0].text == text[: text.index(stop)]
    assert output.outputs[0].stop_reason == stop


def test_logprobs_of_greedy_tokens_are_the_best(real: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=3, prompt_logprobs=1)
    (output,) = real.generate("the cat", params)
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    for position in logprobs:
        assert position.rank == 1
        assert position.top[0].token_id == position.token_id
        assert position.top[0].logprob == pytest.approx(position.logprob)
        assert len(position.top) == 3
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_what_does_not_fit_is_refused_and_the_next_call_works(real: LLM) -> None:
    with pytest.raises(ContextLengthError, match="256"):
        real.generate([100] * 300)
    with pytest.raises(RequestError):
        real.generate([], [GREEDY])
    with pytest.raises(RequestError, match="511"):
        real.generate([5000])
    assert real.generate("the", GREEDY)[0].outputs[0].finish_reason == "length"


def test_a_model_without_chat_template_says_so(real: LLM) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        real.chat([{"role": "user", "content": "Hello"}])


def test_more_requests_than_slots_all_end(folder: Path) -> None:
    with LLM(folder, dtype="float32", threads=1, kv_memory=16 << 20, max_num_seqs=2, max_queued=4) as narrow:
        outputs = narrow.generate([f"{i} the" for i in range(12)], GREEDY)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [12] * 12


def test_a_model_that_slept_gives_what_it_gave_before(folder: Path) -> None:
    with LLM(folder, dtype="float32", threads=1, kv_memory=16 << 20, sleepable=True, name="m") as llm:
        before = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)]
        whole = llm._engine._hosting.arena
        arena = whole.part(0, whole.nbytes)
        assert arena.any()
        llm.sleep()
        llm.sleep()
        assert llm.is_sleeping
        assert not arena.any(), "its memory is the system's, which gives zeros"
        with pytest.raises(AiriError, match=r"this LLM sleeps; call wake_up\(\) first"):
            llm.generate(PROMPTS, GREEDY)
        llm.wake_up()
        llm.wake_up()
        assert not llm.is_sleeping
        assert [output.outputs[0].token_ids for output in llm.generate(PROMPTS, GREEDY)] == before
        stream = llm.generate_stream(PROMPTS, GREEDY)
        next(stream)
        with pytest.raises(AiriError, match="3 completions are running; sleep when they have ended"):
            llm.sleep()
        assert len(list(stream)) > 0
    with pytest.raises(AiriError, match="has been closed"):
        llm.sleep()


def test_a_model_that_was_not_made_to_sleep_says_so(real: LLM) -> None:
    with pytest.raises(ConfigError, match="cannot sleep; sleepable is not set for it"):
        real.sleep()
    assert not real.is_sleeping
