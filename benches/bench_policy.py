"""What does a decision cost: remembered, fresh, and by cedarpy itself?

    python -m benches.bench_policy [--json]

The eight policies of bench_governance decide on chats of twenty tenants to four models. `remembered`: the same calls
again and again, as a gateway has them. `fresh`: a context that was never seen before in each call. cedarpy is asked the
same fresh calls in the same run, in turns: with policies, entities and schema parsed before, and with texts, as its
plain interface takes them. CPU time of one thread, median over turns. The decisions are compared first. Does not mean:
what a thousand policies cost.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from cedarpy import Entities, PolicySet, Schema, is_authorized

from airi.policy import Principal
from airi.policy.decisions import Action, Decider, Resource
from airi.policy.schema import cedar_schema
from benches.bench_governance import POLICIES
from benches.common import plain_parser, print_rows

TARGET_REMEMBERED_US = 2.0
TARGET_FRESH_US = 50.0
MODELS = [Resource("Model", f"model-{i}", {"name": f"model-{i}", "task": "chat"}) for i in range(4)]
PRINCIPALS = [
    Principal(tenant=f"tenant-{i}", number=i + 1, groups=("tenants", "gold" if i % 2 else "batch"))
    for i in range(20)
]

Call = tuple[Principal, Action, Resource, dict[str, Any]]


def calls(count: int, first: int) -> list[Call]:
    """Chats, each with a context of its own; three in four ask for no more tokens than all may have."""
    return [
        (
            PRINCIPALS[number % len(PRINCIPALS)],
            Action.CHAT,
            MODELS[number % len(MODELS)],
            {
                "max_tokens": number % 4096 if number % 4 else number + 4097,
                "n": 1 + number % 2,
                "stream": number // 4096 % 2 == 0,
                "tools": number // 8192 % 2 == 0,
                "priority": number // 16384 % 1024,
                "priority_class": "standard",
                "release_asked": False,
            },
        )
        for number in range(first, first + count)
    ]


def entities_json() -> str:
    """All principals and resources, as cedarpy takes them."""

    def entity(kind: str, name: str, attributes: Any, parents: tuple[str, ...] = ()) -> dict[str, Any]:
        uids = [{"type": "Group", "id": parent} for parent in parents]
        return {"uid": {"type": kind, "id": name}, "attrs": attributes, "parents": uids}

    groups = {group for principal in PRINCIPALS for group in principal.groups}
    found = [entity("Group", group, {}) for group in sorted(groups)]
    found += [entity(model.kind, model.id, dict(model.attributes)) for model in MODELS]
    for principal in PRINCIPALS:
        attributes = {"name": principal.tenant, "priority": principal.priority}
        found.append(entity("Tenant", principal.tenant, attributes, principal.groups))
    return json.dumps(found)


def request_of(call: Call) -> dict[str, Any]:
    """A call as cedarpy takes it."""
    principal, action, resource, context = call
    return {
        "principal": {"type": "Tenant", "id": principal.tenant},
        "action": {"type": "Action", "id": str(action)},
        "resource": {"type": resource.kind, "id": resource.id},
        "context": context,
    }


def deciders() -> tuple[Decider, Callable[[Call], bool], Callable[[Call], bool]]:
    """AIRI's, and cedarpy's with everything parsed before and with texts."""
    texts = POLICIES, entities_json(), json.dumps(cedar_schema())
    parsed = PolicySet.from_str(texts[0]), Entities.from_json_str(texts[1]), Schema.from_json_str(texts[2])

    def by_handles(call: Call) -> bool:
        return bool(is_authorized(request_of(call), *parsed).allowed)

    def by_texts(call: Call) -> bool:
        return bool(is_authorized(request_of(call), *texts).allowed)

    return Decider(POLICIES, cedar_schema(), MODELS), by_handles, by_texts


def check(count: int) -> None:
    """RuntimeError where AIRI, which remembers, and cedarpy decide differently, or all the same."""
    decider, by_handles, by_texts = deciders()
    asked = calls(count, 0)
    ours = [decider.decide(*call).allowed for call in asked * 2]
    theirs = [by_handles(call) for call in asked]
    if ours != theirs * 2 or theirs[:50] != [by_texts(call) for call in asked[:50]]:
        raise RuntimeError("decisions are not cedarpy's")
    if len(set(theirs)) < 2:
        raise RuntimeError("every call is decided alike")


def us_each(decide: Callable[[Call], Any], asked: list[Call]) -> float:
    """Microseconds of CPU per call."""
    began = time.thread_time_ns()
    for call in asked:
        decide(call)
    return (time.thread_time_ns() - began) / len(asked) / 1e3


def measure(turns: int, count: int) -> list[dict[str, Any]]:
    """All variants in turns."""
    decider, by_handles, by_texts = deciders()
    fresh = (calls(count, turn * count) for turn in itertools.count(1))
    known = calls(1000, 0)
    found: dict[str, list[float]] = {}
    us_each(lambda call: decider.decide(*call), known)
    for _ in range(turns):
        found.setdefault("remembered", []).append(us_each(lambda call: decider.decide(*call), known * 10))
        asked = next(fresh)
        found.setdefault("fresh", []).append(us_each(lambda call: decider.decide(*call), asked))
        found.setdefault("cedarpy, parsed before", []).append(us_each(by_handles, asked))
        found.setdefault("cedarpy, texts", []).append(us_each(by_texts, asked[: max(1, count // 20)]))
    targets = {"remembered": TARGET_REMEMBERED_US, "fresh": TARGET_FRESH_US}
    rows: list[dict[str, Any]] = []
    for variant, values in found.items():
        row: dict[str, Any] = {"question": "CPU of a policy decision", "variant": variant}
        row |= {"us": round(median(values), 2), "policies": POLICIES.count("@id(")}
        if variant in targets:
            row |= {"target": f"<= {targets[variant]:g} us", "reached": median(values) <= targets[variant]}
        rows.append(row)
    return rows


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--calls", type=int, default=4000)
    options = parser.parse_args()
    check(1000)
    print_rows(measure(options.turns, options.calls), as_json=options.json)


if __name__ == "__main__":
    main()
