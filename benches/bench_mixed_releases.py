"""Does anybody ever get a response of which parts come from two releases?

    python -m benches.bench_mixed_releases [--requests 1000000] [--rollouts 200] [--json]

Each rollout moves a line of three models from one release to another by random steps, while gates fail, operators
promote and abort, and the control process is killed at a random write again and again; another one goes on. Three
gateways look at the documents at times of their own. A request comes to one of them, alone or as one of a session, and
makes inner calls to the models over the next seconds: from the same gateway, or from another one, which is sent the
release as W3C baggage. What decides is the product's own: `airi.lifecycle`, and the draws of `airi.gateway.releases`.
What engines hold is what the control process had them load and let go.

`mixed` counts responses whose calls were answered by versions of both releases, `refused` those of which a call was
answered with an error instead. The same again with pinning switched off, every call drawing by itself, has to find
some: or the first count proves nothing.

What the numbers do not mean: no engine runs, and clocks of gateways agree.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from airi.errors import LifecycleError
from airi.gateway.errors import ApiError
from airi.gateway.releases import Draw, ServedLine, draw_of, served_line
from airi.lifecycle.gates import Bound, Gate, Metric
from airi.lifecycle.machine import Candidate, Command, command, start
from airi.lifecycle.rollouts import Analysis, Line, OnFailure, Pause, Rollout, SetWeight, Step
from benches.common import plain_parser, print_rows
from tests.lifecycle.world import Engines, Killed, MemoryState, Notes, Process, version

MODELS = ("general", "domain", "embedder")
LINE = "assistant"
SECONDS = 60
LONGEST = 4
"""Seconds over which the calls of a request are spread at most."""
GATE = Gate(metric=Metric.ERRORS, bound=Bound.MAX, value=0.05, min_samples=50)


@dataclass
class Call:
    """One request: who draws, and which releases have answered it."""

    key: str
    session: str | None
    draw: Draw
    release: str | None = None
    answered: set[str] = field(default_factory=set)
    is_refused: bool = False


class Gateway:
    """What one gateway knows of the line: the documents as it last read them, and what engines hold."""

    def __init__(self, process: Process, engines: Engines) -> None:
        self._process, self._engines = process, engines
        self.line: ServedLine | None = None

    async def refresh(self) -> None:
        """Reads the documents."""
        await self._process.refresh()
        self.line = served_line(self._process.lines.find(LINE), self._process.releases)

    def is_served(self, model: str, id: str) -> bool:
        """Whether a version can be asked."""
        return f"{model}@{id}" in self._engines.held

    def answer(self, draw: Draw, model: str) -> str | None:
        """The version that answers a call; None where the call is refused."""
        assert self.line is not None
        try:
            found = draw.version(model) or draw.take(self.line, self.is_served).members[model]
        except ApiError:
            return None
        return found if self.is_served(model, found) else None


class World:
    """One rollout with all that happens to it."""

    def __init__(self, rng: random.Random, *, pins: bool) -> None:
        self.rng, self.pins, self.now = rng, pins, 0
        self.state, self.engines, self.notes = MemoryState(), Engines(room=6), Notes()
        self.count = self.kills = 0
        self.found: Counter[str] = Counter()

    def process(self) -> Process:
        """A control process that has just begun."""
        self.count += 1
        return Process(f"p{self.count}", self.state, self.engines, self.notes, lambda: self.now)

    async def run(self, requests: int) -> Counter[str]:
        """Rolls out, and asks meanwhile."""
        leader = await self._begin()
        gateways = [Gateway(self.process(), self.engines) for _ in range(3)]
        for gateway in gateways:
            await gateway.refresh()
        pending: list[deque[tuple[Call, str]]] = [deque() for _ in range(SECONDS + LONGEST + 1)]
        for second in range(SECONDS + LONGEST):
            self.now += 1000
            leader = await self._lead(leader)
            for gateway in gateways:
                if self.rng.random() < 0.6:
                    await gateway.refresh()
            if second < SECONDS:
                self._ask(
                    requests * (second + 1) // SECONDS - requests * second // SECONDS,
                    second,
                    gateways,
                    pending,
                )
            for call, model in pending[second]:
                self._call(call, model, self.rng.choice(gateways))
        return self.found

    async def _begin(self) -> Process:
        process = self.process()
        for release in ("r1", "r2"):
            for model in MODELS:
                await process.registry.register(version(model, release))
            await process.releases.make(LINE, release, dict.fromkeys(MODELS, release))
        self.engines.held |= {f"{model}@r1" for model in MODELS}
        line = await process.lines.put(Line(name=LINE, stable="r1"))
        rollout = Rollout(
            id=f"{self.rng.random()}",
            stable="r1",
            candidate="r2",
            steps=self._steps(),
            gates={"errors": (GATE,)},
            on_failure=self.rng.choice(list(OnFailure)),
        )
        await process.lines.put(start(line, rollout, self.now))
        return process

    def _steps(self) -> tuple[Step, ...]:
        steps: list[Step] = []
        for weight in sorted(self.rng.sample(range(1, 101), self.rng.randint(1, 5))):
            steps += [SetWeight(weight=weight), Pause(duration_s=self.rng.choice([1, 3, 8, None]))]
            if self.rng.random() < 0.3:
                steps.append(Analysis(gates=("errors",)))
        return tuple(steps)

    async def _lead(self, leader: Process) -> Process:
        """A second of the control process: it may be killed within, and operators and gates may say something."""
        rng = self.rng
        seen = self.notes.candidate
        seen.requests += 20
        seen.errors += rng.random() < 0.02 and 20
        self.notes.stable.requests += 20
        self.state.kill_in = rng.randrange(12) if rng.random() < 0.15 else None
        try:
            await leader.controller.tick()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if rng.random() < 0.08:
                said = rng.choice([Command.PROMOTE, Command.PROMOTE, Command.PROMOTE_FULL, Command.ABORT])
                with suppress(LifecycleError):
                    line = leader.lines.find(LINE)
                    tried = "r2" if line.rollout is None else line.rollout.candidate
                    candidate = Candidate.of(leader.releases.members(leader.releases.find(LINE, tried)))
                    after = command(line, said, self.now, who="somebody", candidate=candidate)
                    await leader.lines.put(after)
        except Killed:
            pass
        self.state.kill_in = None
        if self.state.was_killed:  # whatever it was at, all of it has ended
            tasks = list(leader.controller._moving.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.state.was_killed = False
            self.kills += 1
            self.found["kills"] += 1
            return self.process()
        return leader

    def _ask(
        self, count: int, second: int, gateways: list[Gateway], pending: list[deque[tuple[Call, str]]]
    ) -> None:
        rng = self.rng
        for _ in range(count):
            key = f"{rng.getrandbits(64):x}"
            session = f"{rng.randrange(500)}" if rng.random() < 0.5 else None
            call = Call(key, session, self._draw(key, session, None))
            self.found["requests"] += 1
            self._call(call, rng.choice(MODELS), rng.choice(gateways))
            for _ in range(rng.randint(1, 4)):
                pending[second + rng.randint(0, LONGEST)].append((call, rng.choice(MODELS)))

    def _draw(self, key: str, session: str | None, release: str | None) -> Draw:
        headers = [] if session is None else [(b"x-airi-session", session.encode())]
        if release is not None:
            headers.append((b"baggage", f"airi-release={release}".encode()))
        return draw_of(headers, key)

    def _call(self, call: Call, model: str, gateway: Gateway) -> None:
        draw = call.draw
        if not self.pins:
            draw = self._draw(f"{self.rng.getrandbits(64):x}", None, None)
        elif call.release is not None and self.rng.random() < 0.5:
            draw = self._draw(call.key, call.session, call.release)  # another process asks
        found = gateway.answer(draw, model)
        self.found["calls"] += 1
        if found is None:
            if not call.is_refused:
                self.found["refused"] += 1
            call.is_refused = True
            return
        call.release = call.release or found
        was_mixed = len(call.answered) > 1
        call.answered.add(found)
        self.found["mixed"] += len(call.answered) > 1 and not was_mixed
        self.found[f"answered by {found}"] += 1


def measure(rollouts: int, requests: int, *, pins: bool, seed: int = 1) -> Counter[str]:
    """What becomes of so many requests over so many rollouts."""
    found: Counter[str] = Counter()

    def on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), Killed):
            loop.default_exception_handler(context)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(on_error)
        for number in range(rollouts):
            count = requests * (number + 1) // rollouts - requests * number // rollouts
            found.update(await World(random.Random(f"{seed} {number}"), pins=pins).run(count))

    asyncio.run(run())
    return found


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--rollouts", type=int, default=200)
    options = parser.parse_args()
    rows = []
    for pins in (True, False):
        found = measure(options.rollouts, options.requests, pins=pins)
        rows.append(
            {
                "question": "mixed-release responses" + ("" if pins else ", pinning switched off"),
                "requests": found["requests"],
                "calls": found["calls"],
                "rollouts": options.rollouts,
                "kills": found["kills"],
                "by_candidate": round(found["answered by r2"] / found["calls"], 3),
                "refused": found["refused"],
                "mixed": found["mixed"],
                "target": "0" if pins else "> 0",
                "reached": (found["mixed"] == 0) is pins,
            }
        )
    print_rows(rows, as_json=options.json)


if __name__ == "__main__":
    main()
