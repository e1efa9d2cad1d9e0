"""How far beyond a budget of device time do calls go, in steps of each call that runs?

    python -m benches.bench_device_limits [--rounds 8] [--calls 24] [--json]

Engines are stubs that plan one step ahead, as the engine does: a call that is cancelled has a row in one more step.
A step takes 40 ms, and a token of it 1 ms of device time. Gateways charge by `airi.gateway.limits`, as they do while
they serve; each keeps its part of the calls running, of 5 to 60 tokens, until it is refused. One round uses up a budget
within seconds: `over` is what the calls have used in the end beyond it, in steps of all calls at once. What began just
then counts two: nothing tells beforehand what a first step will take. The ledger's own count must be what the engines
told, else no figure is printed.

Variants: one gateway that counts in its process; three with one Redis; the same with 100 ms to Redis and back, two and
a half steps. Does not mean: how steps of different lengths are told apart, nor what a long prompt's first step adds.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from airi.bench.rows import percentile
from airi.gateway.errors import ApiError
from airi.gateway.limits import Limiter
from airi.outputs import Output
from airi.policy.ledger import (
    Budget,
    LimitName,
    Limits,
    LimitTable,
    ProcessLedger,
    RedisLedger,
    Remaining,
    Reservation,
    Scope,
    connect,
)
from airi.sampling_params import SamplingParams
from airi.transport import EngineClient, GenerateRequest
from airi.transport.messages import Cancel
from airi.transport.stub import StubEngine, StubOptions
from benches.common import plain_parser, print_rows
from tests.policy.redis_server import running_redis

STEP_US = 40_000
TOKEN_US = 1_000
ROUND_STEPS = 50
SCOPE = Scope(tenant="anyone")
PROMPT = 1

Ledger = ProcessLedger | RedisLedger


class AheadStub(StubEngine):
    """Has planned the next step when it hears of a cancel."""

    def __init__(self, options: StubOptions) -> None:
        super().__init__(options)
        self._late: list[Cancel] = []

    def _cancel(self, message: Cancel) -> None:
        self._late.append(message)

    def _step(self) -> None:
        super()._step()
        late, self._late = self._late, []
        for message in late:
            super()._cancel(message)


class FarLedger(RedisLedger):
    """Redis, 100 ms away and back."""

    async def charge_device(self, reservation: Reservation, device_us: int) -> Remaining | None:
        await asyncio.sleep(0.05)
        over = await super().charge_device(reservation, device_us)
        await asyncio.sleep(0.05)
        return over


@contextmanager
def engine(endpoint: str) -> Iterator[None]:
    """A stub that serves from a thread."""
    stub = AheadStub(StubOptions(endpoint=endpoint, step_us=STEP_US, device_us=TOKEN_US))
    thread = threading.Thread(target=stub.run)
    thread.start()
    try:
        yield
    finally:
        stub.stop()
        thread.join()


class Gateway:
    """Keeps calls running until they are refused, and knows what they used."""

    def __init__(self, ledger: Ledger, client: EngineClient, table: LimitTable, seed: int) -> None:
        self._limiter = Limiter(ledger, table, lambda *_: 0)
        self._client = client
        self._draw = random.Random(seed)
        self.used_us = 0

    async def run(self, calls: int) -> None:
        """So many at once."""
        await asyncio.gather(*(self._keep_calling() for _ in range(calls)))

    async def _keep_calling(self) -> None:
        over = False
        while not over:
            try:
                over = await self._call()
            except ApiError:
                return

    async def _call(self) -> bool:
        """Whether it was ended."""
        request = GenerateRequest(
            model="stub",
            tokens=GenerateRequest.pack_tokens(range(PROMPT)),
            params=SamplingParams(max_tokens=self._draw.randint(5, 60)),
        )

        def end(_: Exception) -> None:
            self._client.cancel(request.request_id)

        held = await self._limiter.reserve(SCOPE.tenant, "m", "standard", (1, 1, 1), end)
        if held is None:
            raise RuntimeError("nothing limits the call")
        request.metered = held.is_metered
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def take(output: Output) -> None:
            self.used_us += output.device_us
            held.use_device(output.device_us, runs=output.finish_reason is None)
            if output.finish_reason is not None:
                ended.set_result(output.finish_reason == "cancelled")

        self._client.submit(request, take)
        was_ended = await ended
        await held.settle(1, 1, 1)
        return was_ended


async def spent(ledger: Ledger) -> int:
    """By the ledger's count; more than the limit counts, too."""
    outcome = await ledger.remaining([SCOPE])
    return next(one.limit - one.remaining for one in outcome if one.name is LimitName.DEVICE)


async def overshoot_us(ledgers: list[Ledger], endpoints: list[str], calls: int, budget_us: int) -> int:
    """One round."""
    table = LimitTable({SCOPE: Limits(device_seconds=Budget(amount_micro=budget_us))})
    gateways = []
    for seed, (ledger, endpoint) in enumerate(zip(ledgers, endpoints, strict=True)):
        await ledger.set_limits(table)
        client = await EngineClient.connect(endpoint, timeout_s=10)
        gateways.append((Gateway(ledger, client, table, seed), client))
    await asyncio.gather(*(gateway.run(calls // len(gateways)) for gateway, _ in gateways))
    used = sum(gateway.used_us for gateway, _ in gateways)
    wide = LimitTable({SCOPE: Limits(device_seconds=Budget(amount_micro=10 * budget_us))})
    for ledger, (_, client) in zip(ledgers, gateways, strict=True):
        await ledger.set_limits(wide)
        client.close()
    counted = await spent(ledgers[0])
    if counted != used:
        raise RuntimeError(f"the ledger counts {counted} us, the engines told {used}")
    return used - budget_us


def measure(
    variant: str, arguments: argparse.Namespace, *, gateways: int, far: bool = False
) -> dict[str, Any]:
    """All rounds of one variant."""
    overs = []
    for number in range(arguments.rounds):
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            endpoints = [f"ipc://{folder}/engine{i}" for i in range(gateways)]
            for endpoint in endpoints:
                stack.enter_context(engine(endpoint))
            ledgers: list[Ledger]
            if gateways == 1:
                ledgers = [ProcessLedger(LimitTable({}))]
            else:
                url = stack.enter_context(running_redis()).url
                kind = FarLedger if far else RedisLedger
                ledgers = [kind(LimitTable({}), connect(url)) for _ in range(gateways)]
            budget_us = arguments.calls * TOKEN_US * ROUND_STEPS + 137 * number
            overs.append(asyncio.run(round_of(ledgers, endpoints, arguments.calls, budget_us)))
    steps = [over / (arguments.calls * TOKEN_US) for over in overs]
    return {
        "question": f"device time beyond a budget, {variant}",
        "calls": arguments.calls,
        "rounds": arguments.rounds,
        "over_p50_steps": round(percentile(steps, 50), 2),
        "over_max_steps": round(max(steps), 2),
        "target": "<= 1",
        "reached": max(steps) <= 1,
    }


async def round_of(ledgers: list[Ledger], endpoints: list[str], calls: int, budget_us: int) -> int:
    """As `overshoot_us`, of ledgers that are opened and closed."""
    for ledger in ledgers:
        await ledger.open()
    try:
        return await overshoot_us(ledgers, endpoints, calls, budget_us)
    finally:
        for ledger in ledgers:
            await ledger.close()


def main() -> None:
    """One row for each variant."""
    parser = plain_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--calls", type=int, default=24, help="that run at once, over all gateways")
    arguments = parser.parse_args()
    rows = [
        measure("in process", arguments, gateways=1),
        measure("3 gateways on one Redis", arguments, gateways=3),
        measure("3 gateways on one Redis, 100 ms away and back", arguments, gateways=3, far=True),
    ]
    print_rows(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
