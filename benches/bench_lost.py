"""Which requests in flight are lost when engines, models, configs and gateways go?

    python -m benches.bench_lost [--clients 24] [--json]

Streams over HTTP to a gateway before three engines without a model, each client one after the other, while something
goes: `scale-down`: SIGTERM to one engine; `SIGKILL`: of one engine; `reload`: SIGHUP to the gateway, whose config has
changed; `SIGTERM`: of the gateway, after which nothing new is sent. `unload`: two real engines unload one of their two
models under its requests, which come from this process. A request is `answered` with all its tokens, or ends with an
`error` that says what happened, or it is lost without a word: that is what must be 0. Of SIGKILL, errors are only for
streams that had begun; `errors_unbegun` counts the others.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from airi import builtin
from airi.engine import EngineOptions, ModelOptions
from airi.engine.replicas import replica_options
from airi.errors import AiriError
from airi.routing import ReplicaSet
from airi.routing.starting import started
from airi.sampling_params import SamplingParams
from airi.transport import GenerateRequest
from benches.common import plain_parser, print_rows
from benches.engines_behind import MODEL, Behind, Ended, engines_behind, stream

TOKENS = 150
_CONFIG = f"""version: 1
server: {{port: PORT, state: "sqlite:///FOLDER/airi.db"}}
models: [{{name: {MODEL}, source: airi-demo, price: {{input_per_1m: 1}}}}]
"""


@dataclass(frozen=True)
class Scenario:
    """Something that goes while requests run."""

    name: str
    happen: Callable[[Behind], None]
    ends_server: bool = False


def _reload(behind: Behind) -> None:
    folder = behind.endpoints[0].removeprefix("ipc://").rsplit("/", 1)[0]
    with open(f"{folder}/airi.yaml", "r+") as file:
        text = file.read().replace("input_per_1m: 1", "input_per_1m: 2")
        file.seek(0)
        file.write(text)
    behind.gateway.send_signal(signal.SIGHUP)


SCENARIOS = (
    Scenario("scale-down", lambda behind: behind.engines[1].terminate()),
    Scenario("reload", _reload),
    Scenario("SIGTERM", lambda behind: behind.gateway.terminate(), ends_server=True),
    Scenario("SIGKILL of one of three", lambda behind: behind.engines[1].kill()),
)


async def run_scenario(
    scenario: Scenario, clients: int, *, before_s: float = 1.0, after_s: float = 1.5
) -> list[Ended]:
    """How all requests ended that were sent from before what happens until after it."""
    draw = Random(0)
    with engines_behind(3, "--step-us", "2000", config=_CONFIG) as behind:
        ends: list[Ended] = []
        stopping = False

        async def client() -> None:
            while not stopping:
                prompt = [draw.randrange(10, 200)] * draw.randrange(20, 120)
                ends.append(await stream(behind.url, prompt, TOKENS))

        running = [asyncio.ensure_future(client()) for _ in range(clients)]
        await asyncio.sleep(before_s)
        stopping = scenario.ends_server
        scenario.happen(behind)
        await asyncio.sleep(0 if stopping else after_s)
        stopping = True
        await asyncio.gather(*running)
        if scenario.ends_server:
            code = await asyncio.to_thread(behind.gateway.wait, 60)
            if code != 0:
                raise subprocess.CalledProcessError(code, "airi serve")
        return ends


async def run_unload(clients: int) -> list[Ended]:
    """How requests to a model end that is unloaded under them."""
    path = str(builtin.path())
    models = [ModelOptions(path=path, name=name, kv_min=1 << 20) for name in ("stays", "goes")]
    options = EngineOptions(models=tuple(models), device="cpu", kv_memory=64 << 20)
    async with started(replica_options(options, 2)) as starting:
        replicas = await starting
        waiting = [asyncio.ensure_future(ask(replicas, "goes", i)) for i in range(clients)]
        waiting += [asyncio.ensure_future(ask(replicas, "stays", i)) for i in range(clients)]
        await asyncio.sleep(0.1)
        await replicas.unload("goes")
        waiting += [asyncio.ensure_future(ask(replicas, "stays", i)) for i in range(clients)]
        ends = await asyncio.gather(*waiting)
        if any(replica.lives != 1 for replica in replicas.replicas):
            raise RuntimeError("an engine died of an unload")
        return list(ends)


async def ask(replicas: ReplicaSet, model: str, first: int) -> Ended:
    """One request to engines of this process's own."""
    request = GenerateRequest(
        model=model,
        tokens=GenerateRequest.pack_tokens([10 + first] * 40),
        params=SamplingParams(max_tokens=60, ignore_eos=True),
    )
    sent_at, first_at, count, reason = time.monotonic(), None, 0, None
    try:
        async for output in replicas.generate(request):
            first_at = time.monotonic() if first_at is None else first_at
            count += len(output.tokens)
            reason = output.finish_reason
    except AiriError:
        return Ended("error", sent_at, first_at)
    return Ended("answered" if count == 60 and reason == "length" else "cut", sent_at, first_at)


def row_of(name: str, ends: list[Ended]) -> dict[str, Any]:
    """The counts of one scenario."""

    def count(how: str) -> int:
        return sum(end.how == how for end in ends)

    lost = count("cut") + count("refused")
    errors_unbegun = sum(end.how == "error" and end.first_at is None for end in ends)
    may_fail = name.startswith("SIGKILL")
    reached = lost == 0 and errors_unbegun == 0 and (may_fail or count("error") == 0)
    return {
        "question": f"requests lost at {name}",
        "requests": len(ends),
        "answered": count("answered"),
        "errors": count("error"),
        "errors_unbegun": errors_unbegun,
        "lost": lost,
        "target": "0 lost; errors of SIGKILL only of streams that had begun",
        "reached": reached,
    }


async def run(clients: int) -> list[dict[str, Any]]:
    """One row per scenario."""
    runs: list[tuple[str, Awaitable[list[Ended]]]] = [
        (scenario.name, run_scenario(scenario, clients)) for scenario in SCENARIOS
    ]
    runs.append(("unload", run_unload(clients)))
    return [row_of(name, await ends) for name, ends in runs]


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--clients", type=int, default=24)
    given = parser.parse_args()
    print_rows(asyncio.run(run(given.clients)), as_json=given.json)


if __name__ == "__main__":
    main()
