"""What a request asks for is what the engine gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airi.engine import Engine
from airi.engine.engine import now_us
from airi.errors import ContextLengthError, ModelNotFoundError, QueueFullError, RequestError
from airi.sampling_params import SamplingParams
from tests.engine.engine_helpers import GREEDY, add, gather, generate, make_engine, run
from tests.engine.tiny_models import VOCAB_SIZE, Reference

PROMPT = list(range(40, 80))


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))  # type: ignore[no-any-return]


@pytest.fixture
def engine(tiny_llama: Path) -> Engine:
    return make_engine(tiny_llama)


@pytest.mark.parametrize("admission", ["max_util", "no_evict"])
@pytest.mark.parametrize("max_batch_tokens", [16, 256])
def test_greedy_tokens_are_those_of_transformers(
    tiny_llama: Path, llama_references: list[Reference], admission: str, max_batch_tokens: int
) -> None:
    engine = make_engine(tiny_llama, admission=admission, max_batch_tokens=max_batch_tokens)
    for index, reference in enumerate(llama_references):
        add(engine, index, reference.prompt, max_tokens=len(reference.tokens), **GREEDY)
    outputs = run(engine)
    for index, reference in enumerate(llama_references):
        assert outputs[index].tokens == reference.tokens
        assert outputs[index].finish_reason == "length"
        assert outputs[index].num_prompt_tokens == len(reference.prompt)
        assert outputs[index].num_generated_tokens == len(reference.tokens)


def test_every_step_gives_a_running_request_one_token(engine: Engine) -> None:
    add(engine, 1, PROMPT, max_tokens=5, **GREEDY)
    assert [len(output.tokens) for _ in range(5) for output in engine.step()] == [1] * 5
    assert not engine.has_work()


def test_a_stop_id_ends_the_request_and_is_the_last_token(
    engine: Engine, llama_references: list[Reference]
) -> None:
    reference = llama_references[2]
    stop = reference.tokens[5]
    output = generate(engine, reference.prompt, max_tokens=64, stop_token_ids=(stop,), **GREEDY)
    assert output.tokens == reference.tokens[: reference.tokens.index(stop) + 1]
    assert (output.finish_reason, output.stop_token) == ("stop", stop)


def test_the_models_end_of_sequence_ends_a_request_unless_ignored(
    tiny_llama: Path, llama_references: list[Reference], tmp_path: Path
) -> None:
    reference = llama_references[2]
    eos = reference.tokens[5]
    copy = tmp_path / "with-eos"
    copy.mkdir()
    for file in tiny_llama.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "generation_config.json").unlink(missing_ok=True)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos]}))
    engine = make_engine(copy)
    ended = generate(engine, reference.prompt, max_tokens=64, temperature=0.0)
    assert (ended.finish_reason, ended.stop_token, ended.tokens[-1]) == ("stop", eos, eos)
    ignored = generate(engine, reference.prompt, max_tokens=64, temperature=0.0, ignore_eos=True)
    assert ignored.tokens == reference.tokens


def test_min_tokens_keeps_stop_ids_from_being_chosen(
    engine: Engine, llama_references: list[Reference]
) -> None:
    reference = llama_references[2]
    stops = tuple(set(reference.tokens[:4]))
    fields: dict[str, Any] = {"max_tokens": 40, "stop_token_ids": stops, **GREEDY}
    assert len(generate(engine, reference.prompt, **fields).tokens) == 1
    output = generate(engine, reference.prompt, min_tokens=10, **fields)
    assert len(output.tokens) >= 10
    assert not set(output.tokens[:10]) & set(stops)


def test_logprobs_are_those_of_the_models_logits(engine: Engine, llama_references: list[Reference]) -> None:
    reference = llama_references[1]
    output = generate(engine, reference.prompt, max_tokens=8, logprobs=5, **GREEDY)
    assert output.logprobs is not None
    expected = log_softmax(reference.step_logits)
    for step, entry in enumerate(output.logprobs):
        assert entry.token == reference.tokens[step]
        assert entry.rank == 1
        assert entry.logprob == pytest.approx(expected[step, entry.token], abs=1e-4)
        best = np.argsort(-expected[step])[:5]
        assert entry.top_tokens == best.tolist()
        assert entry.top_logprobs == pytest.approx(expected[step, best].tolist(), abs=1e-4)


def test_logprobs_show_the_model_before_bias_and_temperature(
    engine: Engine, llama_references: list[Reference]
) -> None:
    reference = llama_references[1]
    expected = log_softmax(reference.step_logits[0])
    unlikely = int(expected.argmin())
    output = generate(
        engine,
        reference.prompt,
        max_tokens=1,
        logprobs=0,
        logit_bias={unlikely: 100.0},
        temperature=0.1,
        seed=1,
    )
    assert output.tokens == [unlikely]
    assert output.logprobs is not None
    assert output.logprobs[0].rank == VOCAB_SIZE
    assert output.logprobs[0].logprob == pytest.approx(expected[unlikely], abs=1e-4)


@pytest.mark.parametrize("max_batch_tokens", [16, 256])
def test_prompt_logprobs_cover_every_position_and_take_no_prefix_hits(
    tiny_llama: Path, llama_references: list[Reference], max_batch_tokens: int
) -> None:
    engine = make_engine(tiny_llama, max_batch_tokens=max_batch_tokens)
    reference = llama_references[3]
    generate(engine, reference.prompt, max_tokens=1, **GREEDY)  # leaves the prompt in the cache
    output = generate(engine, reference.prompt, max_tokens=2, prompt_logprobs=2, **GREEDY)
    assert output.num_cached_tokens == 0
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(reference.prompt)
    expected = log_softmax(reference.prompt_logits)
    for position in range(1, len(reference.prompt)):
        entry = output.prompt_logprobs[position]
        assert entry is not None
        token = reference.prompt[position]
        assert entry.token == token
        assert entry.logprob == pytest.approx(expected[position - 1, token], abs=1e-4)
        assert entry.top_tokens == np.argsort(-expected[position - 1])[:2].tolist()


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
@pytest.mark.parametrize("max_batch_tokens", [16, 256])
def test_prompt_logprobs_may_begin_where_somebody_looks(
    tiny_llama: Path, llama_references: list[Reference], max_batch_tokens: int, backend: str
) -> None:
    engine = make_engine(tiny_llama, max_batch_tokens=max_batch_tokens, backend=backend, device="cpu")
    prompt = llama_references[3].prompt
    whole = generate(engine, prompt, max_tokens=1, prompt_logprobs=1, **GREEDY).prompt_logprobs
    assert whole is not None
    for begins in (0, 1, len(prompt) // 2, len(prompt) - 1, len(prompt)):
        params = SamplingParams(max_tokens=1, prompt_logprobs=1, **GREEDY)
        engine.add_request(1, 0, prompt, params, prompt_logprobs_from=begins)
        found = run(engine)[1].prompt_logprobs
        assert found is not None
        assert [entry is None for entry in found] == [at < max(1, begins) for at in range(len(prompt))]
        for entry, known in zip(found, whole, strict=True):
            if entry is not None and known is not None:
                assert (entry.token, entry.rank, entry.top_tokens) == (
                    known.token,
                    known.rank,
                    known.top_tokens,
                )
                assert entry.logprob == pytest.approx(known.logprob, abs=1e-5)
    with pytest.raises(RequestError, match="prompt_logprobs_from is 999; it must be a place in the prompt"):
        engine.add_request(1, 0, prompt, params, prompt_logprobs_from=999)


def test_logit_bias_can_force_and_forbid(engine: Engine, llama_references: list[Reference]) -> None:
    reference = llama_references[1]
    forced = generate(engine, reference.prompt, max_tokens=4, logit_bias={17: 100.0}, **GREEDY)
    assert forced.tokens == [17] * 4
    banned = dict.fromkeys(set(reference.tokens), -100.0)
    free = generate(engine, reference.prompt, max_tokens=8, logit_bias=banned, **GREEDY)
    assert not set(free.tokens) & set(reference.tokens)


def test_penalties_are_those_of_their_definition(engine: Engine) -> None:
    """The reference takes the model's log-probabilities, which equal its logits up to a constant a row."""
    fields = {"repetition_penalty": 1.0, "presence_penalty": 0.7, "frequency_penalty": 0.4}
    output = generate(engine, PROMPT, max_tokens=48, logprobs=100, **fields, **GREEDY)
    assert output.logprobs is not None
    counts: dict[int, int] = {}
    for entry in output.logprobs:
        scores = {
            token: value - 0.7 * (token in counts) - 0.4 * counts.get(token, 0)
            for token, value in zip(entry.top_tokens, entry.top_logprobs, strict=True)
        }
        assert scores[entry.token] == pytest.approx(max(scores.values()), abs=1e-5)
        counts[entry.token] = counts.get(entry.token, 0) + 1
    assert output.tokens != generate(engine, PROMPT, max_tokens=48, **GREEDY).tokens


def test_repetition_penalty_lowers_what_prompt_and_output_hold(engine: Engine) -> None:
    free = generate(engine, PROMPT, max_tokens=32, **GREEDY)
    held = generate(engine, PROMPT, max_tokens=32, repetition_penalty=50.0, **GREEDY)
    assert len(set(held.tokens)) == 32
    assert not set(held.tokens) & set(PROMPT)
    assert len(set(free.tokens) - set(PROMPT)) < 32


def test_a_seed_fixes_the_text_and_without_one_it_varies(engine: Engine) -> None:
    outputs = [generate(engine, PROMPT, max_tokens=24, seed=seed) for seed in (5, 5, 6, None, None)]
    assert outputs[0].tokens == outputs[1].tokens
    assert len({tuple(output.tokens) for output in outputs[1:]}) == 4


def test_an_engine_seed_fixes_the_seeds_it_draws(tiny_llama: Path) -> None:
    texts = [generate(make_engine(tiny_llama, seed=3), PROMPT, max_tokens=24).tokens for _ in range(2)]
    assert texts[0] == texts[1]


def test_choices_share_the_blocks_of_their_prompt(engine: Engine) -> None:
    params = SamplingParams(n=4, max_tokens=8, seed=9)
    generate(engine, PROMPT, max_tokens=1)
    for index in range(params.n):
        engine.add_request(index, 0, PROMPT, params.for_choice(index))
    outputs = run(engine)
    assert [outputs[i].num_cached_tokens for i in range(4)] == [32] * 4
    assert len({tuple(output.tokens) for output in outputs.values()}) == 4


def test_newcomers_that_share_a_long_prefix_start_together(engine: Engine) -> None:
    prompt = PROMPT * 10
    generate(engine, prompt, max_tokens=1)
    for index in range(8):
        add(engine, index, [*prompt, index], max_tokens=4, **GREEDY)
    assert len(engine.step()) == 8


def test_salts_keep_prefixes_apart(engine: Engine) -> None:
    cached = [
        generate(engine, PROMPT, max_tokens=1, cache_salt=salt).num_cached_tokens
        for salt in (b"a", b"a", b"b", None, None)
    ]
    assert cached == [0, 32, 0, 0, 32]


def test_cancelling_mid_stream_frees_the_blocks_and_spares_the_others(
    engine: Engine, llama_references: list[Reference]
) -> None:
    reference = llama_references[3]
    add(engine, 1, reference.prompt, max_tokens=64, **GREEDY)
    add(engine, 2, PROMPT, max_tokens=64, **GREEDY)
    outputs: dict[int, Any] = {}
    for _ in range(6):
        gather(outputs, engine.step())
    held = engine.stats()[0].active_blocks
    engine.cancel(2)
    gather(outputs, engine.step())
    assert outputs[2].finish_reason == "cancelled"
    assert engine.stats()[0].active_blocks <= held - len(PROMPT) // 16
    gather(outputs, run(engine).values())  # type: ignore[arg-type]
    assert outputs[1].tokens == reference.tokens
    assert engine.stats()[0].active_blocks == 0


def test_a_deadline_ends_a_request_with_its_reason(engine: Engine) -> None:
    add(engine, 1, PROMPT, max_tokens=400, deadline_us=now_us() - 1, **GREEDY)
    add(engine, 2, PROMPT, max_tokens=3, deadline_us=now_us() + 3600 * 10**6, **GREEDY)
    outputs = run(engine)
    assert outputs[1].finish_reason == "deadline"
    assert outputs[2].finish_reason == "length"


def test_higher_priority_is_served_first(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, max_num_seqs=1)
    for request_id, priority in ((1, 0), (2, -1), (3, 5)):
        add(engine, request_id, PROMPT, max_tokens=2, priority=priority, **GREEDY)
    assert list(run(engine)) == [3, 1, 2]


def test_tenants_are_served_by_weight(tiny_llama: Path) -> None:
    """Within the ledger's bound: two requests' full charge, weighed, either way."""
    engine = make_engine(tiny_llama, max_num_seqs=1, prefix_caching=False)
    engine.set_tenant(2, 3.0)
    for request_id in range(40):
        add(engine, request_id, PROMPT, max_tokens=20, tenant=1 + request_id % 2, **GREEDY)
    done = {1: 0, 2: 0}
    while done[1] + done[2] < 20:
        for output in engine.step():
            if output.finish_reason is not None:
                done[1 + output.request_id % 2] += 1
    assert done[1] == pytest.approx(5, abs=2)
    run(engine)


def test_prompt_logprobs_survive_preemption(tiny_llama: Path) -> None:
    fields: dict[str, Any] = {"max_tokens": 60, "prompt_logprobs": 1, **GREEDY}
    alone = generate(make_engine(tiny_llama), PROMPT, **fields)
    engine = make_engine(tiny_llama, kv_memory=16 * 16384, max_batch_tokens=24, max_num_seqs=4)
    for request_id in range(4):
        add(engine, request_id, PROMPT, **fields)
    outputs = run(engine)
    assert engine.stats()[0].preemptions > 0
    for output in outputs.values():
        assert output.prompt_logprobs == alone.prompt_logprobs
        assert output.tokens == alone.tokens


def test_without_max_tokens_a_request_fills_the_window(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, max_model_len=64)
    output = generate(engine, PROMPT, **GREEDY)
    assert (len(output.tokens), output.finish_reason) == (64 - len(PROMPT), "length")


@pytest.mark.parametrize(
    ("prompt", "fields", "error", "text"),
    [
        ([], {}, RequestError, "empty"),
        ([VOCAB_SIZE], {}, RequestError, "outside the vocabulary"),
        ([-1], {}, RequestError, "outside the vocabulary"),
        (["a"], {}, RequestError, "token ids"),
        ([2**40], {}, RequestError, "token ids"),
        ([5] * 512, {}, ContextLengthError, "512 tokens; llama takes at most 511"),
        ([5] * 10, {"max_tokens": 503}, ContextLengthError, "together at most 512"),
        ([5], {"model": "other"}, ModelNotFoundError, "'other' is not loaded; loaded: llama"),
        ([5], {"model": 1}, ModelNotFoundError, "not loaded"),
        ([5], {"priority": 9}, RequestError, "priority"),
        ([5], {"logit_bias": {VOCAB_SIZE: 1.0}}, RequestError, "logit_bias"),
        ([5], {"stop_token_ids": (VOCAB_SIZE,)}, RequestError, "stop_token_ids"),
    ],
)
def test_a_request_that_cannot_run_is_refused_at_once(
    engine: Engine, prompt: list[Any], fields: dict[str, Any], error: type[RequestError], text: str
) -> None:
    with pytest.raises(error, match=text):
        add(engine, 1, prompt, **fields)
    assert not engine.has_work()


def test_what_the_arena_can_never_hold_is_refused_with_the_numbers(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, kv_memory=16 * 16384)  # 16 blocks of 16 tokens
    assert engine.models[0].max_model_len == 256
    with pytest.raises(ContextLengthError, match="256"):
        add(engine, 1, [5] * 200, max_tokens=100)
    assert len(generate(engine, [5] * 200, **GREEDY).tokens) == 56


def test_a_full_queue_refuses_and_recovers(tiny_llama: Path) -> None:
    engine = make_engine(tiny_llama, max_queued=2)
    add(engine, 1, PROMPT, max_tokens=1)
    add(engine, 2, PROMPT, max_tokens=1)
    with pytest.raises(QueueFullError, match="2 requests"):
        add(engine, 3, PROMPT, max_tokens=1)
    assert set(run(engine)) == {1, 2}
    assert len(generate(engine, PROMPT, max_tokens=1).tokens) == 1
