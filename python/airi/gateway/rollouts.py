"""Releases and rollouts in a running gateway: follows the documents of the state, and moves them on while it leads."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from airi.config.bring_up import now_ms
from airi.config.lock import digest_folder
from airi.config.options import version_options
from airi.config.rollouts import releases_of
from airi.engine.hub import resolve_model_path
from airi.errors import AiriError, ConfigError, LifecycleError
from airi.gateway.changes import Changes
from airi.gateway.fleet import VersionFleet
from airi.gateway.models import ModelRegistry, ServedModel, Versioned
from airi.gateway.observing import Observing, SeenByAll
from airi.gateway.releases import ServedLine, served_line
from airi.gateway.scoring import Scorer
from airi.gateway.watching import Trial, Watching
from airi.lifecycle import Registry, ReleaseBook, Version, VersionState
from airi.lifecycle.controller import Controller
from airi.lifecycle.lease import Lease
from airi.lifecycle.lines import Lines
from airi.lifecycle.operators import Operator
from airi.lifecycle.registry import version_name

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from airi.config import ConfigFile
    from airi.engine.options import ModelOptions
    from airi.gateway.http import CallRecord
    from airi.state import Store
    from airi.transport import EngineHandle, ModelInfo

__all__ = ["RolloutSetup", "Rollouts", "versioned_models"]

log = logging.getLogger("airi.gateway")

_TICK_S = 1.0
_LEASE_MS = 10_000
_LINGER_MS = 30_000
"""How long a version stays that gets no more calls, for those that other gateways were just giving to it."""
_FORGET_MS = 60_000
_AWAY = (VersionState.REGISTERED, VersionState.FAILED, VersionState.RETIRED)
_LIVE = (VersionState.READY, VersionState.SERVING, VersionState.DRAINING)


def versioned_models(file: ConfigFile | None) -> tuple[Versioned, ...]:
    """A config's models whose versions come and go."""
    if file is None:
        return ()
    return tuple(
        Versioned(
            name=model.name,
            aliases=model.aliases,
            own_lines=frozenset(model.aliases).intersection(file.config.releases),
            place=place,
        )
        for place, model in enumerate(file.config.models)
        if model in file.config.versioned
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSetup:
    """What rollouts are made with, before anything is served."""

    file: ConfigFile
    store: Store
    tell: Callable[[], Awaitable[None]]
    """Tells the engine what it must know of the models it has."""
    owns_engine: bool
    """Whether no other gateway has this engine."""


class Rollouts:
    """The lines that a gateway serves, as the state has them. One gateway of all leads.

    *Thread safety*: none; one event loop.
    *Invariant*: what calls are given is what a document said, a tick ago at most while the state answers.
    """

    def __init__(
        self,
        setup: RolloutSetup,
        client: EngineHandle,
        models: ModelRegistry,
        serve: Callable[[ModelInfo], ServedModel],
        *,
        warm: Callable[[ServedModel], Awaitable[None]] | None = None,
    ) -> None:
        """`serve` makes the text side of a version, in a thread; `warm`: what else is done before any call has it."""
        self.file, store = setup.file, setup.store
        self._all_lines = Lines(store)
        self._models, self._owns_engine = models, setup.owns_engine
        names = releases_of(self.file.config)
        self.registry = Registry(store, now_ms)
        self.releases = ReleaseBook(store, self.registry)
        self.lines = Lines(store, only=names)
        self.operator = Operator(store, now_ms, only=names)
        self.fleet = VersionFleet(
            client,
            models,
            names=[model.name for model in self.file.config.versioned],
            versions=[version_name(m.name, v.id) for m in self.file.config.versioned for v in m.versions],
            sleepable=[model.name for model in self.file.config.versioned if model.resources.sleepable],
            serve=serve,
            options=self._options,
            tell=setup.tell,
            warm=warm,
        )
        self._observing, self._seen = Observing(store), SeenByAll(store)
        self.watching = Watching(self._observing, Scorer(), self._trial_of)
        """What sees calls of lines in rollouts, for gates."""
        self._changes = Changes(self._folder_of)
        self._controller = Controller(
            lease=Lease(store, "lifecycle", secrets.token_hex(8), _LEASE_MS),
            registry=self.registry,
            releases=self.releases,
            lines=self.lines,
            fleet=self.fleet,
            observations=self._seen,
            now_ms=now_ms,
            linger_ms=_LINGER_MS,
            change_of=self._changes.of,
        )
        self._asked = asyncio.Event()
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._trouble = ""
        self._served: dict[str, ServedLine] = {}
        self._unserved: dict[str, str] = {}
        self._forgets_ms = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follows and leads until the block ends. Raises StateError where the state cannot be read at first."""
        await self._refresh()
        self._publish()
        tasks = [asyncio.create_task(each) for each in (self._run(), self._observing.run())]
        try:
            yield
        finally:
            ending = (*tasks, *self._loads.values())
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await self._changes.close()
            await self.watching.close()
            try:
                await self._controller.close()
            except AiriError as error:
                log.warning("rollouts: %s", error)

    def look(self) -> None:
        """Has documents looked at now: one was changed."""
        self._asked.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._tick()
            except AiriError as error:
                if self._trouble != str(error):
                    log.warning("rollouts stand still, what is served stays: %s", error)
                self._trouble = str(error)
            except Exception:  # what is served goes on
                log.exception("rollouts stand still, what is served stays")
            else:
                self._trouble = ""
            try:
                async with asyncio.timeout(_TICK_S):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()

    async def _tick(self) -> None:
        await self.fleet.follow()
        leads = await self._controller.tick()
        if leads:
            await self._forget_seen()
        else:
            self._seen.drop()
            await self._refresh()
        self._publish()
        if not leads and self._owns_engine:
            self._follow_states()
        under_way = {
            line.rollout.id for line in self.lines.all if line.rollout and not line.rollout.phase.ended
        }
        self._observing.forget(lambda rollout: rollout not in under_way)

    async def _forget_seen(self) -> None:
        """Now and then drops what was seen of rollouts that are over, also of lines that this config does not have."""
        if now_ms() < self._forgets_ms:
            return
        self._forgets_ms = now_ms() + _FORGET_MS

        async def under_way() -> set[str]:
            await self._all_lines.refresh()
            found = (line.rollout for line in self._all_lines.all)
            return {rollout.id for rollout in found if rollout and not rollout.phase.ended}

        await self._seen.forget(under_way)

    async def _refresh(self) -> None:
        for documents in (self.registry, self.releases, self.lines):
            await documents.refresh()

    def _publish(self) -> None:
        for line in self.lines.all:
            try:
                self._served[line.name] = served_line(line, self.releases)
            except LifecycleError as error:  # its release cannot be read
                if self._unserved.get(line.name) != str(error):
                    log.error("%s is served as before: %s", line.name, error)
                self._unserved[line.name] = str(error)
            else:
                self._unserved.pop(line.name, None)
        self._models.serve(self._served.values())

    def _trial_of(self, record: CallRecord, model: ServedModel) -> Trial | None:
        """What a call counts for; None where its line is in no rollout."""
        drawn = None if record.draw is None else record.draw.release_of(model.name)
        if drawn is None:
            return None
        line = self.lines.get(drawn.line)
        rollout = None if line is None else line.rollout
        if rollout is None or rollout.phase.ended or drawn.release not in (rollout.stable, rollout.candidate):
            return None
        try:
            members = self.releases.find(drawn.line, rollout.candidate).members
        except LifecycleError:  # it cannot be read here
            return None
        candidate = self._models.version(model.name, members.get(model.name, ""))
        return Trial(rollout, drawn.release, candidate, counts=not drawn.is_asked)

    def _folder_of(self, version: Version) -> Path | None:
        """Where the files are of one that is loaded here."""
        model = self._models.version(version.model, version.id)
        return None if model is None else Path(model.info.path)

    async def _options(self, version: Version) -> ModelOptions:
        """How a version runs. Raises ConfigError where its folder does not hold what it held when it was registered."""
        options = version_options(self.file, version.model, version.id)
        kind, _, digest = version.digest.partition(":")
        if kind == "commit":
            return replace(options, path=f"{options.path.partition('@')[0]}@{digest}")
        folder = await asyncio.to_thread(resolve_model_path, options.path)
        found = await asyncio.to_thread(digest_folder, folder)
        if found != digest:
            raise ConfigError(
                f"{options.path} is sha256:{found}, {version.name} is {version.digest}: other content needs another id",
                field="versions",
            )
        return replace(options, path=str(folder))

    # -- an engine of one's own, while another gateway leads -------------------------------------

    def _follow_states(self) -> None:
        """Has this gateway's own engine hold what the leader's does."""
        loaded, asleep = self.fleet.loaded(), self.fleet.asleep()
        for version in self.registry.versions():
            if version.state in _LIVE and version.name not in loaded - asleep and self.fleet.knows(version):
                self._begin(version, self.fleet.load)
            elif version.state is VersionState.ASLEEP and version.name in loaded - asleep - self._used():
                self._begin(version, self.fleet.sleep)
            elif version.name in loaded - self._used() and version.state in _AWAY:
                self._begin(version, self.fleet.unload)

    def _used(self) -> set[str]:
        """What calls that nobody has told of a release may be given."""
        return {
            version_name(model, version)
            for line in self._served.values()
            for release in line.split.releases
            for model, version in line.releases[release].items()
        }

    def _begin(self, version: Version, move: Callable[[Version], Awaitable[None]]) -> None:
        if version.name in self._loads:
            return

        async def run() -> None:
            try:
                await move(version)
            except AiriError as error:
                log.warning("%s: %s", version.name, error)
                await asyncio.sleep(_LINGER_MS / 1000)  # before the next try
            finally:
                del self._loads[version.name]

        self._loads[version.name] = asyncio.create_task(run())
