"""A device that runs steps in order, over real blocks, and an executor that plans each step one ahead of it."""

from __future__ import annotations

from collections import deque

from airi import _core

from .harness import Config, Executor, ModelSpec, Step, TokenRule, next_token


class Device:
    """What a device does with steps, in the order it gets them: it keeps tables, writes KV, samples.

    The KV of a position is the token it was computed from, and the past it was computed with must be there:
    a block handed on too early, or published with what it does not hold, shows.
    """

    def __init__(self, specs: list[ModelSpec], rule: TokenRule) -> None:
        self.specs = specs
        self.rule = rule
        self.tables: list[dict[tuple[int, int], int]] = [{} for _ in specs]
        self.kv: dict[tuple[int, int], int] = {}
        self.last: dict[tuple[int, int], int] = {}

    def run(self, step: Step, texts: dict[int, list[int]], ended: dict[int, _core.FinishReason]) -> list[int]:
        """The tokens of the rows that sample."""
        model = step.info.model
        self.begin_ops(step)
        for slot, column, entry in step.deltas:
            self.tables[model][slot, column] = entry
        sampled: dict[int, int] = {}
        for row in step.rows:
            tokens = [self.last[model, row.slot]] if row.pending else row.tokens
            for i, token in enumerate(tokens):
                self.kv[self.place(model, row.slot, row.start + i)] = token
            # A row that turned out to be for nothing writes over nobody's blocks, but has no past to speak of.
            if row.request not in ended:
                past = [self.kv[self.place(model, row.slot, i)] for i in range(row.start + row.count)]
                assert past == texts[row.request][: len(past)], "the KV of a row is not that of its text"
            if row.samples:
                sampled[row.slot] = self.rule(row.request, row.draw, tokens[-1])
        for slot, token in sampled.items():
            self.last[model, slot] = token
        return [sampled[r.slot] for r in step.rows if r.samples]

    def begin_ops(self, step: Step) -> None:
        """Memory operations come before the batch. Zeroed slabs are read by nobody."""
        assert all(kind == _core.MemoryOpKind.ZERO for kind, *_ in step.ops)

    def place(self, model: int, slot: int, position: int) -> tuple[int, int]:
        size = self.specs[model].block_size
        return self.tables[model][slot, position // size], position % size


class Pipeline(Executor):
    """An Executor of which one step is always ahead: step t + 1 is planned before step t is committed."""

    def __init__(
        self,
        models: list[ModelSpec] | None = None,
        config: Config | None = None,
        rule: TokenRule = next_token,
    ) -> None:
        config = config or Config()
        config.steps_ahead = 1
        super().__init__(models, config, rule)
        self.device = Device(self.specs, rule)
        self.in_flight: deque[Step] = deque()
        self.wasted: dict[int, int] = {}

    def plan(self) -> Step | None:
        step = super().plan()
        self._drain()  # what was cancelled or late gets no token of the step in flight
        if step is not None:
            self.in_flight.append(step)
        return step

    def step(self, **kwargs: object) -> Step | None:
        """Plans one step and commits the one before it; what is planned, or committed where nothing is."""
        planned = self.plan()
        if len(self.in_flight) == 2 or (planned is None and self.in_flight):
            oldest = self.in_flight.popleft()
            self.commit(oldest, **kwargs)  # type: ignore[arg-type]
            return planned or oldest
        return planned

    def run(self, *, limit: int = 100_000) -> int:
        """As Executor.run; a step in flight may be left when the last request has ended: rows for nothing."""
        count = super().run(limit=limit)
        while self.in_flight:
            self.commit(self.in_flight.popleft())
        return count

    def _execute(self, step: Step) -> list[int]:
        for row in step.rows:
            if row.request in self.finished:
                self.wasted[row.request] = self.wasted.get(row.request, 0) + 1
        return self.device.run(step, self.texts, self.finished)

    def _check(self, step: Step) -> None:
        """What Executor checks, with what steps in flight will have added to the texts."""
        spec = self.specs[step.info.model]
        before = [row for planned in self.in_flight for row in planned.rows if row.samples]
        assert len({r.slot for r in step.rows}) == len(step.rows), "two rows share a slot"
        assert step.info.num_tokens <= max(spec.max_batch_tokens, step.info.num_decodes), "C1"
        for row in step.rows:
            text = self.texts[row.request]
            pending = sum(row.request == other.request for other in before)
            assert row.pending == (row.start >= len(text)) == (pending > 0)
            assert row.tokens == ([-1] if pending else text[row.start : row.start + row.count])
            assert row.samples == (row.start + row.count == len(text) + pending)
            if row.samples:
                assert row.draw == len(self.outputs[row.request]) + pending
            blocks = -(-(row.start + row.count) // spec.block_size)
            assert len(set(self.entries(step.info.model, row.slot, blocks))) == blocks
