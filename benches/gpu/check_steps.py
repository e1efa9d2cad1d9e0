"""What a step begins with: its plan, the changes to the block table, the tokens that the step before sampled."""

from __future__ import annotations

import numpy as np
import torch

from airi.kernels.attention_plan import AttentionPlan, plan_on_host
from airi.kernels.plan import plan_attention
from airi.kernels.tokens import apply_table_deltas, fill_tokens
from benches.gpu.bench import Bench, Case, Row
from benches.gpu.check_attention import seeds
from benches.gpu.checks import Checks

_POISON = 0x5A5A5A5A
_LONG = (0, 1, 127, 128, 129, 1023, 1024, 1025, 4097, 65_537, 200_000)
_QUERIES = (0, 1, 1, 1, 2, 33, 64, 65, 2048)
_PENDING = 4


def cases(bench: Bench) -> list[Case]:
    del bench
    return [
        Case(name="plan_attention", run=_plan, seconds=10),
        Case(name="apply_table_deltas", run=_deltas, seconds=5),
        Case(name="fill_tokens", run=_fill, seconds=5),
    ]


def _plan(bench: Bench) -> list[Row]:
    """Both modes, with and without a window, against numpy; also with too little room."""
    checks = Checks()
    rows = 7 if bench.toy else 256
    for seed in seeds(bench):
        draw = np.random.default_rng(seed)
        queries = draw.choice(_QUERIES, rows)
        before = np.where(draw.random(rows) < 0.3, draw.choice(_LONG, rows), draw.integers(0, 9000, rows))
        lens = np.where(queries > 0, queries + before, 0).astype(np.int32)
        starts = np.concatenate([[0], queries.cumsum()]).astype(np.int32)
        for mode in ("invariant", "fast"):
            for window in (0, 100):
                for room in (1 << 15, 64):
                    label = f"seed {seed} {mode} window {window} room {room}"
                    _one_plan(checks, bench, label, (starts, lens), mode=mode, window=window, room=room)
    return checks.rows()


def _one_plan(
    checks: Checks,
    bench: Bench,
    label: str,
    batch: tuple[np.ndarray, np.ndarray],
    *,
    mode: str,
    window: int,
    room: int,
) -> None:
    options = {"num_kv_heads": 8, "tile_queries": 64, "num_sms": 132, "mode": mode, "window": window}
    starts, lens = batch
    wanted = plan_on_host(starts, lens, max_items=room, max_tiles=room, **options)
    plan = AttentionPlan.allocate(bench.device, len(lens), room, room)
    for buffer in (plan.items, plan.row_items, plan.tiles, plan.counts):
        buffer.fill_(_POISON)
    place = bench.device
    plan_attention(torch.from_numpy(starts).to(place), torch.from_numpy(lens).to(place), plan, **options)
    items = int(wanted.counts[0])
    for name, found, expected in (
        ("counts", plan.counts, wanted.counts),
        ("items", plan.items[:items], wanted.items),
        ("row_items", plan.row_items[: len(lens) + 1], wanted.row_items),
        ("tiles", plan.tiles, wanted.tiles),
    ):
        expected_here = torch.from_numpy(np.ascontiguousarray(expected, np.int32)).to(place)
        checks.same_bits(f"{label} {name}", found, expected_here)
    checks.true(
        f"{label} beyond", ok=bool((plan.items[items:] == _POISON).all()), else_say="items were written"
    )


def _deltas(bench: Bench) -> list[Row]:
    """The later of two changes to one place stands; what lies outside of the table is left out."""
    checks = Checks()
    most = 150 if bench.toy else 5000
    for seed in seeds(bench):
        draw = np.random.default_rng(seed)
        deltas = np.stack(
            [draw.integers(-1, 41, most), draw.integers(-1, 9, most), draw.integers(0, 1 << 20, most)], 1
        ).astype(np.int32)
        on_device = torch.from_numpy(deltas).to(bench.device)
        for count in (0, 1, 64, 65, most, most + 9):
            wide = torch.full((40, 12), 7, dtype=torch.int32, device=bench.device)
            wanted = np.full((40, 12), 7, np.int32)
            for slot, column, entry in deltas[:count].tolist():
                if 0 <= slot < 40 and 0 <= column < 8:
                    wanted[slot, column] = entry
            counted = torch.tensor([count], dtype=torch.int32, device=bench.device)
            apply_table_deltas(wide[:, :8], on_device, counted)
            checks.same_bits(f"seed {seed} {count} changes", wide, torch.from_numpy(wanted).to(bench.device))
    return checks.rows()


def _fill(bench: Bench) -> list[Row]:
    checks = Checks()
    for seed in seeds(bench):
        draw = np.random.default_rng(seed)
        for rows in (1, 128, 300):
            queries = draw.integers(0, 3, rows)
            starts = np.concatenate([[0], queries.cumsum()]).astype(np.int32)
            slots = draw.permutation(rows).astype(np.int32)
            flags = draw.integers(0, 256, rows).astype(np.uint8)
            last = draw.integers(0, 1 << 20, rows).astype(np.int32)
            wanted = np.full(2 * rows + 1, -7, np.int32)
            for row in np.flatnonzero((queries > 0) & (flags & _PENDING != 0)):
                wanted[starts[row]] = last[slots[row]]
            tokens = torch.full((2 * rows + 1,), -7, dtype=torch.int32, device=bench.device)
            arrays = (torch.from_numpy(x).to(bench.device) for x in (last, starts, slots, flags))
            fill_tokens(tokens, *arrays, _PENDING)
            checks.same_bits(f"seed {seed} {rows} rows", tokens, torch.from_numpy(wanted).to(bench.device))
    return checks.rows()
