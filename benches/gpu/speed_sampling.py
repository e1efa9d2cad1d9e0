"""From logits to tokens, over a vocabulary of 152,064."""

from __future__ import annotations

import functools

import torch

from airi.kernels.sample import SampleWorkspace, sample
from benches.gpu import roofline
from benches.gpu.bench import Bench, Case, Row, timed_row
from benches.gpu.check_sampling import Drawn, compare, drawn
from benches.gpu.checks import Checks
from benches.gpu.filters import Filters
from benches.gpu.timing import Call, rotations, time_calls

_VOCAB = 152_064
_USUAL = Filters(temperature=0.7, top_k=50, top_p=0.9)
_GREEDY = Filters(temperature=0.0)


def cases(bench: Bench) -> list[Case]:
    def case(name: str, rows: int, filters: Filters) -> Case:
        return Case(
            name=name, run=functools.partial(_measure, goal=name, rows=rows, filters=filters), seconds=10
        )

    if bench.toy:
        return [case("sample toy", 2, _USUAL)]
    return [
        case("sample top-k top-p B64", 64, _USUAL),
        case("sample top-k top-p B256", 256, _USUAL),
        case("sample greedy B256", 256, _GREEDY),
        case("sample temperature B256", 256, Filters()),
    ]


def _measure(bench: Bench, *, goal: str, rows: int, filters: Filters) -> list[Row]:
    vocab = 300 if bench.toy else _VOCAB
    work = roofline.sample(rows, vocab)
    workspace = SampleWorkspace.allocate(bench.device, rows, vocab)
    calls: list[Call] = []
    for i in range(rotations(work.nbytes, bench.device)):
        mixed = drawn(bench, rows, vocab, seed=i)
        what = Drawn(mixed.logits, [filters] * rows, mixed.seeds, mixed.draws)
        if i == 0:
            checks = Checks()
            # A few rows: the specification sorts, on the host.
            few = slice(0, 8)
            part = Drawn(what.logits[few], what.filters[few], what.seeds[few], what.draws[few])
            compare(checks, goal, part)
            checks.rows()
        tokens = torch.zeros(rows, dtype=torch.int32, device=bench.device)
        status = torch.zeros(rows, dtype=torch.uint8, device=bench.device)
        out = {"out_tokens": tokens, "out_status": status, "workspace": workspace}
        calls.append(functools.partial(sample, what.logits, **what.columns(), **out))
    return [timed_row(f"V{vocab}", time_calls(calls), work, goal=goal)]
