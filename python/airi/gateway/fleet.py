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
from airi.transport import EngineHandle, GenerateRequest, ModelInfo

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
        serve: Callable[[ModelInfo], ServedModel],
        options: Callable[[Version], Awaitable[ModelOptions]],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        """`names`: of the models that have versions, and `versions` those.

        `serve` makes a text side, in a thread; `options`: how a version runs; `tell` tells the engine what it must know
        of the models it has: forbidden texts.
        """
        self._client, self._models, self._names = client, models, frozenset(names)
        self._versions = frozenset(versions)
        self._serve, self._options, self._tell = serve, options, tell
        self._moving: set[str] = set()
        self._broken: set[str] = set()

    def loaded(self) -> frozenset[str]:
        """Names of the versions that can be asked; of an engine that starts again those that it had."""
        held = {info.name for info in self._client.models}
        return frozenset(m.engine_name for m in self._models.all_versions if m.engine_name in held)

    def knows(self, version: Version) -> bool:
        """Whether this gateway's config has it."""
        return version.name in self._versions

    async def load(self, version: Version) -> None:
        """Loads a version and has it make a token. Raises AiriError; then nothing has changed.

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

    async def follow(self) -> None:
        """Serves what the engine has come to hold by somebody else's doing, and no more what it does not."""
        if not self._client.alive:
            return
        held = {
            info.name: info for info in self._client.models if info.name.rpartition("@")[0] in self._names
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
        options = await self._options(version)
        try:
            info = await self._client.load(options)
        except EngineDeadError:
            raise
        except AiriError:
            found = next((each for each in self._client.models if each.name == version.name), None)
            if found is None:
                raise
            info = found  # whoever led before has had it loaded
        try:
            model = await asyncio.to_thread(self._serve, info)
            await self._tell()
            await self._warm(model)
        except AiriError:
            await self._take_back(version.name)
            raise
        self._models.add(model)

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
