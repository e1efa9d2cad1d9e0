"""What every real model behind a server must give: the tokens and probabilities of transformers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from airi.text import Tokenizer
from tests.engine.tiny_models import STEPS, Reference

from .conftest import events, serve_process

SERVE = ("--threads", "1", "--kv-memory", "32MiB", "--log-level", "warning")
LOGPROB_TOLERANCE = 1e-3  # float32 sums in another order over 96 positions; observed below 1e-4


@dataclass(kw_only=True)
class Served:
    """A running server with several models, and what transformers says of them."""

    url: str
    process: subprocess.Popen[str]
    http: httpx.Client
    references: dict[str, list[Reference]]
    tokenizer: Tokenizer

    def complete(self, **body: Any) -> dict[str, Any]:
        response = self.http.post("/v1/completions", json={"ignore_eos": True, "temperature": 0, **body})
        assert response.status_code == 200, response.text
        done: dict[str, Any] = response.json()
        return done

    def text(self, reference: Reference, count: int = STEPS) -> str:
        """What the reference's first tokens read like after its prompt."""
        stream = self.tokenizer.stream(reference.prompt)
        return stream.push(reference.tokens[:count]) + stream.finish()


@contextmanager
def serving(
    *arguments: str, references: dict[str, list[Reference]], tokenizer: Tokenizer
) -> Iterator[Served]:
    """`airi serve` with these arguments, as a user starts it; it must end well, too."""
    with (
        serve_process(*arguments) as (process, url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield Served(url=url, process=process, http=http, references=references, tokenizer=tokenizer)
        process.terminate()
        assert process.wait(30) == 0


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    normalised: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def check_greedy(served: Served, model: str, reference: Reference) -> None:
    """Text, usage and logprobs of greedy decoding."""
    done = served.complete(model=model, prompt=reference.prompt, max_tokens=STEPS, logprobs=3)
    choice = done["choices"][0]
    assert choice["text"] == served.text(reference)
    assert choice["finish_reason"] == "length"
    assert done["usage"]["prompt_tokens"] == len(reference.prompt)
    assert done["usage"]["completion_tokens"] == STEPS
    expected = log_softmax(reference.step_logits)[np.arange(STEPS), reference.tokens]
    got = choice["logprobs"]["token_logprobs"]
    assert np.abs(np.array(got) - expected).max() < LOGPROB_TOLERANCE
    best = [max(top.values()) for top in choice["logprobs"]["top_logprobs"]]
    assert best == got, "greedy takes the likeliest"


def check_echo(served: Served, model: str, reference: Reference) -> None:
    """Logprobs of the prompt's own tokens."""
    done = served.complete(model=model, prompt=reference.prompt, max_tokens=1, logprobs=1, echo=True)
    got = done["choices"][0]["logprobs"]["token_logprobs"]
    rows = log_softmax(reference.prompt_logits)[np.arange(len(reference.prompt) - 1), reference.prompt[1:]]
    assert got[0] is None
    assert len(got) == len(reference.prompt) + 1
    assert np.abs(np.array(got[1:-1]) - rows).max(initial=0) < LOGPROB_TOLERANCE


def streamed_texts(served: Served, **body: Any) -> list[str]:
    """The texts of a stream's choices, put together by index."""
    fields = {"ignore_eos": True, "temperature": 0, **body, "stream": True}
    texts: dict[int, str] = {}
    for event in events(served.http.post("/v1/completions", json=fields).text):
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return [texts[index] for index in sorted(texts)]
