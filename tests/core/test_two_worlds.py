"""Side channels: in strict isolation, a tenant sees the same whatever the prompts of another tenant say.

Two worlds are run that differ in the victim's tokens alone: its prompts have the same lengths, arrive at the same
times and share the same prefixes with each other, so that they hit as much of each other in both. The attacker sends
guesses of what the victim sent in the first world, and keeps all that it can see: hits and tokens of its own requests,
when each of its rows ran and what was decided about it, and how large the steps were, which is how long they took.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from airi._core import Admission

from .harness import Config, Executor, ModelSpec
from .pipeline import Pipeline

VICTIM, ATTACKER = 1, 2
PUBLIC = [9, 9, 9, 9, 9, 9, 9, 9]
BLOCK_SIZE = 4


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request of either tenant."""

    at_step: int
    tenant: int
    prompt: tuple[int, ...]
    public: int
    max_new: int


def traffic(seed: int, secret: int) -> list[Sent]:
    """The traffic of one world: the same for every `secret` but for the victim's tokens, which it translates."""
    rng = random.Random(seed)
    documents = [[rng.randint(1, 3) for _ in range(rng.randint(8, 40))] for _ in range(4)]
    sent = []
    for i in range(60):
        tenant = rng.choice([VICTIM, ATTACKER])
        document = rng.choice(documents)
        body = document[: rng.randint(1, len(document))]
        if tenant == VICTIM:
            body = [token + 10 * secret for token in body]
        head = PUBLIC if rng.random() < 0.5 else []
        sent.append(
            Sent(
                at_step=i + rng.randint(0, 8),
                tenant=tenant,
                prompt=tuple(head + body),
                public=len(head),
                max_new=rng.randint(1, 12),
            )
        )
    return sorted(sent, key=lambda s: s.at_step)


def salts(sent: Sent, *, strict: bool) -> tuple[tuple[int, bytes], ...]:
    return ((sent.public, b"tenant%d" % sent.tenant),) if strict else ()


def attackers_view(
    seed: int, secret: int, *, strict: bool, admission: Admission, blocks: int, serving: bool = False
) -> list[object]:
    """Runs one world and returns what the attacker sees of it, in order."""
    spec = ModelSpec(
        blocks=blocks, block_size=BLOCK_SIZE, max_model_len=64, max_num_seqs=4, max_batch_tokens=16,
        admission=admission,
    )  # fmt: skip
    config = Config(decision_records=1 << 14, fairness_gap_tokens=60)
    if serving:
        config = replace(config, locality_quantum_tokens=40, dedupe_steps=6)
    # A token that says nothing of the text: the victim's next prompts do not depend on what it was given.
    make = Pipeline if serving else Executor
    ex = make([spec], config, lambda request, draw, last: 5)
    if serving:
        ex.runtime.set_kv_quota(VICTIM, 0, 4)
        ex.runtime.set_kv_quota(ATTACKER, 0, 3)
    pending = traffic(seed, secret)
    own: set[int] = set()
    while pending or ex.runtime.has_work():
        while pending and pending[0].at_step <= len(ex.steps):
            sent = pending.pop(0)
            request = ex.accepted(
                list(sent.prompt), max_new=sent.max_new, tenant=sent.tenant, salts=salts(sent, strict=strict)
            )
            if sent.tenant == ATTACKER:
                own.add(request)
        if ex.step() is None and pending:
            pending[0] = replace(pending[0], at_step=len(ex.steps))
    seen: list[object] = []
    for step in ex.steps:
        rows = [(r.request, r.start, r.count) for r in step.rows if r.request in own]
        seen.append((step.now, step.info.num_tokens, step.info.num_rows, rows))
    seen += [(r, int(ex.events[r]["num_cached_tokens"]), ex.finished[r], ex.outputs[r]) for r in sorted(own)]
    records = ex.runtime.read_decisions(0, 1 << 14)[0]
    seen += [r.item() for r in records if int(r["request_id"]) in own]
    return seen


CASES = [(a, b) for a in (Admission.NO_EVICT, Admission.MAX_UTIL) for b in (24, 200)]


@pytest.mark.parametrize("serving", [False, True], ids=["synchronous", "as_served"])
@pytest.mark.parametrize(("admission", "blocks"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_strictly_isolated_the_attacker_sees_the_same_in_both_worlds(
    seed: int, admission: Admission, blocks: int, *, serving: bool
) -> None:
    """As served: one step ahead, by prefixes, with dedupe and quotas."""
    first, second = (
        attackers_view(seed, secret, strict=True, admission=admission, blocks=blocks, serving=serving)
        for secret in (0, 1)
    )
    assert first == second


@pytest.mark.parametrize("serving", [False, True], ids=["synchronous", "as_served"])
@pytest.mark.parametrize(("admission", "blocks"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_without_isolation_the_worlds_differ(
    seed: int, admission: Admission, blocks: int, *, serving: bool
) -> None:
    """Else the test above could not fail."""
    first, second = (
        attackers_view(seed, secret, strict=False, admission=admission, blocks=blocks, serving=serving)
        for secret in (0, 1)
    )
    assert first != second


def test_public_prefixes_are_shared_by_the_strictly_isolated() -> None:
    hits = []
    ex = Executor([ModelSpec(block_size=BLOCK_SIZE)])
    for tenant, body in ((VICTIM, [1] * 8), (ATTACKER, [1] * 8), (ATTACKER, [1] * 8)):
        request = ex.accepted(PUBLIC + body, max_new=1, tenant=tenant, salts=((len(PUBLIC), b"%d" % tenant),))
        ex.run()
        hits.append(int(ex.events[request]["num_cached_tokens"]))
    assert hits == [0, 8, 12]
