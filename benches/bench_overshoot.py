"""Do limits hold where several gateways share them? Overshoot of what clients were given over HTTP.

    python -m benches.bench_overshoot [--seconds 65] [--gateways 3] [--rate 100] [--json]

Gateways with one config, one state and one redis-server (started here), each in front of an engine without a model,
each offered 100 requests/s at random moments. Three tenants: one has a limit of requests per minute, one of tokens, one
a budget, and each is offered several times that. Requests ask for more tokens than they get, so that every one reserves
its most and gives back what it did not use.

Judged is what clients saw: an answer was let in between its request and its end. Overshoot is what the answers that
certainly fall into 60 s (for money: into the budget's period) used above the limit; `most` says how much that was: who
refuses too much overshoots nothing, too. bench_limits asks the same of the ledger alone, by its own clock to the
microsecond. Does not mean: what Redis loses when it crashes.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airi import builtin
from airi.bench.rows import percentile
from airi.bench.server import free_port, server_process, wait_until_ready
from airi.policy.keys import create_key
from airi.state import open_store
from benches.bench_gateway import Connection, Target
from benches.common import plain_parser, print_rows
from tests.policy.redis_server import running_redis

MODEL = "bench"
LIMITS: dict[str, dict[str, Any]] = {
    "requests": {"rpm_limit": 1500},
    "tokens": {"tpm_limit": 120_000},
    "money": {"max_budget": 0.3, "budget_duration": "30d"},
}
MOST = {"requests": 1500, "tokens": 120_000, "money": 300_000}
"""The same as numbers; money in millionths."""
INPUT_MICRO, OUTPUT_MICRO = 1, 4  # a token's price
GIVEN_TOKENS = 20
CONNECTIONS = 24


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that was let in."""

    sent: float
    ended: float
    prompt: int
    output: int

    def used(self, kind: str) -> int:
        """What it counts for, of requests, tokens or money."""
        if kind == "money":
            return INPUT_MICRO * self.prompt + OUTPUT_MICRO * self.output
        return 1 if kind == "requests" else self.prompt + self.output


def config_text(folder: Path, port: int, redis: str) -> str:
    """The config of all gateways but for their ports."""
    price = {"input_per_1m": INPUT_MICRO, "output_per_1m": OUTPUT_MICRO}
    config = {
        "version": 1,
        "server": {"port": port, "state": f"sqlite:///{folder}/airi.db", "shared_counters": redis},
        "models": [{"name": MODEL, "source": builtin.NAME, "price": price}],
        "tenants": [{"name": name, "limits": limits} for name, limits in LIMITS.items()],
    }
    return json.dumps(config)


async def make_keys(folder: Path) -> dict[str, str]:
    """A key of each tenant."""
    async with await open_store(f"sqlite:///{folder}/airi.db") as store:
        return {name: (await create_key(store, name)).text for name in LIMITS}


@contextmanager
def gateways(count: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The URLs of so many gateways, and the tenants' keys."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, redis = Path(name), stack.enter_context(running_redis())
        keys, urls = asyncio.run(make_keys(folder)), []
        for number in range(count):
            endpoint, port, path = f"ipc://{folder}/engine-{number}", free_port(), folder / f"{number}.yaml"
            path.write_text(config_text(folder, port, redis.url))
            stub = [sys.executable, "-m", "airi.transport.stub", "--endpoint", endpoint, "--name", MODEL]
            stub += [
                "--model-path",
                str(builtin.path()),
                "--stop-after",
                str(GIVEN_TOKENS),
                "--step-us",
                "2000",
            ]
            command = [sys.executable, "-m", "airi", "serve", str(path), "--engine", endpoint]
            log = stack.enter_context((folder / f"log-{number}").open("w+b"))
            stack.enter_context(server_process(stub, log))
            process = stack.enter_context(server_process(command, log))
            wait_until_ready(process, f"http://127.0.0.1:{port}/ready", log)
            urls.append(f"http://127.0.0.1:{port}/v1")
        yield urls, keys


class Client:
    """Offers requests of all tenants to one gateway and keeps what was let in."""

    def __init__(self, url: str, keys: dict[str, str], seed: int) -> None:
        self.answers: dict[str, list[Answer]] = {name: [] for name in keys}
        self.offered = dict.fromkeys(keys, 0)
        self._draw = random.Random(seed)
        self._target = Target("", url, MODEL, 0, keys=tuple(keys.values()))
        self._free: dict[str, asyncio.Queue[Connection]] = {name: asyncio.Queue() for name in keys}

    async def run(self, seconds: float, rate: float) -> None:
        """Requests at `rate`, by a Poisson process, until the time is up; then waits for the last to end."""
        for number, queue in enumerate(self._free.values()):
            for _ in range(CONNECTIONS):
                connection = Connection(self._target, number)
                await connection.open()
                queue.put_nowait(connection)
        began = at = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while at < began + seconds:
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                group.create_task(self._offer(self._draw.choice(list(self._free))))
                at += self._draw.expovariate(rate)
        for queue in self._free.values():
            while not queue.empty():
                queue.get_nowait().close()

    async def _offer(self, tenant: str) -> None:
        words = "word " * self._draw.randint(1, 60)
        most = self._draw.randint(GIVEN_TOKENS + 1, 200)
        body = {"model": MODEL, "messages": [{"role": "user", "content": words}], "max_tokens": most}
        connection = await self._free[tenant].get()
        sent = time.perf_counter()
        self.offered[tenant] += 1
        status, content = await connection.ask("/chat/completions", body)
        ended = time.perf_counter()
        self._free[tenant].put_nowait(connection)
        if status == 429:
            return
        usage = json.loads(content).get("usage", {})
        if status != 200 or usage.get("completion_tokens") != GIVEN_TOKENS:
            raise RuntimeError(f"status {status}: {content[:300]!r}")
        self.answers[tenant].append(Answer(sent, ended, usage["prompt_tokens"], GIVEN_TOKENS))


def most_in(answers: Iterable[Answer], kind: str, seconds: float) -> int:
    """The most that was used by answers that were certainly let in within so many seconds of each other."""
    by_end = sorted(answers, key=lambda answer: answer.ended)
    most = 0
    for first in by_end:
        inside = (a for a in by_end if a.sent >= first.sent and a.ended <= first.sent + seconds)
        most = max(most, sum(answer.used(kind) for answer in inside))
    return most


def rows_of(clients: list[Client], seconds: float) -> list[dict[str, Any]]:
    """A row for requests, tokens and money each."""
    rows = []
    for kind, limit in MOST.items():
        answers = [answer for client in clients for answer in client.answers[kind]]
        most = most_in(answers, kind, float("inf") if kind == "money" else 60.0)
        latencies = [answer.ended - answer.sent for answer in answers]
        rows.append(
            {
                "question": f"overshoot of {kind}, {len(clients)} gateways on one Redis, over HTTP",
                "offered": f"{sum(client.offered[kind] for client in clients) / seconds:.0f}/s for {seconds:g} s",
                "granted": len(answers),
                "limit": limit,
                "most": most,
                "overshoot": max(0, most - limit),
                "p50_ms": round(percentile(latencies, 50) * 1e3, 1),
                "target": 0,
                "reached": most <= limit,
            }
        )
    return rows


async def offer(clients: list[Client], seconds: float, rate: float) -> None:
    """All clients at once."""
    await asyncio.gather(*(client.run(seconds, rate) for client in clients))


def main() -> None:
    """Gateways, a minute of requests, and what became of them."""
    parser = plain_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=65)
    parser.add_argument("--gateways", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100, help="requests per second offered to each gateway")
    arguments = parser.parse_args()
    with gateways(arguments.gateways) as (urls, keys):
        clients = [Client(url, keys, seed) for seed, url in enumerate(urls)]
        asyncio.run(offer(clients, arguments.seconds, arguments.rate))
    print_rows(rows_of(clients, arguments.seconds), as_json=arguments.json)


if __name__ == "__main__":
    main()
