"""How much does the gateway add to the time to first token over the bare engine, at concurrency 1?

    python -m benches.bench_added_ttft [--requests 300] [--prompt 500] [--json]

An engine without a model answers at once, so that all there is between a request and its first token is what carries
it. `bare`: this process asks the engine over its socket, tokens in, tokens out. `gateway`: the same prompt over HTTP to
a gateway before that engine, streamed, on a connection of its own: policy, limits, JSON, events. `three replicas`: a
gateway before three such engines, which also hashes the prompt and chooses. Requests take turns; medians are compared.

Does not mean: what a busy gateway adds, or a tokenizer, as prompts are token ids.
"""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from statistics import median
from typing import Any

from airi.bench.rows import percentile
from airi.sampling_params import SamplingParams
from airi.transport import EngineClient, GenerateRequest
from benches.common import plain_parser, print_rows
from benches.engines_behind import MODEL, engines_behind, stream

TARGET_MS = 2.0
_TOKENS = 4

Ask = Callable[[Sequence[int]], Coroutine[Any, Any, float]]


async def ask_engine(client: EngineClient, prompt: Sequence[int]) -> float:
    """Seconds to the first token of the engine."""
    began = time.monotonic()
    request = GenerateRequest(
        model=MODEL,
        tokens=GenerateRequest.pack_tokens(prompt),
        params=SamplingParams(max_tokens=_TOKENS, ignore_eos=True),
    )
    first = None
    async for _ in client.generate(request):
        first = time.monotonic() if first is None else first
    if first is None:
        raise RuntimeError("the engine gave no token")
    return first - began


async def ask_gateway(url: str, prompt: Sequence[int]) -> float:
    """Seconds to the first token of a gateway."""
    ended = await stream(url, prompt, _TOKENS)
    if ended.how != "answered" or ended.first_at is None:
        raise RuntimeError(f"a request was not answered: {ended.how}")
    return ended.first_at - ended.sent_at


async def measure(ways: dict[str, Ask], requests: int, prompt: int) -> dict[str, list[float]]:
    """Seconds to first tokens by way; each prompt is another one."""
    draw = Random(0)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(requests + 20):
        tokens = [draw.randrange(10, 200) for _ in range(prompt)]
        for name, ask in ways.items():
            took = await ask(tokens)
            if turn >= 20:
                found[name].append(took)
    return found


async def run(requests: int, prompt: int) -> list[dict[str, Any]]:
    """One row for each number of engines."""
    with engines_behind(1) as one, engines_behind(3) as three:
        async with await EngineClient.connect(one.endpoints[0], timeout_s=60) as client:
            found = await measure(
                {
                    "bare": lambda tokens: ask_engine(client, tokens),
                    "gateway": lambda tokens: ask_gateway(one.url, tokens),
                    "three replicas": lambda tokens: ask_gateway(three.url, tokens),
                },
                requests,
                prompt,
            )
            decision_us = decision_time(three.url)
    bare = median(found["bare"]) * 1e3
    rows: list[dict[str, Any]] = []
    for name in ("gateway", "three replicas"):
        added = median(found[name]) * 1e3 - bare
        rows.append(
            {
                "question": f"added time to first token, {name}",
                "prompt_tokens": prompt,
                "bare_ms": round(bare, 3),
                "ms": round(bare + added, 3),
                "p99_ms": round(percentile(found[name], 99) * 1e3, 3),
                "added_ms": round(added, 3),
                "target": f"< {TARGET_MS}",
                "reached": added < TARGET_MS,
            }
        )
    rows[1]["decision_us"] = round(decision_us, 1)
    return rows


def decision_time(url: str) -> float:
    """Microseconds that a gateway took in the mean to choose a replica, hashing included."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        page = answer.read().decode()
    name = "airi_routing_decision_seconds"
    took, count = (float(re.findall(rf"^{name}_{what} (\S+)$", page, re.M)[0]) for what in ("sum", "count"))
    return took / count * 1e6


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--prompt", type=int, default=500, help="tokens of a prompt")
    given = parser.parse_args()
    print_rows(asyncio.run(run(given.requests, given.prompt)), as_json=given.json)


if __name__ == "__main__":
    main()
