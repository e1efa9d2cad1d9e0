"""Spaces of embedders' versions are filled behind the calls: before a version is given to any, and after writes.

A version of an embedder is ready for calls once all rows of its collections have vectors of it. So a candidate that
gets traffic finds every row, its vectors and those of the stable version never meet, and moving back is moving a
pointer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from airi.errors import AiriError
from airi.gateway.errors import ApiError
from airi.gateway.models import ModelRegistry, ServedModel
from airi.gateway.retrieval.embedding import embed_for_nobody
from airi.retrieval import EmbeddingSpace
from airi.retrieval.spaces import Vectors
from airi.sampling_params import MAX_PRIORITY

if TYPE_CHECKING:
    from airi.gateway.retrieval.served import Collections, ServedCollection

__all__ = ["Filling"]

log = logging.getLogger("airi.gateway")

_BATCH: Final = 64
_LOOK_S: Final = 0.1


class Filling:
    """Embeds what has no vectors yet, behind all calls of users.

    *Thread safety*: none; event loop only.
    """

    def __init__(self, collections: Collections, models: ModelRegistry) -> None:
        self._collections, self._models = collections, models
        self._failed: set[tuple[str, str, int]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Looks after all of them until the block ends."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            for collection in self._collections:
                try:
                    await self._look(collection)
                except Exception:  # what is served goes on
                    log.exception("collection %s is not looked after", collection.name)
            await asyncio.sleep(_LOOK_S)

    async def fill(self, model: ServedModel) -> None:
        """Gives all rows of its collections vectors of a version; raises AiriError where one cannot have any."""
        for collection in self._collections:
            if collection.embedder == model.name:
                await self._fill(collection, model)

    async def _look(self, collection: ServedCollection) -> None:
        """Fills the spaces of all versions that are served, and makes the stable one's the active one."""
        versions = [model for model in self._models.all_versions if model.name == collection.embedder]
        for model in versions:
            key = collection.name, model.engine_name, collection.rows.moment
            if key in self._failed:
                continue
            try:
                await self._fill(collection, model)
            except AiriError as error:
                # Said once for each state of the rows: what failed will fail again until they differ.
                self._failed = {each for each in self._failed if each[:2] != key[:2]} | {key}
                log.error(
                    "collection %s: rows have no vectors of %s: %s", collection.name, model.engine_name, error
                )
        try:
            stable = self._models.find(collection.embedder)
        except ApiError:  # it is not loaded at the moment
            return
        if stable in versions:
            await self._activate(collection, collection.space_of(stable))

    async def _fill(self, collection: ServedCollection, model: ServedModel) -> None:
        rows = collection.rows
        space = collection.space_of(model)
        if not rows.pending(space):
            return
        embedder = _Behind(model, space, asyncio.get_running_loop())
        await asyncio.to_thread(rows.add_space, space)
        while await asyncio.to_thread(rows.fill, embedder, _BATCH):
            pass

    async def _activate(self, collection: ServedCollection, space: EmbeddingSpace) -> None:
        rows = collection.rows
        if rows.active is None or rows.active == space or space not in rows.spaces:
            return
        try:
            await asyncio.to_thread(rows.cut_over, space)
        except AiriError as error:  # rows were written meanwhile
            log.info("collection %s: %s", collection.name, error)


class _Behind:
    """An embedder for threads, which waits for the event loop; nobody is charged, and everybody comes first."""

    def __init__(self, model: ServedModel, space: EmbeddingSpace, loop: asyncio.AbstractEventLoop) -> None:
        self._model, self._loop = model, loop
        self.space = space

    def encode(self, texts: Sequence[str]) -> Vectors:
        """[texts, dimension]. Raises ContextLengthError for a text that it cannot read whole."""
        return asyncio.run_coroutine_threadsafe(self._encode(texts), self._loop).result()

    async def _encode(self, texts: Sequence[str]) -> Vectors:
        return await embed_for_nobody(self._model, texts, priority=-MAX_PRIORITY)
