"""The versions of models in a gateway's engine: how they come, answer and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from airi.engine.options import ModelOptions
from airi.errors import AiriError, EngineDeadError, ModelNotFoundError
from airi.gateway.models import ModelRegistry, ServedModel
from airi.lifecycle import Version
from airi.sampling_params import SamplingParams
from airi.transport import EngineHandle, GenerateRequest, ModelInfo, ModelStats

__all__ = ["VersionFleet"]

log = logging.getLogger("airi.gateway")

_LOOK_S = 0.1
_RESTART_S = 120.0
"""How long an engine that has died may take to be back."""


class VersionFleet:
    """The versions that an engine holds and that this gateway can ask: `airi.lifecycle.controller.Fleet`.

    *Thread safety*: none; one event loop.
    *Invariant*: a version is given to calls only once it has its text side, its masks, and has made a token.
    """

    def __init__(
        self,
        client: EngineHandle,
        models: ModelRegistry,
        *,
        names: Collection[str],
        versions: Collection[str],
        sleepable: Collection[str] = (),
        serve: Callable[[ModelInfo], ServedModel],
        options: Callable[[Version], Awaitable[ModelOptions]],
        tell: Callable[[], Awaitable[None]],
        warm: Callable[[ServedModel], Awaitable[None]] | None = None,
    ) -> None:
        """`names`: of the models that have versions, of which some are `sleepable`, and `versions` those.

        `serve` makes a text side, in a thread; `options`: how a version runs; `tell` tells the engine what it must know
        of the models it has: forbidden texts; `warm`: what else is done before a call is given to a version.
        """
        self._client, self._models, self._names = client, models, frozenset(names)
        self._versions, self._sleepable = frozenset(versions), frozenset(sleepable)
        self._serve, self._options, self._tell, self._fill = serve, options, tell, warm
        self._moving: set[str] = set()
        self._broken: set[str] = set()

    def loaded(self) -> frozenset[str]:
        """Names of the versions that can be asked or sleep; of an engine that starts again those that it had."""
        held = {info.name for info in self._client.models}
        served = frozenset(m.engine_name for m in self._models.all_versions if m.engine_name in held)
        return served | (self.asleep() & held)

    def asleep(self) -> frozenset[str]:
        """Names of the versions that sleep in the engine, by its own counters."""
        stats = self._client.stats
        models = () if stats is None else stats.models
        return frozenset(
            each.name
            for each in models
            if each.state == "asleep" and each.name.rpartition("@")[0] in self._names
        )

    def can_sleep(self, version: Version) -> bool:
        """Whether the config says so of its model."""
        return version.model in self._sleepable

    def knows(self, version: Version) -> bool:
        """Whether this gateway's config has it."""
        return version.name in self._versions

    async def load(self, version: Version) -> None:
        """Loads a version, or wakes it, and has it make a token. Raises AiriError; then nothing has changed.

        An engine that dies of something else meanwhile is waited for, once.
        """
        self._moving.add(version.name)
        try:
            try:
                await self._load(version)
            except EngineDeadError:
                await self._back()
                await self._load(version)
        finally:
            self._moving.discard(version.name)

    async def unload(self, version: Version) -> None:
        """Gives a version to no more calls, and lets it go once the last one has ended. Raises AiriError."""
        self._moving.add(version.name)
        try:
            for model in self._models.all_versions:
                if model.engine_name == version.name:
                    self._models.remove(model)
            await self._client.unload(version.name)
        except ModelNotFoundError:
            pass  # it has gone with the engine
        finally:
            self._moving.discard(version.name)

    async def sleep(self, version: Version) -> None:
        """Gives a version to no more calls, and puts it to sleep once the last one has ended.

        Raises AiriError; then nothing has changed.
        """
        self._moving.add(version.name)
        taken = [model for model in self._models.all_versions if model.engine_name == version.name]
        for model in taken:
            self._models.remove(model)
        try:
            # Calls that run would wait for somebody to wake it; other gateways may still send one.
            await self._until(lambda stats: not (stats.running or stats.waiting), version.name)
            await self._client.sleep(version.name)
            await self._until(lambda stats: stats.state == "asleep", version.name)
        except AiriError:
            for model in taken:
                self._models.add(model)
            raise
        finally:
            self._moving.discard(version.name)

    async def follow(self) -> None:
        """Serves what the engine has come to hold by somebody else's doing, and no more what it does not."""
        if not self._client.alive:
            return
        asleep = self.asleep()
        held = {
            info.name: info
            for info in self._client.models
            if info.name.rpartition("@")[0] in self._names and info.name not in asleep
        }
        served = {m.engine_name: m for m in self._models.all_versions if m.name in self._names}
        gone = [model for name, model in served.items() if name not in held and name not in self._moving]
        for model in gone:
            self._models.remove(model)
        self._broken &= held.keys()
        new = []
        for name in held.keys() - served.keys() - self._moving - self._broken:
            try:
                new.append(await asyncio.to_thread(self._serve, held[name]))
            except AiriError as error:
                self._broken.add(name)
                log.error("%s cannot be served: %s", name, error)
        if gone or new:
            await self._tell()
        for model in new:
            self._models.add(model)

    async def _load(self, version: Version) -> None:
        if version.name in self.asleep():
            info = await self._woken(version.name)
        else:
            info = await self._loaded(version)
        try:
            model = await asyncio.to_thread(self._serve, info)
            await self._tell()
            await self._warm(model)
            if self._fill is not None:
                await self._fill(model)
        except AiriError:
            await self._take_back(version.name)
            raise
        self._models.add(model)

    async def _loaded(self, version: Version) -> ModelInfo:
        options = await self._options(version)
        try:
            return await self._client.load(options)
        except EngineDeadError:
            raise
        except AiriError:
            found = next((each for each in self._client.models if each.name == version.name), None)
            if found is None:
                raise
            return found  # whoever led before has had it loaded

    async def _woken(self, name: str) -> ModelInfo:
        await self._client.wake(name)
        await self._until(lambda stats: stats.state == "awake", name)
        return next(info for info in self._client.models if info.name == name)

    async def _until(self, holds: Callable[[ModelStats], bool], name: str) -> None:
        """Until the engine's counters of a version say so, counted from now on.

        Raises EngineDeadError where the engine goes meanwhile.
        """
        before = self._client.stats
        while True:
            if not self._client.alive:
                raise EngineDeadError(f"the engine has gone with {name}")
            stats = self._client.stats
            models = () if stats is None or stats is before else stats.models
            if any(holds(each) for each in models if each.name == name):
                return
            await asyncio.sleep(_LOOK_S)

    async def _take_back(self, name: str) -> None:
        try:
            await self._client.unload(name, drains=False)
        except AiriError as error:
            log.warning("%s: %s", name, error)

    async def _warm(self, model: ServedModel) -> None:
        request = GenerateRequest(
            model=model.engine_name,
            tokens=GenerateRequest.pack_tokens([0]),
            params=SamplingParams(temperature=0.0, max_tokens=1),
            pools=model.reader is not None,
        )
        async for _ in self._client.generate(request):
            pass

    async def _back(self) -> None:
        try:
            async with asyncio.timeout(_RESTART_S):
                while not self._client.alive:
                    if self._client.dead is not None:
                        raise self._client.dead
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise EngineDeadError(f"the engine was not back within {_RESTART_S:g} s") from None
