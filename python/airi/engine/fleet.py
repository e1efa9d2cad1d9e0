"""The models of a running engine: how they come, sleep, wake and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airi import _core
from airi.engine.loading import Addition, EngineProgress, HostedModel, Hosting, load_addition
from airi.engine.options import ModelOptions, SettledOptions
from airi.engine.tenants import Tenants
from airi.engine.warmup import learn_step_times, measure_apart, teach
from airi.errors import ConfigError

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
        self._saved: dict[int, Any] = {}
        self._coming: set[int] = set()
        self._moving: set[int] = set()

    @property
    def is_moving(self) -> bool:
        """Whether a model is on its way to another state."""
        return bool(self._moving)

    def state(self, index: int) -> _core.ModelState:
        """Where a model stands."""
        return self._runtime.state(index)

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
            raise ConfigError(f"{addition.hosted.name} cannot be added: {error}", field="models") from None
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
        """Takes a model's requests off the device, then lends its memory."""
        model = self.models[index]
        if not model.options.sleepable:
            raise ConfigError(f"{model.name} cannot sleep; sleepable is not set for it", field="model")
        self._change(index, lambda: self._runtime.sleep(index))

    def wake(self, index: int) -> None:
        """Takes a sleeping model's memory back, then lets its requests run."""
        self._change(index, lambda: self._runtime.wake(index))

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
            state = self.state(index)
            if state == _core.ModelState.MOVING_OUT:
                self._saved[index] = self._hosting.arena.save(*self._home(index))
                self._runtime.confirm_moved(index)
            elif state == _core.ModelState.MOVING_IN:
                self._bring_in(index)
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

    def _bring_in(self, index: int) -> None:
        if index not in self._coming:
            self._hosting.arena.restore(self._home(index)[0], self._saved.pop(index))
            self.models[index].runner.refresh()
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
