"""Do limits hold across gateways, and what does a decision cost? Overshoot, and CPU per decision.

    python -m benches.bench_limits [--seconds 130] [--gateways 3] [--rate 100] [--json]

Three processes, each a gateway with a ledger of its own on one redis-server (started here, without persistence),
each offered 100 requests/s at random moments: input known, output not, so that every request reserves its most and
gives back what it did not generate when it ends, between 0 and 3 s later. Three tenants, of which one runs into
its requests per minute, one into its tokens, one into its budget, several times over. Each gateway logs what it was
granted and what that used in the end.

Overshoot is by that log, not by what the ledger thinks: the most that any 60 s (any period, for money) hold above the
limit, by the microsecond. `most` says how much of the limit such an interval held: a ledger that refuses too
much would overshoot nothing, too. The ledger's own count at the end must be the log's, else no figure is printed.

CPU: of this process for reserve and settle of three scopes with all limits set, in process; of a gateway for both
over Redis, one at a time and 32 at once; and of the redis-server. Does not mean: what Redis loses when it crashes,
which its settings decide (python/airi/policy/ledger/README.md).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from airi.bench.rows import percentile
from airi.policy.ledger import (
    Budget,
    Demand,
    Limits,
    LimitTable,
    LocalLedger,
    ProcessLedger,
    RedisLedger,
    Refused,
    Reservation,
    Scope,
    connect,
)
from benches.common import ROOT, plain_parser, print_rows
from tests.policy.redis_server import RedisServer, running_redis

SECOND = 1_000_000
TARGET_US = 20.0
KINDS = ("requests", "tokens", "money")
BUDGET = Budget(amount_micro=1_500_000, period_s=40)
TABLE = LimitTable(
    {
        Scope(tenant="requests"): Limits(requests_per_minute=2000),
        Scope(tenant="tokens"): Limits(tokens_per_minute=400_000),
        Scope(tenant="money"): Limits(budget=BUDGET),
    }
)
WIDE = Limits(
    requests_per_minute=10**9,
    tokens_per_minute=10**12,
    input_tokens_per_minute=10**12,
    output_tokens_per_minute=10**12,
    max_parallel_requests=10**6,
    budget=Budget(amount_micro=10**15, period_s=86_400),
    device_seconds=Budget(amount_micro=10**15, period_s=86_400),
)
ALL_SCOPES = tuple(
    Scope(tenant="cpu", model=model, priority_class=name)
    for model, name in ((None, None), ("m", None), ("m", "high"))
)
CPU_TABLE = LimitTable(dict.fromkeys(ALL_SCOPES, WIDE))
MOST = Demand(input_tokens=1000, output_tokens=500, cost_micro=700)
USED = Demand(input_tokens=1000, output_tokens=300, cost_micro=500)

Grant = dict[str, Any]
"""What a gateway logs of a reservation: tenant, at, and what it used: requests, tokens, money."""


async def offer_one(
    ledger: RedisLedger, draw: random.Random, grants: list[Grant], waits: list[float]
) -> None:
    """One request of one of the tenants, from admission to its end."""
    tenant = draw.choice(KINDS)
    inputs, outputs = draw.randint(20, 600), draw.randint(1, 400)
    most = Demand(input_tokens=inputs, output_tokens=outputs, cost_micro=inputs + 4 * outputs)
    began = time.perf_counter()
    outcome = await ledger.reserve([Scope(tenant=tenant)], most)
    waits.append(time.perf_counter() - began)
    if isinstance(outcome, Refused):
        return
    await asyncio.sleep(draw.uniform(0, 3))
    generated = draw.randint(0, outputs)
    used = Demand(input_tokens=inputs, output_tokens=generated, cost_micro=inputs + 4 * generated)
    if not await ledger.settle(outcome, used):
        raise RuntimeError("a lease ended under a live gateway")
    grants.append(
        {
            "tenant": tenant,
            "at": outcome.at,
            "requests": 1,
            "tokens": inputs + generated,
            "money": used.cost_micro,
        }
    )


async def run_gateway(url: str, seed: int, *, seconds: float, rate: float) -> dict[str, Any]:
    """Offers requests at `rate`, by a Poisson process, until the time is up; then waits for the last to end."""
    ledger = RedisLedger(TABLE, connect(url))
    await ledger.open()
    draw, grants, waits = random.Random(seed), list[Grant](), list[float]()
    began = at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while at < began + seconds:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            group.create_task(offer_one(ledger, draw, grants, waits))
            at += draw.expovariate(rate)
    await ledger.close()
    return {"grants": grants, "offered": len(waits), "waits": waits}


def most_in_a_minute(grants: Iterable[Grant], kind: str) -> int:
    """The most that any 60 s hold, both ends included."""
    ordered = sorted(grants, key=lambda grant: int(grant["at"]))
    most = total = first = 0
    for grant in ordered:
        total += grant[kind]
        while ordered[first]["at"] < grant["at"] - 60 * SECOND:
            total -= ordered[first][kind]
            first += 1
        most = max(most, total)
    return most


def most_in_a_period(grants: Iterable[Grant]) -> int:
    """The most money that any period of the budget holds."""
    periods: dict[int, int] = defaultdict(int)
    for grant in grants:
        periods[BUDGET.period_index(grant["at"])] += grant["money"]
    return max(periods.values())


async def check_counts(url: str, grants: list[Grant]) -> None:
    """RuntimeError where the ledger's own counts are not the log's: then the log says nothing of the ledger."""
    ledger = RedisLedger(TABLE, connect(url))
    probe = await ledger.reserve([Scope(tenant="tokens")], Demand(requests=0, parallel=0))
    await ledger.close()
    if not isinstance(probe, Reservation):
        raise RuntimeError("a demand for nothing was refused")
    first = (probe.at // SECOND - 60) * SECOND
    counted = probe.usages[0].input_tokens + probe.usages[0].output_tokens
    logged = sum(g["tokens"] for g in grants if g["tenant"] == "tokens" and g["at"] >= first)
    if counted != logged:
        raise RuntimeError(f"the ledger counts {counted} tokens, the gateways were granted {logged}")


def measure_overshoot(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for requests, tokens and money each."""
    with running_redis() as server:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benches.bench_limits", "--as-gateway", server.url, "--seed", str(seed),
                 "--seconds", str(arguments.seconds), "--rate", str(arguments.rate)],
                stdout=subprocess.PIPE, cwd=ROOT,
            )
            for seed in range(arguments.gateways)
        ]  # fmt: skip
        outputs = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise RuntimeError("a gateway failed")
        runs = [json.loads(output) for output in outputs]
        grants = [grant for run in runs for grant in run["grants"]]
        asyncio.run(check_counts(server.url, grants))
    waits = [wait for run in runs for wait in run["waits"]]
    offered = sum(run["offered"] for run in runs) / arguments.seconds
    rows = []
    for kind in KINDS:
        limits = TABLE[Scope(tenant=kind)]
        mine = [grant for grant in grants if grant["tenant"] == kind]
        if kind == "money":
            limit, most = BUDGET.amount_micro, most_in_a_period(mine)
        else:
            limit = limits.requests_per_minute or limits.tokens_per_minute or 0
            most = most_in_a_minute(mine, kind)
        rows.append(
            {
                "question": f"overshoot of {kind}, {arguments.gateways} gateways on one Redis",
                "offered": f"{offered:.0f}/s for {arguments.seconds:g} s",
                "granted": len(mine),
                "limit": limit,
                "most": most,
                "overshoot": max(0, most - limit),
                "reserve_p50_ms": round(percentile(waits, 50) * 1e3, 2),
                "reserve_p99_ms": round(percentile(waits, 99) * 1e3, 2),
                "target": 0,
                "reached": most <= limit,
            }
        )
    return rows


def local_us(count: int) -> float:
    """CPU of reserve and settle in process, without waiting for anything."""
    ledger, now = LocalLedger(CPU_TABLE), time.time_ns() // 1000
    began = time.process_time()
    for _ in range(count):
        now += 500
        outcome = ledger.reserve(CPU_TABLE.scopes_for("cpu", "m", "high"), MOST, now)
        if isinstance(outcome, Refused) or not ledger.settle(outcome, USED, 100, now):
            raise RuntimeError("a demand within all limits was not granted")
    return (time.process_time() - began) / count * SECOND


async def decide(ledger: ProcessLedger | RedisLedger, count: int) -> None:
    """`count` requests one after another."""
    for _ in range(count):
        outcome = await ledger.reserve(CPU_TABLE.scopes_for("cpu", "m", "high"), MOST)
        if isinstance(outcome, Refused) or not await ledger.settle(outcome, USED, 100):
            raise RuntimeError("a demand within all limits was not granted")


async def awaited_us(ledger: ProcessLedger | RedisLedger, count: int, *, at_once: int) -> float:
    """CPU of this process per reserve and settle, as a gateway calls them."""
    await ledger.open()
    await asyncio.gather(*(decide(ledger, 20) for _ in range(at_once)))
    began = time.process_time()
    await asyncio.gather(*(decide(ledger, count // at_once) for _ in range(at_once)))
    used = time.process_time() - began
    await ledger.close()
    return used / (count // at_once * at_once) * SECOND


def server_cpu_s(server: RedisServer) -> float:
    """User and system time of a server so far."""
    import redis

    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def measure_cpu(count: int) -> list[dict[str, Any]]:
    """CPU per reserve and settle, three scopes with seven limits each."""
    local_us(1000)
    process_us = asyncio.run(awaited_us(ProcessLedger(CPU_TABLE), count, at_once=1))
    plain_us = local_us(count)
    rows: list[dict[str, Any]] = [
        {
            "question": "CPU of reserve + settle, 3 scopes, in process",
            "us": round(plain_us, 2),
            "us_awaited": round(process_us, 2),
            "target": f"<= {TARGET_US:g} us",
            "reached": plain_us <= TARGET_US,
        }
    ]
    with running_redis() as server:
        for at_once in (1, 32):
            before = server_cpu_s(server)
            gateway_us = asyncio.run(
                awaited_us(RedisLedger(CPU_TABLE, connect(server.url)), count // 4, at_once=at_once)
            )
            server_us = (server_cpu_s(server) - before) / (count // 4) * SECOND
            rows.append(
                {
                    "question": f"CPU of reserve + settle, 3 scopes, over Redis, {at_once} at once",
                    "gateway_us": round(gateway_us, 1),
                    "redis_server_us": round(server_us, 1),
                }
            )
    return rows


def main() -> None:
    """Overshoot, then costs; or, started by the former, one gateway."""
    parser = plain_parser(__doc__)
    parser.add_argument(
        "--seconds", type=float, default=130, help="a window and what slides through it take 61"
    )
    parser.add_argument("--gateways", type=int, default=3)
    parser.add_argument("--rate", type=float, default=100, help="requests per second offered to each gateway")
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--only", choices=("overshoot", "cpu"))
    parser.add_argument("--as-gateway", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_gateway is not None:
        run = run_gateway(
            arguments.as_gateway, arguments.seed, seconds=arguments.seconds, rate=arguments.rate
        )
        print(json.dumps(asyncio.run(run)))
        return
    if shutil.which("redis-server") is None:
        parser.error("redis-server is missing (Debian package redis-server)")
    rows = [] if arguments.only == "cpu" else measure_overshoot(arguments)
    rows += [] if arguments.only == "overshoot" else measure_cpu(arguments.decisions)
    print_rows(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
