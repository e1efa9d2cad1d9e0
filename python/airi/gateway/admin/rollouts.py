"""Releases over HTTP: rollouts that are started, promoted and aborted, versions that are loaded and let go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from airi.config.rollouts import plan_of
from airi.errors import VersionError
from airi.gateway.admin.route import AdminCall
from airi.gateway.admin.schemas import Nothing, Promotion, RolloutList, RolloutStart, VersionList
from airi.gateway.errors import ApiError, decode_body
from airi.gateway.rollouts import Rollouts
from airi.lifecycle.machine import Command
from airi.lifecycle.rollouts import Line
from airi.lifecycle.status import LineStatus, VersionStatus, line_status, version_status

if TYPE_CHECKING:
    from airi.config import ConfigFile
    from airi.config.reload import Reloader

__all__ = ["RolloutAdmin"]

_start = msgspec.json.Decoder(RolloutStart)
_promotion = msgspec.json.Decoder(Promotion)
_nothing = msgspec.json.Decoder(Nothing)


class RolloutAdmin:
    """What operators see and say of rollouts, by any gateway: whoever leads goes on from the documents."""

    def __init__(self, given: Rollouts | None, reloader: Reloader | None) -> None:
        self._given, self._reloader = given, reloader

    async def list(self, _: AdminCall) -> RolloutList:
        """Every line, with its rollout."""
        if self._given is None:
            return RolloutList(data=[])
        await self._given.operator.refresh()
        return RolloutList(data=[self._status(line) for line in self._given.operator.lines.all])

    async def start(self, call: AdminCall) -> LineStatus:
        """Begins a rollout by the steps and gates of the config."""
        asked = decode_body(_start, call.body)
        line = self._line_of(call)
        plan = plan_of(self._file.config, line)
        begun = await self._rollouts.operator.start(
            line, plan, candidate=asked.candidate, who=call.caller.tenant
        )
        return self._changed(begun)

    async def promote(self, call: AdminCall) -> LineStatus:
        """Goes on behind what the rollout waits for, or ends it at once with the candidate as stable."""
        full = decode_body(_promotion, call.body).full
        return await self._say(call, Command.PROMOTE_FULL if full else Command.PROMOTE)

    async def abort(self, call: AdminCall) -> LineStatus:
        """Gives stable all traffic again."""
        decode_body(_nothing, call.body)
        return await self._say(call, Command.ABORT)

    async def versions(self, _: AdminCall) -> VersionList:
        """Every version of every model that is registered."""
        if self._given is None:
            return VersionList(data=[])
        registry = self._given.operator.registry
        await registry.refresh()
        return VersionList(data=[version_status(version) for version in registry.versions()])

    async def load(self, call: AdminCall) -> VersionStatus:
        """Has a version loaded and kept, also while no line needs it; answers at once."""
        return await self._keep(call, kept=True)

    async def unload(self, call: AdminCall) -> VersionStatus:
        """Keeps a version no more; it goes where no line needs it."""
        return await self._keep(call, kept=False)

    async def retire(self, call: AdminCall) -> VersionStatus:
        """Has a version never loaded again."""
        decode_body(_nothing, call.body)
        try:
            version = await self._rollouts.operator.retire(call.path["model"], call.path["version"])
        except VersionError as error:
            status, code = (404, "version_not_found") if error.field == "version" else (409, "version_in_use")
            raise ApiError(status, str(error), param=error.field, code=code) from None
        self._rollouts.look()
        return version_status(version)

    def model_of(self, path: Mapping[str, str]) -> str | None:
        """The model whose traffic a rollout of the path's line moves; None where there is no such line."""
        for model in self._given.file.config.versioned if self._given is not None else ():
            if path["line"] in (model.name, *model.aliases):
                return model.name
        return None

    def _line_of(self, call: AdminCall) -> str:
        line = call.path["line"]
        if self.model_of(call.path) is None:
            message = f"line: {line[:200]!r} has no releases here"
            raise ApiError(404, message, param="line", code="line_not_found")
        return line

    async def _keep(self, call: AdminCall, *, kept: bool) -> VersionStatus:
        decode_body(_nothing, call.body)
        registry = self._rollouts.operator.registry
        await registry.refresh()
        try:
            version = registry.find(call.path["model"], call.path["version"])
        except VersionError as error:
            raise ApiError(404, str(error), param=error.field, code="version_not_found") from None
        version = await registry.keep(version, kept=kept)
        self._rollouts.look()
        return version_status(version)

    async def _say(self, call: AdminCall, said: Command) -> LineStatus:
        line = self._line_of(call)
        return self._changed(await self._rollouts.operator.say(line, said, who=call.caller.tenant))

    def _changed(self, line: Line) -> LineStatus:
        self._rollouts.look()
        return self._status(line)

    def _status(self, line: Line) -> LineStatus:
        return line_status(line, self._rollouts.operator.releases.of(line.name))

    @property
    def _rollouts(self) -> Rollouts:
        if self._given is None:
            raise ApiError(409, "no model here has several versions", code="no_versions")
        return self._given

    @property
    def _file(self) -> ConfigFile:
        return self._rollouts.file if self._reloader is None else self._reloader.file
