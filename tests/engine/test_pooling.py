"""Models that read texts whole beside models that generate, in one engine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel

from airi.engine import Engine, ModelOptions
from airi.errors import ConfigError, ContextLengthError, RequestError
from airi.outputs import Output
from airi.transport import EngineSupervisor, GenerateRequest
from tests.transport.calls import collect

from .engine_helpers import GREEDY, MIB, add, gather, make_engine, run
from .process_helpers import options, request
from .test_encoders import SMALL, saved, texts
from .tiny_models import Reference


def numbers(output: Output) -> npt.NDArray[np.float32]:
    assert output.vector is not None
    return np.frombuffer(output.vector, "<f4")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    saved(tmp_path / "bert", BertModel, BertConfig(**SMALL))
    return tmp_path / "bert"


def vectors(folder: Path, batch: list[npt.NDArray[np.int32]]) -> list[torch.Tensor]:
    """What transformers gives."""
    model = BertModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return [model(torch.from_numpy(text).long()[None]).last_hidden_state[0].mean(0) for text in batch]


def test_texts_get_their_vectors_in_batches_that_are_never_padded(bert: Path) -> None:
    engine = make_engine(bert, max_batch_tokens=96)
    batch = texts([5, 1, 17, 64, 40, 3, 78, 2, 9], seed=1)
    for number, text in enumerate(batch):
        engine.add_pooling(number, 0, text)
    outputs = run(engine)
    for number, (text, expected) in enumerate(zip(batch, vectors(bert, batch), strict=True)):
        found = outputs[number]
        np.testing.assert_allclose(numbers(found), expected, atol=2e-6)
        assert (found.finish_reason, found.tokens, found.stop_token) == ("stop", [], None)
        assert (found.num_prompt_tokens, found.num_generated_tokens) == (len(text), 0)
        assert found.device_us > 0
    counters = engine.counters[0]
    assert (counters.prompt_tokens, counters.generated_tokens) == (sum(map(len, batch)), 0)
    assert counters.steps == 3, "87 tokens, 43 as 78 more are too many for 96, then 89"


def test_a_classifier_gives_its_logits(tmp_path: Path) -> None:
    model = saved(tmp_path, BertForSequenceClassification, BertConfig(**SMALL, num_labels=3))
    engine = make_engine(tmp_path)
    assert engine.models[0].runner.model.info.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    (text,) = texts([12])
    engine.add_pooling(7, 0, text)
    with torch.inference_mode():
        expected = model(torch.from_numpy(text).long()[None]).logits[0]
    np.testing.assert_allclose(numbers(run(engine)[7]), expected, atol=2e-6)


def test_texts_and_generated_tokens_share_an_engine_and_change_nothing_of_each_other(
    bert: Path, tiny_llama: Path, llama_references: list[Reference]
) -> None:
    engine = make_engine(tiny_llama, bert, max_batch_tokens=64)
    batch = texts([30] * 12, seed=2)
    for index, reference in enumerate(llama_references):
        add(engine, 100 + index, reference.prompt, max_tokens=64, **GREEDY)
    outputs: dict[int, Output] = {}
    for number, text in enumerate(batch):
        engine.add_pooling(number, "bert", text, tenant=number % 3)
        gather(outputs, engine.step())
    while engine.has_work():
        gather(outputs, engine.step())
    for number, expected in enumerate(vectors(bert, batch)):
        np.testing.assert_allclose(numbers(outputs[number]), expected, atol=2e-6)
    for index, reference in enumerate(llama_references):
        assert outputs[100 + index].tokens == reference.tokens


def test_what_a_model_cannot_give_is_refused(bert: Path, tiny_llama: Path) -> None:
    engine = make_engine(bert, tiny_llama)
    with pytest.raises(RequestError, match="model bert gives numbers, no text"):
        add(engine, 1, [1, 2], model="bert")
    with pytest.raises(RequestError, match="model llama generates text; it gives no vectors"):
        engine.add_pooling(1, "llama", [1, 2])
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.add_pooling(1, "bert", [])
    with pytest.raises(RequestError, match="token id 500 is outside the vocabulary of bert"):
        engine.add_pooling(1, "bert", [500])
    with pytest.raises(ContextLengthError, match="the prompt has 81 tokens; bert takes at most 80"):
        engine.add_pooling(1, "bert", [5] * 81)
    engine.add_pooling(1, "bert", [5] * 80)
    assert run(engine)[1].finish_reason == "stop"


def test_a_cancelled_text_gives_nothing(bert: Path) -> None:
    engine = make_engine(bert)
    engine.add_pooling(1, 0, [5, 6])
    engine.add_pooling(2, 0, [5, 6])
    engine.cancel(1)
    outputs = run(engine)
    assert (outputs[1].finish_reason, outputs[1].vector) == ("cancelled", None)
    assert outputs[2].finish_reason == "stop"


def test_a_text_whose_numbers_are_none_fails_alone(bert: Path) -> None:
    engine = make_engine(bert)
    whole = engine.models[0].runner.model.pool  # type: ignore[attr-defined]

    def broken(tokens: npt.NDArray[np.int32], starts: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = whole(tokens, starts)
        found[1, 3] = np.nan
        return found

    engine.models[0].runner.model.pool = broken  # type: ignore[attr-defined]
    for number in range(3):
        engine.add_pooling(number, 0, [5, 6, 7])
    outputs = run(engine)
    assert [outputs[i].finish_reason for i in range(3)] == ["stop", "error", "stop"]
    assert outputs[1].vector is None
    assert outputs[1].error is not None
    assert "not-a-number" in outputs[1].error.message


def test_an_encoder_computes_in_float32_alone(bert: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is 'bfloat16'; encoders compute in float32 on CPUs"):
        make_engine(bert, dtype="bfloat16")


def test_a_shorter_window_is_kept(bert: Path) -> None:
    engine: Engine = make_engine(models=(ModelOptions(path=str(bert), max_model_len=33),))
    with pytest.raises(ContextLengthError, match="takes at most 32"):
        engine.add_pooling(1, 0, [5] * 33)
    engine.add_pooling(1, 0, [5] * 32)
    assert run(engine)[1].finish_reason == "stop"


def test_prompts_longer_than_a_step_was_to_be_still_fit_one(bert: Path) -> None:
    engine = make_engine(bert, max_batch_tokens=16, max_num_seqs=8)
    engine.add_pooling(1, 0, [5] * 80)
    assert run(engine)[1].finish_reason == "stop"


async def test_texts_travel_to_an_engine_process_and_their_numbers_back(bert: Path, tiny_llama: Path) -> None:
    batch = texts([5, 40, 17], seed=4)
    async with EngineSupervisor(options(bert, tiny_llama, kv_memory=16 * MIB)) as client:
        info = client.find_model("bert")
        assert (info.task, info.vector_size, info.max_model_len) == ("embed", 96, 81)
        assert client.find_model("llama").task == "generate"
        messages = [pooling(text.tolist(), model="bert") for text in batch]
        outputs = await asyncio.gather(*(collect(client, message) for message in messages))
        for output, expected in zip(outputs, vectors(bert, batch), strict=True):
            np.testing.assert_allclose(numbers(output), expected, atol=2e-6)
            assert output.finish_reason == "stop"
        with pytest.raises(RequestError, match="model llama generates text; it gives no vectors"):
            await collect(client, pooling([1, 2], model="llama"))
        with pytest.raises(RequestError, match="model bert gives numbers, no text"):
            await collect(client, request([5, 6], model="bert", max_tokens=4))


def pooling(prompt: list[int], *, model: str) -> GenerateRequest:
    return msgspec.structs.replace(request(prompt, model=model), pools=True)
