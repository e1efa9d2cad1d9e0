"""The models of a running engine: how they come, sleep, wake and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airi import _core
from airi.engine.arena import format_bytes
from airi.engine.loading import Addition, EngineProgress, HostedModel, Hosting, load_addition
from airi.engine.options import ModelOptions, SettledOptions
from airi.engine.tenants import Tenants
from airi.engine.warmup import learn_step_times, measure_apart, teach
from airi.errors import ConfigError, MemoryBudgetError

__all__ = ["Fleet"]

_LEAVING = (_core.ModelState.REMOVING, _core.ModelState.REMOVED)
_AWAY = (_core.ModelState.ASLEEP, _core.ModelState.REMOVED)
_SETTLED = (_core.ModelState.AWAKE, _core.ModelState.ASLEEP, _core.ModelState.REMOVED)


class Fleet:
    """Tells the core what becomes of models, and moves their weights when its states say so.

    Weights of a sleeping model wait in memory of their own: the host tier of a device that is a CPU.
    *Thread safety*: none; the engine's thread owns it.
    *Invariant*: a model's weights are in its home slabs, or saved, or were never in the arena.
    """

    def __init__(self, options: SettledOptions, hosting: Hosting, tenants: Tenants) -> None:
        self._options = options
        self._tenants = tenants
        self._hosting = hosting
        self._runtime = hosting.runtime
        self.models: list[HostedModel] = list(hosting.models)
        """By the core's index; those that were removed stay, without a runner's model."""
        self._rooms: dict[int, Any] = {}
        """Of models that are told to sleep, for their weights."""
        self._saved: dict[int, Any] = {}
        """Such rooms, with the weights of models that sleep."""
        self._is_released = False
        """Whether all sleep and the arena's memory is the system's."""
        self._failures: dict[int, MemoryBudgetError] = {}
        """Of models that were woken and sleep on."""
        self._coming: set[int] = set()
        self._moving: set[int] = set()

    @property
    def is_moving(self) -> bool:
        """Whether a model is on its way to another state."""
        return bool(self._moving)

    def state(self, index: int) -> _core.ModelState:
        """Where a model stands."""
        return self._runtime.state(index)

    def wake_failure(self, index: int) -> MemoryBudgetError | None:
        """Why the latest wake has left a model asleep."""
        return self._failures.get(index)

    def all_asleep(self, stats: Sequence[_core.ModelStats]) -> bool:
        """Whether every request that these counters of the core tell of is of a model that sleeps."""
        return not self._moving and all(
            self.state(index) == _core.ModelState.ASLEEP or not (model.running or model.waiting)
            for index, model in enumerate(stats)
        )

    def is_gone(self, index: int) -> bool:
        """Whether requests for the model are no longer taken."""
        return self.state(index) in _LEAVING

    def load(self, model: ModelOptions, progress: EngineProgress | None) -> Addition:
        """Loads a model that is to be added next. Raises CheckpointError or ConfigError; then nothing has changed."""
        if not self._hosting.is_elastic:
            raise ConfigError(
                "models can be added where memory moves between them: give kv_min, kv_max or sleepable to one",
                field="models",
            )
        return load_addition(self._options, self._hosting, model, len(self.models), progress)

    def add(self, addition: Addition) -> None:
        """Measures a loaded model's steps, and makes place for it. Raises ConfigError; then nothing has changed."""
        measured = measure_apart(addition.hosted, self._options, self._hosting.platform)
        if not addition.hosted.weight_slabs:
            self._set_up(addition.hosted, None)
        self._tenants.yield_all()
        try:
            index = self._runtime.add_model(addition.settings)
            self.models.append(addition.hosted)
        except ValueError as error:
            slab = format_bytes(self._hosting.plan.slab_bytes)
            raise ConfigError(
                f"{addition.hosted.name} cannot be added: {error}; a slab has {slab}", field="models"
            ) from None
        finally:
            self._share_out()
        teach(self._runtime, index, measured)
        self._coming.add(index)
        self._start(index)

    def remove(self, index: int, *, drains: bool) -> None:
        """Takes no more requests of a model; it goes when its last one has ended."""
        self._change(index, lambda: self._runtime.remove_model(index, drains=drains))
        self._share_out()

    def sleep(self, index: int) -> None:
        """Takes a model's requests off the device, then lends its memory. Raises ConfigError, or MemoryBudgetError
        where the host has no room for its weights; then nothing has changed."""
        model = self.models[index]
        if not model.options.sleepable:
            raise ConfigError(f"{model.name} cannot sleep; sleepable is not set for it", field="model")
        if self.state(index) == _core.ModelState.AWAKE:
            self._rooms[index] = self._hosting.arena.room(self._home(index)[1])
        self._change(index, lambda: self._runtime.sleep(index))

    def wake(self, index: int) -> None:
        """Takes a sleeping model's memory back, then lets its requests run. Raises ConfigError.

        Where the device has too little memory it sleeps on, and can be woken again: MemoryBudgetError, or
        `wake_failure` where that shows later.
        """
        self._failures.pop(index, None)
        self._change(index, lambda: self._runtime.wake(index))
        if index in self._failures:
            raise self._failures[index]

    def _change(self, index: int, change: Callable[[], None]) -> None:
        try:
            change()
        except ValueError as error:
            raise ConfigError(f"{self.models[index].name}: {error}", field="model") from None
        self._start(index)

    def _start(self, index: int) -> None:
        self._moving.add(index)
        self.advance()

    def _share_out(self) -> None:
        self._tenants.share_out(model for model in self.models if not self.is_gone(model.index))

    def advance(self) -> None:
        """Moves what the core says may move now. To be called after every commit."""
        for index in sorted(self._moving):
            if self.state(index) == _core.ModelState.MOVING_IN:
                self._move_in(index)
            state = self.state(index)
            if state == _core.ModelState.MOVING_OUT:
                self._save(index)
                self._runtime.confirm_moved(index)
            elif state == _core.ModelState.REMOVED:
                self.models[index].runner.close()
                self._saved.pop(index, None)
                self._share_out()  # the others can count on more
            if self.state(index) in _SETTLED:
                self._coming.discard(index)
                self._moving.remove(index)

    def release_arena(self) -> None:
        """Gives the arena's memory back to the system; raises ConfigError where a model is awake."""
        for model in self.models:
            if self.state(model.index) not in _AWAY:
                raise ConfigError(
                    f"{model.name} is not asleep; memory is released while all sleep", field="model"
                )
        self._hosting.arena.release()
        self._is_released = True

    def settle(self, progress: EngineProgress | None) -> None:
        """Puts the weights of the first models where they stay, measures steps, and prepares for the first one."""
        for model in self.models:
            if not model.weight_slabs:
                self._set_up(model, progress)
        for model in self.models:
            # In memory that weights are placed in afterwards.
            learn_step_times(self._runtime, model, self._options, self._hosting.arena)
        for model in self.models:
            if model.weight_slabs:
                self._place(model)
                self._set_up(model, progress)

    def _save(self, index: int) -> None:
        if index in self._saved:  # it was woken, and did not get as far as to need them
            return
        room = self._rooms.pop(index)
        self._hosting.arena.save(self._home(index)[0], room)
        self._saved[index] = room

    def _move_in(self, index: int) -> None:
        """Brings a model's weights in, or has it sleep on where there is no memory for that."""
        try:
            self._bring_in(index)
        except MemoryBudgetError as error:
            if index not in self._saved:
                raise
            name = self.models[index].name
            self._failures[index] = MemoryBudgetError(f"{name} stays asleep: {error}", field="model")
            self._runtime.sleep(index)
            if self._is_released:
                self._hosting.arena.release()
        else:
            self._is_released = False
            self._runtime.confirm_moved(index)

    def _bring_in(self, index: int) -> None:
        if index not in self._coming:
            arena = self._hosting.arena
            arena.restore(self._home(index)[0], self._saved[index])
            self.models[index].runner.refresh()
            arena.free(self._saved.pop(index))
        elif self.models[index].weight_slabs:
            self._place(self.models[index])
            self._set_up(self.models[index], None)

    def _place(self, model: HostedModel) -> None:
        model.runner.place_weights(self._hosting.arena.part(*self._home(model.index)))

    def _set_up(self, model: HostedModel, progress: EngineProgress | None) -> None:
        def on_graphs(done: int, total: int) -> None:
            if progress is not None:
                progress(model.name, "graphs", done, total)

        model.runner.set_up(on_graphs)

    def _home(self, index: int) -> tuple[int, int]:
        return self._hosting.home(index, self.models[index])
