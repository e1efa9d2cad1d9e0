"""Every family over HTTP, one server for all: text, logprobs, echo, n, batches, streams, seeds, stop strings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airi.text import Tokenizer
from tests.engine.tiny_models import (
    PROMPT_LENGTHS,
    STEPS,
    TINY_MODELS,
    VOCAB_SIZE,
    Reference,
    compute_references,
    make_checkpoint,
)

from .conftest import write_text_side
from .parity import SERVE, Served, check_echo, check_greedy, serving, streamed_texts

pytestmark = [
    pytest.mark.slow,  # 40 s, most of it transformers' greedy decoding
    pytest.mark.timeout(900),
]

# Fits the smallest window among them and the longest prompt with its answer.
WINDOW = max(PROMPT_LENGTHS) + STEPS + 1
MODELS = tuple(TINY_MODELS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`airi serve` of one checkpoint of each family and rope kind."""
    parent = tmp_path_factory.mktemp("families")
    folders = {name: write_text_side(make_checkpoint(name, parent / name), VOCAB_SIZE) for name in MODELS}
    options = (*SERVE, "--max-model-len", str(WINDOW), "--kv-memory", "256MiB")
    with serving(
        *(str(folder) for folder in folders.values()),
        *options,
        references={name: compute_references(folder) for name, folder in folders.items()},
        tokenizer=Tokenizer.load(folders[MODELS[0]]),
    ) as served:
        yield served


@pytest.mark.parametrize("model", MODELS)
def test_greedy_tokens_logprobs_and_echo_are_those_of_transformers(served: Served, model: str) -> None:
    for reference in served.references[model]:
        check_greedy(served, model, reference)
        check_echo(served, model, reference)


@pytest.mark.parametrize("model", MODELS)
def test_batches_choices_and_streams_are_the_same_text(served: Served, model: str) -> None:
    references = served.references[model]
    body = {
        "model": model,
        "prompt": [reference.prompt for reference in references],
        "max_tokens": STEPS,
        "n": 3,
    }
    expected = [served.text(reference) for reference in references for _ in range(3)]
    assert [choice["text"] for choice in served.complete(**body)["choices"]] == expected
    assert streamed_texts(served, **body) == expected


@pytest.mark.parametrize("model", MODELS)
def test_seeded_samples_repeat_and_seeds_differ(served: Served, model: str) -> None:
    # Choice i of seed s is sampled with s + i, so the seeds are far apart.
    body = {"model": model, "prompt": served.references[model][1].prompt, "max_tokens": 24, "temperature": 1}
    texts = [served.complete(**body, seed=seed, n=2)["choices"] for seed in (1, 1, 9)]
    assert texts[0] == texts[1]
    assert len({choice["text"] for sample in (texts[0], texts[2]) for choice in sample}) == 4


@pytest.mark.parametrize("model", MODELS)
def test_stop_strings_never_reach_a_stream(served: Served, model: str) -> None:
    reference: Reference = served.references[model][2]
    text = served.text(reference)
    for at in (0, 9, len(text) // 2):
        stop = text[at : at + 3]
        body = {"model": model, "prompt": reference.prompt, "max_tokens": STEPS, "stop": [stop]}
        choice = served.complete(**body)["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")
        assert streamed_texts(served, **body) == [text[: text.index(stop)]]
