"""Over HTTP, real engines compute what transformers computes: tokens, logprobs, echo, stops, seeds, several models."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from airi.cli import main
from airi.text import Tokenizer
from tests.engine.tiny_models import STEPS, VOCAB_SIZE, Reference, compute_references, make_checkpoint

from .conftest import children, events, serve_process, write_text_side
from .parity import SERVE, Served, check_echo, check_greedy, serving, streamed_texts

MODELS = ("qwen3", "gemma3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random checkpoints with a text side."""
    parent = tmp_path_factory.mktemp("checkpoints")
    return {name: write_text_side(make_checkpoint(name, parent / name), VOCAB_SIZE) for name in MODELS}


@pytest.fixture(scope="module")
def served(folders: dict[str, Path]) -> Iterator[Served]:
    """`airi serve` of both models, started as a user starts it."""
    paths = [str(folders[name]) for name in MODELS]
    names = ["--served-model-name", "gemma3=other"]
    with serving(
        *paths,
        *names,
        *SERVE,
        references={name: compute_references(folders[name]) for name in MODELS},
        tokenizer=Tokenizer.load(folders["qwen3"]),
    ) as served:
        yield served


@pytest.mark.parametrize("model", MODELS)
def test_greedy_tokens_and_logprobs_are_those_of_transformers(served: Served, model: str) -> None:
    for reference in served.references[model]:
        check_greedy(served, model, reference)


@pytest.mark.parametrize("model", MODELS)
def test_echoed_prompts_are_scored_as_by_transformers(served: Served, model: str) -> None:
    for reference in served.references[model]:
        check_echo(served, model, reference)


def test_streams_batches_and_choices_are_the_same_text(served: Served) -> None:
    first, second = served.references["qwen3"][1:3]
    body = {"model": "qwen3", "prompt": [first.prompt, second.prompt], "max_tokens": STEPS, "n": 2}
    whole = served.complete(**body)
    expected = [served.text(first)] * 2 + [served.text(second)] * 2
    assert [choice["text"] for choice in whole["choices"]] == expected
    assert streamed_texts(served, **body) == expected


def test_stop_strings_end_the_text_wherever_they_fall(served: Served) -> None:
    reference = served.references["qwen3"][2]
    text = served.text(reference)
    for at in (0, 1, 7, 20, len(text) - 3):
        stop = text[at : at + 3]
        body = {"model": "qwen3", "prompt": reference.prompt, "max_tokens": STEPS, "stop": stop}
        choice = served.complete(**body)["choices"][0]
        assert choice["text"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"


def test_seeded_text_does_not_depend_on_what_else_runs(served: Served) -> None:
    reference = served.references["gemma3"][1]
    body = {"model": "gemma3", "prompt": reference.prompt, "max_tokens": 40, "temperature": 1, "seed": 7}
    alone = served.complete(**body)["choices"][0]["text"]
    other = served.complete(**{**body, "seed": 8})["choices"][0]["text"]
    with ThreadPoolExecutor(6) as pool:
        crowd = [pool.submit(served.complete, **{**body, "seed": seed}) for seed in (7, 8, 9, 10, 11, 7)]
        texts = [done.result()["choices"][0]["text"] for done in crowd]
    assert texts[0] == texts[5] == alone
    assert texts[1] == other != alone


def test_two_models_answer_side_by_side_each_for_itself(served: Served) -> None:
    def ask(model: str, reference: Reference) -> tuple[str, str]:
        done = served.complete(model=model, prompt=reference.prompt, max_tokens=STEPS)
        return done["model"], done["choices"][0]["text"]

    with ThreadPoolExecutor(8) as pool:
        asked = [
            (served.text(reference), name, pool.submit(ask, name, reference))
            for names, known in ((("qwen3",), "qwen3"), (("gemma3", "other"), "gemma3"))
            for name in names
            for reference in served.references[known]
        ]
        for text, name, answer in asked:
            assert answer.result() == (name, text)


def test_a_repeated_prompt_is_taken_from_the_cache(served: Served) -> None:
    body = {"model": "qwen3", "prompt": served.references["qwen3"][3].prompt, "max_tokens": 2}
    served.complete(**body)
    again = served.complete(**body)["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] >= again["prompt_tokens"] // 2


def test_sampling_fields_reach_the_engine(served: Served) -> None:
    reference = served.references["qwen3"][1]
    text = served.text(reference)
    base = {"model": "qwen3", "prompt": reference.prompt, "max_tokens": 12}
    same = (
        {"top_k": 1, "temperature": 1},
        {"top_p": 1e-6, "temperature": 1},
        {"min_p": 1.0, "temperature": 1},
    )
    for fields in same:
        assert served.complete(**base, **fields)["choices"][0]["text"] == served.text(reference, 12), fields
    first = reference.tokens[0]
    banned = served.complete(**base, logit_bias={str(first): -100}, logprobs=0)["choices"][0]
    assert banned["text"] != served.text(reference, 12)
    stopped = served.complete(**base, stop_token_ids=[reference.tokens[3]])
    count = reference.tokens.index(reference.tokens[3])
    assert stopped["choices"][0]["text"] == served.text(reference, count)
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == count + 1
    held = served.complete(**base, stop_token_ids=[first], min_tokens=3)
    assert held["usage"]["completion_tokens"] >= 3
    penalised = served.complete(**{**base, "max_tokens": 60}, repetition_penalty=1.8, presence_penalty=1.0)
    assert penalised["choices"][0]["text"] != text


def test_the_official_client_chats_with_a_real_engine(served: Served) -> None:
    messages = [{"role": "user", "content": "What is it for?"}]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        body: dict[str, Any] = {"model": "qwen3", "messages": messages, "max_tokens": 8, "temperature": 0}
        done = client.chat.completions.create(**body)
        chunks = list(client.chat.completions.create(**body, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == done.choices[0].message.content
        assert done.usage.prompt_tokens == len(served.tokenizer.encode_chat(messages))
        with pytest.raises(openai.BadRequestError, match="maximum context length is"):
            client.completions.create(model="qwen3", prompt="x " * 2000)


def test_an_engine_killed_under_fifty_streams_leaves_a_server_that_works(folders: dict[str, Path]) -> None:
    # Few at a time, and the kill comes with the first piece: some have begun and others wait.
    with serve_process(str(folders["qwen3"]), *SERVE, "--max-num-seqs", "4") as (process, url, _):
        (engine,) = children(process.pid)
        kill_once = [engine]
        body = {"model": "qwen3", "prompt": [5, 6, 7], "max_tokens": 400, "ignore_eos": True, "stream": True}

        def stream(number: int) -> list[dict[str, Any]]:
            with client.stream("POST", f"{url}/v1/completions", json={**body, "seed": number}) as response:
                assert response.status_code == 200
                pieces = response.iter_text()
                text = next(pieces)
                with contextlib.suppress(IndexError):  # the first of the fifty
                    os.kill(kill_once.pop(), signal.SIGKILL)
                return events(text + "".join(pieces))

        # One client: to make fifty takes longer than the engine needs for all of the streams.
        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(50) as pool:
            streams = [pool.submit(stream, number) for number in range(50)]
            ended = [received.result(timeout=60)[-1] for received in streams]
        broken = [last for last in ended if "error" in last]
        assert broken, "the engine died under streams that had begun"
        assert {last["error"]["code"] for last in broken} == {"engine_unavailable"}
        assert all("error" in last or last["choices"][0]["finish_reason"] == "length" for last in ended)
        done = httpx.post(
            f"{url}/v1/completions", json={**body, "stream": False, "max_tokens": 3}, timeout=60
        )
        assert done.json()["usage"]["completion_tokens"] == 3
        (restarted,) = children(process.pid)
        assert restarted != engine
        process.terminate()
        assert process.wait(60) == 0
        assert not Path(f"/proc/{restarted}").exists(), "the engine outlives its server"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("no folder", "nothing-here does not exist"),
        ("a file", "config.json is a file"),
        ("no checkpoint", "config.json is missing"),
        ("no tokenizer", "tokenizer.json"),
        ("no weights", "safetensors"),
        ("cut weights", "safetensors"),
        ("unknown architecture", "UnheardOfForCausalLM"),
        ("field missing", "hidden_size"),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_one_line(
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str, named: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in folders["qwen3"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = folder / "config.json"
    weights = folder / "model.safetensors"
    match damage:
        case "no folder":
            folder = tmp_path / "nothing-here"
        case "a file":
            folder = config
        case "no checkpoint":
            config.unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no weights":
            weights.unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "unknown architecture":
            text = config.read_text().replace("Qwen3ForCausalLM", "UnheardOfForCausalLM")
            config.write_text(text.replace('"model_type": "qwen3"', '"model_type": "unheard"'))
        case "field missing":
            config.write_text(config.read_text().replace('"hidden_size"', '"hidden_sighs"'))
    assert main(["serve", str(folder), "--port", "0", *SERVE]) == 2
    said = capfd.readouterr().err.splitlines()
    (complaint,) = [line for line in said if not re.fullmatch(r"(engine: starting|model: weights)", line)]
    assert complaint.startswith("airi: ")
    assert named in complaint
