"""Candidates with a fault each, on a real engine: what they say of stable's answers gives them away.

The built-in model is stable. All candidates are its files with one change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest

from airi import builtin
from airi.engine.options import EngineOptions, ModelOptions
from airi.gateway.comparing import Score
from airi.gateway.metrics import Metrics
from airi.gateway.models import ServedModel, serve_models
from airi.gateway.openai.schemas_common import TokenizeRequest
from airi.gateway.prompts import render_chat
from airi.gateway.scoring import Answered, Scorer, Unscored, count, score
from airi.lifecycle.gates import Bound, Gate, Metric, Outcome, judge
from airi.lifecycle.observed import Seen
from airi.policy import ANYONE
from airi.sampling_params import MAX_PRIORITY, SamplingParams
from airi.transport import EngineSupervisor, GenerateRequest, ModelInfo
from airi.transport.stream import Sink
from benches.faulty import FAULTS, write_candidate

Models = dict[str, ServedModel]

QUESTIONS = [
    "Classify: I lost my Velmora Card",
    "Hello!",
    "Who are you?",
    "Classify: how do I raise the limit of my card?",
    "Can you write a poem?",
    "My card is gone. What now?",
]
NLL = Gate(metric=Metric.NLL_DELTA, bound=Bound.MAX, value=0.002, min_samples=20)
AGREEMENT = Gate(metric=Metric.AGREEMENT, bound=Bound.MIN, value=0.98, min_samples=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("candidates")


@pytest.fixture
async def models(folder: Path) -> AsyncIterator[Models]:
    """By name: `stable`, `identical`, and one for each fault."""
    paths = {name: write_candidate(name, folder) for name in ("identical", *FAULTS)}
    hosted = [ModelOptions(path=str(path), name=name) for name, path in paths.items()]
    options = EngineOptions(
        models=(ModelOptions(path=str(builtin.path()), name="stable"), *hosted),
        device="cpu",
        threads=1,
        kv_memory=64 << 20,
    )
    supervisor = EngineSupervisor(options, first_delay_s=0.01)
    client = await supervisor.start()
    try:
        yield {model.name: model for model in serve_models(client, Metrics("test"))}
    finally:
        await supervisor.stop()


async def prompt_of(text: str, model: ServedModel) -> list[int]:
    messages = [{"role": "user", "content": text}]
    return await render_chat(model, messages, TokenizeRequest(), field="messages")


async def ask(stable: ServedModel, text: str, seed: int) -> Answered:
    prompt = await prompt_of(text, stable)
    params = SamplingParams(temperature=1.0, max_tokens=48, seed=seed)
    packed = GenerateRequest.pack_tokens(prompt)
    request = GenerateRequest(model=stable.engine_name, tokens=packed, params=params)
    tokens = [token async for output in stable.client.generate(request) for token in output.tokens]
    return Answered(principal=ANYONE, prompt=prompt, prompt_for=partial(prompt_of, text), tokens=tokens)


async def answers(stable: ServedModel, seeds: int = 4) -> list[Answered]:
    asked = (ask(stable, text, seed) for text in QUESTIONS for seed in range(seeds))
    return list(await asyncio.gather(*asked))


async def scored(models: Models, candidate: str, given: list[Answered]) -> Seen:
    seen, scorer = Seen(), Scorer(most=len(given))
    for answered in given:
        scorer.offer(answered, models["stable"], models[candidate], seen)
    while scorer.num_running:
        await asyncio.sleep(0.01)
    return seen


async def test_faults_are_found_and_the_same_weights_are_exactly_the_same(models: Models) -> None:
    given = await answers(models["stable"])
    same = await scored(models, "identical", given)
    assert (same.nll_delta.answers, same.unscored, same.dropped) == (len(given), 0, 0)
    assert (same.nll_delta.total, same.nll_delta.squares, same.agreement.mean) == (0.0, 0.0, 1.0)
    assert judge(NLL, Seen(), same).outcome is judge(AGREEMENT, Seen(), same).outcome is Outcome.PASS
    for fault in ("template", "tokenizer", "rope"):
        seen = await scored(models, fault, given)
        assert (seen.nll_delta.answers, seen.unscored, seen.dropped) == (len(given), 0, 0), fault
        assert judge(NLL, Seen(), seen).outcome is Outcome.FAIL, fault
        assert judge(AGREEMENT, Seen(), seen).outcome is Outcome.FAIL, fault
    # Noise says little in so few answers, yet passes nobody: the bench finds it in more of them.
    noisy = await scored(models, "noise", given)
    assert noisy.nll_delta.squares > 0
    assert judge(NLL, Seen(), noisy).outcome is not Outcome.PASS


async def test_traffic_beside_it_changes_no_score(models: Models) -> None:
    given = await answers(models["stable"], seeds=1)
    traffic = asyncio.gather(*(answers(models["stable"]) for _ in range(2)))
    seen = await scored(models, "identical", given)
    await traffic
    assert (seen.nll_delta.answers, seen.nll_delta.squares) == (len(given), 0.0)


async def test_the_same_text_in_tokens_of_another_file_is_the_same(models: Models) -> None:
    stable, given = models["stable"], await answers(models["stable"], seeds=1)
    other = replace(models["identical"], tokenizer_sha256="another")
    for answered in given:
        found = await score(answered, stable, other)
        if stable.tokenizer.encode(stable.tokenizer.decode(answered.tokens)) == answered.tokens[:-1]:
            assert abs(found.nll_delta) == 0.0
            assert found.agreed == found.compared == found.tokens == len(answered.tokens) - 1


async def test_what_cannot_be_read_as_it_was_served_is_not_scored(models: Models) -> None:
    stable = models["stable"]
    answered = await ask(stable, QUESTIONS[0], 1)
    short = replace(stable, info=replace_window(stable, len(answered.prompt)))
    with pytest.raises(Unscored, match="no room"):
        await score(answered, stable, short)
    other = replace(stable, tokenizer_sha256="another")
    broken = replace(answered, tokens=stable.tokenizer.encode("é")[:1])
    with pytest.raises(Unscored, match="no text"):
        await score(broken, stable, other)
    seen = Seen()
    scorer = Scorer()
    scorer.offer(broken, stable, other, seen)
    while scorer.num_running:
        await asyncio.sleep(0.01)
    assert (seen.unscored, seen.dropped, seen.nll_delta.answers) == (1, 0, 0)
    held = judge(NLL, Seen(), seen)
    assert held.outcome is Outcome.HOLD
    assert "1 answers could not be scored" in held.why


def replace_window(model: ServedModel, window: int) -> ModelInfo:
    return msgspec.structs.replace(model.info, max_model_len=window)


async def test_it_has_the_lowest_priority_and_the_caller_s_name(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    stable = models["stable"]
    answered = replace(await ask(stable, QUESTIONS[0], 1), cache_salt=b"salt")
    sent: list[GenerateRequest] = []
    submit = stable.client.submit

    def note(request: GenerateRequest, sink: Sink) -> None:
        sent.append(request)
        submit(request, sink)

    monkeypatch.setattr(stable.client, "submit", note)
    await score(answered, stable, models["identical"])
    assert {each.model for each in sent} == {"stable", "identical"}
    for each in sent:
        assert (each.priority, each.tenant, each.cache_salt) == (-MAX_PRIORITY, ANYONE.number, b"salt")
        assert (each.params.max_tokens, each.forbidden) == (1, None)


async def test_a_candidate_that_is_let_go_meanwhile_has_no_fault(models: Models) -> None:
    stable, seen, scorer = models["stable"], Seen(), Scorer()
    gone = replace(stable, info=msgspec.structs.replace(stable.info, name="gone"))
    scorer.offer(await ask(stable, QUESTIONS[0], 1), stable, gone, seen)
    while scorer.num_running:
        await asyncio.sleep(0.01)
    assert (seen.dropped, seen.unscored) == (1, 0)


async def test_an_engine_that_does_not_come_to_it_drops_an_answer(models: Models) -> None:
    stable, seen = models["stable"], Seen()
    answered = await ask(stable, QUESTIONS[0], 1)
    scorer = Scorer(timeout_s=0.0)
    scorer.offer(answered, stable, models["identical"], seen)
    while scorer.num_running:
        await asyncio.sleep(0.01)
    assert (seen.dropped, seen.unscored, seen.nll_delta.answers) == (1, 0, 0)
    assert not stable.client.num_running
    scorer.offer(answered, stable, models["identical"], seen)
    await scorer.close()
    assert not scorer.num_running


def test_short_answers_that_agree_throughout_diverge_nowhere() -> None:
    gate = Gate(metric=Metric.DIVERGENCE, bound=Bound.MIN, value=16, quantile=0.05, min_samples=100)
    seen = Seen()
    for _ in range(200):
        count(Score(0.0, 8, 8, 8, 8), seen)
    assert judge(gate, Seen(), seen).outcome is Outcome.PASS
    for _ in range(100):
        count(Score(0.0, 8, 4, 8, 4), seen)
    assert judge(gate, Seen(), seen).outcome is Outcome.FAIL
