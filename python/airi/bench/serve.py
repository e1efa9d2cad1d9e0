"""How does a server answer under load? Latencies as a client sees them; works with any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airi._remote import OpenAIServer, split_url
from airi.bench._http import Endpoint
from airi.bench.rows import Row, Timings, summary
from airi.bench.workload import Job, Workload
from airi.errors import AiriError, ConfigError

__all__ = ["ENDPOINTS", "Load", "measure_serve"]

ENDPOINTS = ("completions", "chat")
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are sent."""

    endpoint: str = "completions"
    """"completions" sends exact token ids, "chat" about as many words."""
    concurrency: int | None = None
    """Requests in flight at most; None is no limit."""
    rate: float = math.inf
    """Requests per second, arriving at random (Poisson); infinite sends all at once."""
    ignore_eos: bool = True
    """Ask for every output token; servers without this option refuse the field."""
    api_key: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise ConfigError(
                f"endpoint is {self.endpoint!r}; accepted: {', '.join(ENDPOINTS)}", field="endpoint"
            )
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(
                f"concurrency is {self.concurrency}; it must be at least 1", field="concurrency"
            )
        if not self.rate > 0:
            raise ConfigError(f"rate is {self.rate:g}; it must be above 0", field="rate")


@dataclass(slots=True)
class _Run:
    timings: list[Timings] = field(default_factory=list)
    prompt_tokens: int = 0
    failures: list[str] = field(default_factory=list)


def measure_serve(
    url: str,
    workload: Workload,
    load: Load,
    *,
    model: str | None = None,
    on_done: Callable[[int], None] = lambda count: None,
) -> Row:
    """Sends the workload to a server and waits for every answer. Raises AiriError where all requests fail."""
    server = OpenAIServer(url, load.api_key)
    name = model or server.first_model()
    server.close()
    run = _Run()
    began = time.perf_counter()
    asyncio.run(_send_all(url, name, workload, load, run, on_done))
    duration = time.perf_counter() - began
    if not run.timings:
        raise AiriError(f"every request failed; the first: {run.failures[0]}")
    row: Row = {"bench": "serve", "model": name, "endpoint": load.endpoint, "mix": workload.mix}
    row |= {"requests": workload.requests, "failed": len(run.failures)}
    row |= {"concurrency": load.concurrency, "rate": None if math.isinf(load.rate) else load.rate}
    row |= {"input_len": workload.input_len, "output_len": workload.output_len}
    return row | summary(run.timings, prompt_tokens=run.prompt_tokens, duration=duration)


async def _send_all(
    url: str, model: str, workload: Workload, load: Load, run: _Run, on_done: Callable[[int], None]
) -> None:
    secure, host, port, base = split_url(url)
    endpoint = Endpoint(host, port, secure=secure, api_key=load.api_key)
    room = asyncio.Semaphore(load.concurrency or workload.requests)
    arrivals = random.Random(workload.seed)
    due = time.perf_counter()

    async def send(job: Job) -> None:
        async with room:
            try:
                await _send(endpoint, base, _body(model, job, load), load, run)
            except (AiriError, OSError, asyncio.IncompleteReadError, ValueError) as error:
                run.failures.append(f"{type(error).__name__}: {error}")
            on_done(1)

    async with asyncio.TaskGroup() as tasks:
        for job in workload.jobs():
            tasks.create_task(send(job))
            if not math.isinf(load.rate):
                due += arrivals.expovariate(load.rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))


async def _send(endpoint: Endpoint, base: str, body: dict[str, Any], load: Load, run: _Run) -> None:
    path = f"{base}/chat/completions" if load.endpoint == "chat" else f"{base}/completions"
    timings = Timings(time.perf_counter())
    prompt_tokens, last = 0, timings.sent
    async for event in endpoint.events(path, body):
        last = time.perf_counter()
        if "error" in event:
            raise AiriError(str(event["error"]))
        if any(_text(choice) for choice in event.get("choices", ())):
            timings.arrived(last, 1)
        if usage := event.get("usage"):
            prompt_tokens, timings.num_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    if not timings.times:
        timings.arrived(last, 0)  # tokens that make no text, such as an end at once
    run.timings.append(timings)
    run.prompt_tokens += prompt_tokens


def _text(choice: dict[str, Any]) -> str | None:
    delta = choice.get("delta")
    text: str | None = choice.get("text") if delta is None else delta.get("content")
    return text


def _body(model: str, job: Job, load: Load) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "max_tokens": job.output_len,
    }
    if load.ignore_eos:
        body["ignore_eos"] = True
    if load.endpoint == "chat":
        words = [_WORDS[token % len(_WORDS)] for token in job.prompt]
        return body | {"messages": [{"role": "user", "content": " ".join(words)}]}
    return body | {"prompt": job.prompt}
