"""Models that share an arena, on a device that knows whose bytes lie where."""

from __future__ import annotations

from airi import _core

from .harness import Config, ModelSpec, Step, TokenRule, next_token
from .pipeline import Device, Pipeline

ZERO = int(_core.MemoryOpKind.ZERO)


class Owned(Device):
    """A device whose granules remember who wrote them: reading another's bytes shows."""

    def __init__(self, specs: list[ModelSpec], rule: TokenRule) -> None:
        super().__init__(specs, rule)
        self.owner: dict[int, object] = {}
        """By granule: the model whose KV it holds, or ("weights", model); absent: zeroes."""
        self.num_zeroed = 0

    def zero(self, granules: range) -> None:
        self.num_zeroed += 1
        for granule in granules:
            self.owner.pop(granule, None)

    def place(self, model: int, slot: int, position: int) -> tuple[int, int]:
        entry, offset = super().place(model, slot, position)
        assert self.owner.setdefault(entry, model) == model, "E5: bytes of another owner"
        return entry, offset


class SharedDevice(Owned):
    """One whose only memory operations are those that elastic models need."""

    def begin_ops(self, step: Step) -> None:
        for kind, _, start, _, count in step.ops:
            assert kind == ZERO
            self.zero(range(start, start + count))


class Elastic(Pipeline):
    """A Pipeline over elastic models that loads and saves weights when the runtime says so."""

    device: Owned

    def __init__(self, specs: list[ModelSpec], config: Config, rule: TokenRule = next_token) -> None:
        super().__init__(specs, config, rule)
        self.device = SharedDevice(self.specs, self.rule)
        self.saved: set[int] = set()
        for model in range(len(specs)):
            self.load(model)

    def home(self, model: int) -> range:
        first = self.runtime.weights_at(model)
        blocks = self.config.slab_blocks
        return range((first or 0) * blocks, ((first or 0) + self.specs[model].weight_slabs) * blocks)

    def load(self, model: int) -> None:
        for granule in self.home(model):
            self.device.owner[granule] = ("weights", model)

    def check_weights(self, model: int) -> None:
        assert all(self.device.owner.get(g) == ("weights", model) for g in self.home(model)), (
            "weights are gone"
        )

    def move_weights(self) -> None:
        """Does what every model's state asks for."""
        for model in range(len(self.specs)):
            state = self.runtime.state(model)
            if state == _core.ModelState.MOVING_OUT:
                self.check_weights(model)
                self.runtime.confirm_moved(model)
            elif state == _core.ModelState.MOVING_IN:
                self.load(model)
                self.runtime.confirm_moved(model)

    def add(self, spec: ModelSpec) -> int:
        model = self.runtime.add_model(spec.build())
        assert model == len(self.specs)
        self.specs.append(spec)
        self.tables.append({})
        self.device.tables.append({})
        return model

    def remove(self, model: int, *, drains: bool = False) -> None:
        self.runtime.remove_model(model, drains=drains)
        self._drain()

    def _execute(self, step: Step) -> list[int]:
        tokens = super()._execute(step)
        self.check_weights(step.info.model)
        return tokens

    def step(self, **kwargs: object) -> Step | None:
        self.move_weights()
        done = super().step(**kwargs)
        if done is None:
            self.now += 100
        return done

    def owned(self, model: int) -> int:
        return int(self.runtime.stats()[model].capacity) // self.config.slab_blocks
