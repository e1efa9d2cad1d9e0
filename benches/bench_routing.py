"""What does routing over replicas cost, and what does it bring?

    python -m benches.bench_routing --trace mooncake_synthetic_trace.jsonl.gz [--speeds 1 1.25 1.5 2] [--json]

Cost: CPU of one thread, through Python's binding, of a decision among 8 candidates whose indexes are full, at prompts
of 500, 8k and 64k tokens that every candidate has half of or all of, a different one each time; of noting that the
request was sent; of hashing the prompt; and of events. First, what each candidate is said to have cached is compared
with sets.

Gain: the trace over 4 replicas in the simulator, whose router `locality` is the product's, fed by the replicas' own
events, against round robin, least loaded, and `prefix`, which only knows what it sent. Replicas are those of the
preset; --speeds are of arrivals. `busy` is the share of time that replicas spent in steps: at --judged they are busy,
and queues still end. `imbalance` is the largest over the mean of the tokens that replicas computed, prompts and
answers. Every request must finish.

What the numbers do not mean: no model runs; the simulated router knows the step times exactly, and hears of events
when they happen.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airi._core import KvEventKind, route
from airi._core.parts import HashChain, KvEventRing
from airi.simulate import PRESETS, SimulationOptions, Trace, simulate
from airi.simulate.batches import Stream, sped_up
from airi.simulate.options import ROUTERS
from airi.simulate.step_time import DEFAULT_PRESET
from benches.common import plain_parser, print_rows, verdict

TARGET_DECISION_US = 200.0
TARGET_TTFT = 0.6
TARGET_IMBALANCE = 1.3
CANDIDATES = 8
REPLICAS = 4
BLOCK = 16
LENGTHS = (500, 8_000, 64_000)
EVENT = KvEventRing(1).read(0)[0].dtype

Chain = NDArray[np.void]


def drawn_chain(draw: np.random.Generator, blocks: int) -> Chain:
    """Hashes of a prompt that shares nothing with others."""
    return draw.integers(0, 2**64, (blocks, 2), np.uint64).view(EVENT["hash"]).reshape(-1)


def events_of(hashes: Chain, kind: KvEventKind) -> NDArray[np.void]:
    """What a replica tells where it stores or removes these."""
    events = np.zeros(len(hashes), EVENT)
    events["hash"] = hashes
    events["kind"] = kind
    events["num_tokens"] = BLOCK
    return events


class Fleet:
    """Replicas whose indexes are full: of prompts of one length, and of what no prompt asks for."""

    def __init__(self, tokens: int, capacity: int, prompts: int, *, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        blocks = tokens // BLOCK
        self.tokens = tokens
        self.router = route.ReplicaRouter(block_size=BLOCK)
        self.prompts = [drawn_chain(draw, blocks) for _ in range(max(1, min(prompts, capacity // blocks)))]
        self.depths = draw.choice([blocks // 2, blocks], (CANDIDATES, len(self.prompts)))
        """[candidate, prompt] blocks that it has."""
        times = PRESETS[DEFAULT_PRESET].step_time.as_tuples()
        for depths in self.depths:
            replica = self.router.add(capacity_blocks=capacity, step_time=times)
            held = [chain[:depth] for chain, depth in zip(self.prompts, depths, strict=True)]
            rest = drawn_chain(draw, capacity - int(depths.sum()))
            self.router.apply(replica, events_of(np.concatenate([*held, rest]), KvEventKind.STORED))

    def choose(self, prompt: int, *, now_us: int = 0) -> route.Choice:
        """A decision about one of the prompts."""
        choice = self.router.choose(self.prompts[prompt], self.tokens, now_us=now_us)
        if choice is None:
            raise RuntimeError("no replica was chosen")
        return choice


def check(tokens: int, capacity: int = 3_000) -> None:
    """RuntimeError where a candidate is said to have cached what it has not, or another has the best score."""
    fleet = Fleet(tokens, capacity, 4)
    for prompt in range(len(fleet.prompts)):
        choice = fleet.choose(prompt)
        most = (tokens - 1) // BLOCK
        expected = [min(int(depth), most) * BLOCK for depth in fleet.depths[:, prompt]]
        if [c.stored_tokens for c in choice.candidates] != expected:
            raise RuntimeError("what is said to be cached is not what was told")
        least = min(c.score_us for c in choice.candidates)
        if choice.candidates[choice.replica].score_us != least:
            raise RuntimeError("the choice is not the best candidate")


def us_each(call: Callable[[int], Any], numbers: Iterable[int]) -> float:
    """Microseconds of CPU per call."""
    asked = list(numbers)
    began = time.thread_time_ns()
    for number in asked:
        call(number)
    return (time.thread_time_ns() - began) / len(asked) / 1e3


def decision_costs(tokens: int, capacity: int, turns: int, calls: int) -> dict[str, float]:
    """Microseconds of a decision, of noting it, and of hashing, medians over turns."""
    fleet = Fleet(tokens, capacity, calls)
    prompts = itertools.cycle(range(len(fleet.prompts)))
    requests = itertools.count()
    hashes = HashChain(bytes(16), b"bench", BLOCK)
    text = np.random.default_rng(1).integers(0, 100_000, tokens, np.int32)

    def send(request: int) -> None:
        prompt = request % len(fleet.prompts)
        fleet.router.sent(
            request, request % CANDIDATES, fleet.prompts[prompt], tokens, now_us=request * 1_000_000
        )
        fleet.router.ended(request, 1)

    found: dict[str, list[float]] = {}
    for _ in range(turns):
        asked = list(itertools.islice(prompts, calls))
        found.setdefault("us", []).append(us_each(fleet.choose, asked))
        explained = us_each(lambda prompt: [c.score_us for c in fleet.choose(prompt).candidates], asked)
        found.setdefault("us_with_reasons", []).append(explained)
        hashing = us_each(lambda _: route.hash_chain(hashes, text), range(max(1, calls // 10)))
        found.setdefault("us_hashing", []).append(hashing)
    found["us_sent_and_ended"] = [us_each(send, itertools.islice(requests, calls)) for _ in range(turns)]
    return {name: round(median(values), 2) for name, values in found.items()}


def event_cost(capacity: int, turns: int) -> dict[str, float]:
    """Microseconds per event that a full replica's index is kept up with: half stored, half removed."""
    fleet = Fleet(8_000, capacity, 100)
    draw = np.random.default_rng(2)
    count = min(capacity // 8, 4096)
    first = drawn_chain(draw, count)
    # Room for what comes: one that is full leaves out what is stored.
    fleet.router.apply(0, events_of(np.concatenate(fleet.prompts), KvEventKind.REMOVED))
    fleet.router.apply(0, events_of(first, KvEventKind.STORED))
    costs = []
    for _ in range(turns):
        after = drawn_chain(draw, count)
        events = np.stack([events_of(first, KvEventKind.REMOVED), events_of(after, KvEventKind.STORED)], 1)
        told = np.ascontiguousarray(events.reshape(-1))
        began = time.thread_time_ns()
        fleet.router.apply(0, told)
        costs.append((time.thread_time_ns() - began) / len(told) / 1e3)
        first = after
    if fleet.router.num_left_out(0):
        raise RuntimeError("events were left out")
    return {"us_per_event": round(median(costs), 4), "events_per_call": 2 * count}


def cost_rows(capacity: int, turns: int, calls: int) -> list[dict[str, Any]]:
    """Decisions at all lengths, and events."""
    rows: list[dict[str, Any]] = []
    for tokens in LENGTHS:
        check(tokens, max(3_000, tokens // BLOCK))
        costs = decision_costs(tokens, capacity, turns, calls)
        rows.append(
            {
                "question": "CPU of a routing decision",
                "variant": f"{tokens} tokens",
                "candidates": CANDIDATES,
                "blocks_each": capacity,
                **costs,
                "target": f"<= {TARGET_DECISION_US:g} us",
                "reached": costs["us_with_reasons"] <= TARGET_DECISION_US,
            }
        )
    rows.append({"question": "CPU of KV events", "blocks_each": capacity, **event_cost(capacity, turns)})
    return rows


def played(stream: Stream, router: str, speed: float, **options: Any) -> dict[str, Any]:
    """One simulation; SystemExit where a request did not finish."""
    computed = np.zeros(REPLICAS)

    def count(rows: NDArray[np.void]) -> None:
        work = rows["prompt_tokens"] - rows["cached_tokens"] + rows["generated_tokens"]
        np.add.at(computed, rows["replica"], work)

    fleet = SimulationOptions(replicas=REPLICAS, router=router, keep_rows=True, **options)
    figures = simulate(sped_up(stream, speed)(), fleet, on_rows=count).figures
    if figures["requests"]["finished"] != figures["requests"]["read"]:
        raise SystemExit(f"requests were lost: {figures['requests']}")
    return {
        "question": "routing over 4 replicas",
        "variant": router,
        "speed": speed,
        "ttft_ms_p50": figures["ttft_ms"]["p50"],
        "ttft_ms_p90": figures["ttft_ms"]["p90"],
        "ttft_ms_p99": figures["ttft_ms"]["p99"],
        "hit_rate": figures["prefix_hit_rate"],
        "busy": figures["busy"],
        "imbalance": round(float(computed.max() / computed.mean()), 3),
    }


def judged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The router that is ours against the better of the two blind ones, at one speed."""
    found = {row["variant"]: row for row in rows}
    ours = found["locality"]
    blind = min(found["round_robin"]["ttft_ms_p90"], found["least_loaded"]["ttft_ms_p90"])
    where = f"at speed {ours['speed']:g}"
    return [
        verdict(
            f"p90 TTFT against the better of round robin and least loaded {where}",
            ours["ttft_ms_p90"],
            blind,
            TARGET_TTFT,
            unit="ms",
            smaller_is_better=True,
        ),
        {
            "question": f"load imbalance {where}",
            "ours": ours["imbalance"],
            "target": f"<= {TARGET_IMBALANCE}",
            "reached": ours["imbalance"] <= TARGET_IMBALANCE,
        },
    ]


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--trace", type=Path, help="left out: only the cost is measured")
    parser.add_argument("--speeds", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0])
    parser.add_argument("--judged", type=float, default=1.25, help="the speed at which targets hold")
    parser.add_argument("--step-time", default=DEFAULT_PRESET, choices=list(PRESETS), help="of replicas")
    parser.add_argument("--capacity", type=int, default=1 << 16, help="blocks of a replica's index")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1000)
    options = parser.parse_args()
    rows = cost_rows(options.capacity, options.turns, options.calls)
    if options.trace is not None:
        stream = Trace(options.trace).batches
        for speed in sorted({*options.speeds, options.judged}):
            fleet = [played(stream, router, speed, step_time=options.step_time) for router in ROUTERS]
            rows += fleet
            if speed == options.judged:
                rows += judged(fleet)
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
