"""A deterministic executor around airi._core.Runtime, for tests: it owns the buffers, mirrors the block
tables from their deltas and answers every row that samples with a token that depends on its text alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from airi import _core

TokenRule = Callable[[int, int, int], int]
"""(request id, draw index, token fed last) -> sampled token."""


def next_token(request_id: int, draw: int, last: int) -> int:
    """A token that any two runs agree on, whatever the batching: never 0, which tests use as a stop id."""
    return 1 + (last * 31 + draw * 7 + request_id * 0) % 997


@dataclass(kw_only=True)
class Row:
    """One row of an executed step."""

    request: int
    slot: int
    start: int
    count: int
    samples: bool
    first: bool
    pending: bool
    draw: int
    tokens: list[int]


@dataclass(kw_only=True)
class Step:
    """One executed step, as the runner saw it."""

    info: _core.StepInfo
    now: int
    rows: list[Row]
    deltas: list[tuple[int, int, int]]
    ops: list[tuple[int, int, int, int, int]]


def make_buffers(
    models: list[_core.ModelConfig], *, rows: int, tokens: int, spare: int, ops: int = 64
) -> _core.StepBuffers:
    deltas = max(m.max_deltas for m in models) + spare
    return _core.StepBuffers(
        request_ids=np.zeros(rows, np.int64),
        slots=np.zeros(rows, np.int32),
        query_start=np.zeros(rows + 1, np.int32),
        seq_lens=np.zeros(rows, np.int32),
        row_flags=np.zeros(rows, np.uint8),
        draw_index=np.zeros(rows, np.int32),
        tokens=np.zeros(tokens, np.int32),
        positions=np.zeros(tokens, np.int32),
        deltas=np.zeros((deltas, 3), np.int32),
        ops=np.zeros((ops, 5), np.int64),
    )


@dataclass(kw_only=True)
class ModelSpec:
    """The settings of one model in a test; blocks are one granule each."""

    blocks: int = 64
    block_size: int = 4
    max_model_len: int = 64
    max_num_seqs: int = 8
    max_batch_tokens: int = 16
    device_weight: float = 1.0
    admission: _core.Admission = _core.Admission.NO_EVICT
    watermark: float = 0.0
    prefix_caching: bool = True
    max_prefill_chunk: int | None = None
    min_slabs: int | None = None
    """With it the model's slabs move, and it has no blocks of its own."""
    max_slabs: int | None = None
    slab_weight: float = 1.0
    weight_slabs: int = 0
    targets: tuple[tuple[int | None, int | None], ...] = ()
    """Per band, microseconds to the first token and between tokens."""
    itl_credit: float = 0.0
    whole_prompts: bool = False

    @classmethod
    def whole(cls, *, max_model_len: int, more_tokens: int = 0, **settings: Any) -> ModelSpec:
        """Of a model whose prompts are computed in one step each."""
        return cls(
            block_size=max_model_len,
            max_model_len=max_model_len,
            max_batch_tokens=max_model_len + more_tokens,
            prefix_caching=False,
            whole_prompts=True,
            **settings,
        )

    def build(self) -> _core.ModelConfig:
        return _core.ModelConfig(
            block_size=self.block_size,
            bytes_per_block=_core.GRANULE_BYTES,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_batch_tokens=self.max_batch_tokens,
            num_slabs=self.blocks if self.min_slabs is None else None,
            min_slabs=self.min_slabs,
            max_slabs=self.max_slabs,
            slab_weight=self.slab_weight,
            weight_slabs=self.weight_slabs,
            device_weight=self.device_weight,
            admission=self.admission,
            watermark=self.watermark,
            enable_prefix_caching=self.prefix_caching,
            max_prefill_chunk=self.max_prefill_chunk,
            targets=self.targets,
            itl_credit=self.itl_credit,
            whole_prompts=self.whole_prompts,
        )


@dataclass(kw_only=True)
class Config:
    """The settings of a runtime in a test."""

    max_queued: int = 4096
    num_bands: int = 1
    aging_us: int | None = None
    w_prompt: int = 1
    w_decode: int = 2
    w_hit: int = 0
    bypass_tokens: int = 0
    max_preemptions: int = 3
    quantum_us: int = 10_000
    min_residency_us: int = 0
    max_borrow_us: int = 0
    fairness_gap_tokens: int | None = None
    steps_ahead: int = 0
    decision_records: int = 0
    kv_event_records: int = 0
    locality_quantum_tokens: int | None = None
    arena_slabs: int | None = None
    """None: what the models have blocks for."""
    slab_blocks: int = 1
    slab_hysteresis_us: int = 0
    host_blocks: int = 0
    disk_blocks: int = 0
    max_ops: int = 64
    store_on_reuse: int = 2
    load_timeout_us: int = 1_000_000
    host_bytes_per_us: float = 8000.0
    disk_bytes_per_us: float = 1000.0
    dedupe_steps: int = 0

    def build(self, total_blocks: int) -> _core.RuntimeConfig:
        return _core.RuntimeConfig(
            arena_bytes=_core.GRANULE_BYTES * self.slab_blocks * (self.arena_slabs or total_blocks),
            slab_bytes=_core.GRANULE_BYTES * self.slab_blocks,
            slab_hysteresis_us=self.slab_hysteresis_us,
            hash_key=bytes(range(16)),
            max_queued=self.max_queued,
            num_bands=self.num_bands,
            aging_us=self.aging_us,
            w_prompt=self.w_prompt,
            w_decode=self.w_decode,
            w_hit=self.w_hit,
            bypass_tokens=self.bypass_tokens,
            max_preemptions=self.max_preemptions,
            quantum_us=self.quantum_us,
            min_residency_us=self.min_residency_us,
            max_borrow_us=self.max_borrow_us,
            fairness_gap_tokens=self.fairness_gap_tokens,
            steps_ahead=self.steps_ahead,
            decision_records=self.decision_records,
            kv_event_records=self.kv_event_records,
            locality_quantum_tokens=self.locality_quantum_tokens,
            host_bytes=self.host_blocks * _core.GRANULE_BYTES,
            disk_bytes=self.disk_blocks * _core.GRANULE_BYTES,
            store_on_reuse=self.store_on_reuse,
            load_timeout_us=self.load_timeout_us,
            host_bytes_per_us=self.host_bytes_per_us,
            disk_bytes_per_us=self.disk_bytes_per_us,
            dedupe_steps=self.dedupe_steps,
        )


class Executor:
    """Drives a Runtime as an engine would, and checks what any engine relies on at every step."""

    def __init__(
        self,
        models: list[ModelSpec] | None = None,
        config: Config | None = None,
        rule: TokenRule = next_token,
        *,
        spare_deltas: int = 0,
    ) -> None:
        self.specs = models or [ModelSpec()]
        self.config = config or Config()
        self.rule = rule
        configs = [m.build() for m in self.specs]
        rows = max(m.max_num_seqs for m in self.specs)
        tokens = max(rows, max(m.max_batch_tokens for m in self.specs))
        self.buffers = [
            make_buffers(configs, rows=rows, tokens=tokens, spare=spare_deltas, ops=self.config.max_ops)
            for _ in range(2)
        ]
        self.runtime = _core.Runtime(
            self.config.build(sum(m.blocks for m in self.specs)),
            configs,
            self.buffers,
        )
        self.now = 0
        self.next_id = 0
        self.tables: list[dict[int, dict[int, int]]] = [{} for _ in self.specs]
        self.texts: dict[int, list[int]] = {}
        self.outputs: dict[int, list[int]] = {}
        self.finished: dict[int, _core.FinishReason] = {}
        self.events: dict[int, npt.NDArray[np.void]] = {}
        self.steps: list[Step] = []

    def submit(
        self,
        tokens: list[int],
        *,
        max_new: int | None = 4,
        request_id: int | None = None,
        model: int = 0,
        tenant: int = 0,
        band: int = 0,
        min_new: int = 0,
        stop: tuple[int, ...] = (),
        arrival: int | None = None,
        deadline: int | None = None,
        salts: tuple[tuple[int, bytes], ...] = (),
        compute_all: bool = False,
    ) -> tuple[int, _core.Admit]:
        if request_id is None:
            request_id = self.next_id
            self.next_id += 1
        admit = self.runtime.submit(
            request_id=request_id,
            model=model,
            tenant=tenant,
            band=band,
            tokens=np.array(tokens, np.int32),
            max_new_tokens=max_new,
            min_new_tokens=min_new,
            stop_ids=np.array(stop, np.int32),
            arrival_us=self.now if arrival is None else arrival,
            deadline_us=deadline,
            salts=list(salts),
            compute_all=compute_all,
        )
        if admit == _core.Admit.ACCEPTED:
            self.texts[request_id] = list(tokens)
            self.outputs[request_id] = []
        return request_id, admit

    def accepted(self, tokens: list[int], **kwargs: object) -> int:
        """submit() that must be accepted; returns the request's id."""
        request_id, admit = self.submit(tokens, **kwargs)  # type: ignore[arg-type]
        assert admit == _core.Admit.ACCEPTED, admit
        return request_id

    def plan(self) -> Step | None:
        """Calls step() and reads the buffers as a runner does."""
        info = self.runtime.step(self.now)
        if info is None:
            self._drain()
            return None
        buffers = self.buffers[info.buffer]
        table = self.tables[info.model]
        deltas = [(int(s), int(c), int(e)) for s, c, e in buffers.deltas[: info.num_deltas]]
        for slot, column, entry in deltas:
            table.setdefault(slot, {})[column] = entry
        rows = []
        for i in range(info.num_rows):
            begin, end = int(buffers.query_start[i]), int(buffers.query_start[i + 1])
            flags = int(buffers.row_flags[i])
            start = int(buffers.positions[begin])
            assert list(buffers.positions[begin:end]) == list(range(start, start + end - begin))
            assert int(buffers.seq_lens[i]) == start + end - begin
            rows.append(
                Row(
                    request=int(buffers.request_ids[i]),
                    slot=int(buffers.slots[i]),
                    start=start,
                    count=end - begin,
                    samples=bool(flags & _core.ROW_SAMPLE),
                    first=bool(flags & _core.ROW_FIRST),
                    pending=bool(flags & _core.ROW_PENDING),
                    draw=int(buffers.draw_index[i]),
                    tokens=[int(t) for t in buffers.tokens[begin:end]],
                )
            )
        ops = [(int(k), int(i), int(f), int(t), int(n)) for k, i, f, t, n in buffers.ops[: info.num_ops]]
        step = Step(info=info, now=self.now, rows=rows, deltas=deltas, ops=ops)
        self._check(step)
        self.steps.append(step)
        return step

    def commit(self, step: Step, *, device_us: int = 100, status: dict[int, int] | None = None) -> None:
        """Answers every row; `status` maps request ids to a RowStatus other than OK."""
        status = status or {}
        tokens = self._execute(step)
        for row, token in zip((r for r in step.rows if r.samples), tokens, strict=True):
            if row.request not in status and row.request not in self.finished:
                self.outputs[row.request].append(token)
                self.texts[row.request].append(token)
        self.runtime.commit(
            step.info.step_id,
            np.array(tokens, np.int32),
            np.array([1 if r.samples else 0 for r in step.rows], np.int32),
            np.array([status.get(r.request, 0) for r in step.rows], np.uint8),
            device_us,
        )
        self.now += device_us
        self._drain()

    def _execute(self, step: Step) -> list[int]:
        """The tokens of the rows that sample."""
        return [self.rule(r.request, r.draw, r.tokens[-1]) for r in step.rows if r.samples]

    def step(self, **kwargs: object) -> Step | None:
        planned = self.plan()
        if planned is not None:
            self.commit(planned, **kwargs)  # type: ignore[arg-type]
        return planned

    def run(self, *, limit: int = 100_000) -> int:
        """Steps until every request has ended; returns how many steps it took."""
        for count in range(limit):
            if not self.runtime.has_work():
                return count
            self.step()
        raise AssertionError(f"requests are still alive after {limit} steps")

    def entries(self, model: int, slot: int, blocks: int) -> list[int]:
        return [self.tables[model][slot][i] for i in range(blocks)]

    def _check(self, step: Step) -> None:
        spec = self.specs[step.info.model]
        slots = [r.slot for r in step.rows]
        assert len(set(slots)) == len(slots), "two rows share a slot"
        assert all(0 <= s < spec.max_num_seqs for s in slots)
        assert sum(r.count for r in step.rows) == step.info.num_tokens
        assert step.info.num_tokens <= max(spec.max_batch_tokens, step.info.num_decodes), "C1"
        for row in step.rows:
            if spec.whole_prompts and row.start == 0:
                assert row.count == len(self.texts[row.request]), "a part of a prompt"
            text = self.texts[row.request]
            assert row.tokens == text[row.start : row.start + row.count], "the row's tokens are not its text"
            assert row.samples == (row.start + row.count == len(text))
            if row.samples:
                assert row.draw == len(self.outputs[row.request])
            blocks = -(-(row.start + row.count) // spec.block_size)
            assert len(set(self.entries(step.info.model, row.slot, blocks))) == blocks

    def _drain(self) -> None:
        for event in self.runtime.drain_events():
            request_id = int(event["request_id"])
            assert request_id not in self.finished, "a request ended twice"
            self.finished[request_id] = _core.FinishReason(int(event["reason"]))
            self.events[request_id] = event
            assert event["num_generated_tokens"] == len(self.outputs[request_id])
