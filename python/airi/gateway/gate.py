"""The one way from an HTTP request to a model.

Every route that is not open passes here once its caller is known and before anything is spent on the request:
what a caller may do, and how much, is decided here and nowhere else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from airi.errors import AuditUnavailableError
from airi.gateway.choosing import Chooser
from airi.gateway.classifying import Asked
from airi.gateway.content import SIDES, CallContent, Rules
from airi.gateway.errors import (
    ApiError,
    OverLimitError,
    denied,
    is_unavailable,
    model_not_found,
    version_not_found,
)
from airi.gateway.explaining import Traces
from airi.gateway.http import CallRecord, Headers
from airi.gateway.judging import JUDGE_TOKENS, Judge
from airi.gateway.models import ModelRegistry, ServedModel
from airi.policy.decisions import Action, Decider, Decision, Resource
from airi.policy.ledger import LimitName
from airi.policy.principal import priority_class

if TYPE_CHECKING:
    from airi.config.content import ContentPart
    from airi.config.forbidden import ForbiddenTable
    from airi.gateway.classifying import Classifier
    from airi.gateway.generation import Generation
    from airi.gateway.limits import Held, Limiter
    from airi.gateway.metrics import Metrics
    from airi.gateway.releases import Draw
    from airi.gateway.routes import RouteTable, ServedRoute
    from airi.gateway.watching import Sight, Watching
    from airi.policy.audit import AuditLog
    from airi.policy.forbidden import ForbiddenPolicy

__all__ = ["Gate", "Government", "call_context"]

_SERVER = Resource("Server", "airi")
_OF_ANSWERS = (LimitName.TOKENS, LimitName.OUTPUT_TOKENS, LimitName.BUDGET)
"""Limits that the length of an answer counts for."""


def call_context(
    record: CallRecord,
    *,
    max_tokens: int,
    n: int = 1,
    stream: bool = False,
    tools: bool = False,
    priority: int | None = None,
    route: str | None = None,
) -> dict[str, Any]:
    """What policies may ask of a call to a model; `n` answers of `max_tokens` at most each, or `n` texts that are read.

    `route`: that asks on behalf of a call.
    """
    given = record.principal.priority_of(priority)
    region = record.principal.region
    return {
        "max_tokens": max_tokens,
        "n": n,
        "stream": stream,
        "tools": tools,
        "priority": given,
        "priority_class": priority_class(given),
        "release_asked": False,
        **({} if region is None else {"region": region}),
        **({} if route is None else {"route": route}),
    }


@dataclass(slots=True)
class Government:
    """What is decided by. Its parts are exchanged while it serves; a call ends with those that it began with."""

    decider: Decider
    limiter: Limiter | None = None
    """None: nothing is limited."""
    audit: AuditLog | None = None
    content: ContentPart | None = None
    """None: texts pass as they are."""
    forbidden: ForbiddenTable | None = None
    """None: nothing is forbidden."""
    watching: Watching | None = None
    """What sees calls of lines in rollouts; None: nothing is rolled out."""
    routes: RouteTable | None = None
    """None: every name is a model's."""


class Gate:
    """Finds the model that a request names, decides on the call and counts what it uses.

    *Thread safety*: none; event loop only. *Invariant*: no call reaches an engine without a decision.
    """

    def __init__(
        self,
        models: ModelRegistry,
        government: Government,
        *,
        metrics: Metrics | None = None,
        traces: Traces | None = None,
    ) -> None:
        """`metrics`: where routes are counted. `traces`: where calls to models are noted; None: nowhere but here."""
        self.chooser = Chooser(self, government, metrics)
        self.traces = traces or Traces()
        self._models = models
        self._government = government
        self._resources = {name: Resource("Model", name) for name in models.primary_names}

    def admit(
        self,
        record: CallRecord,
        action: Action,
        name: str | None,
        context: Callable[[ServedModel], Mapping[str, Any]],
    ) -> ServedModel:
        """The model for this call, noted in its record; raises a 404 or a 403. None means the first model.

        `context` gives what policies may ask of the call.
        """
        model = self.find(record, name)
        record.model = model.name
        resource, known = self._resources[model.name], context(model)
        drawn = None if record.draw is None else record.draw.release_of(model.name)
        known = known if drawn is None else {**known, **drawn.context}
        if drawn is not None and drawn.is_preview:
            try:
                self._decide(record, Action.PREVIEW, resource, known)
            except ApiError as error:
                error.message += f": {drawn.by} asks for {drawn.release}, which gets no traffic yet"
                raise
        self._decide(record, action, resource, known)
        if record.trace is not None:
            record.trace.admitted(model, record.draw)
        record.release = record.release or ((b"x-airi-model", model.name.encode()),)
        return model

    def route(self, name: str | None) -> ServedRoute | None:
        """What says which model a request of this name is for; None where that is a model."""
        routes = self._government.routes
        return None if routes is None else routes.find(name)

    def find(self, record: CallRecord, name: str | None) -> ServedModel:
        """The model of this name, None for the first; raises a 404 that lists what this caller may use.

        In the version of the release that the call is given, which its record keeps for inner calls, and tells.
        """
        draw = record.draw
        if draw is None and self._models.has_releases:
            draw = record.new_draw()
        route = self.route(name)
        model = self._models.find(name if route is None else route.default, draw)
        if model is None:
            raise model_not_found(name or "", list(self.usable(record)))
        if draw is not None and draw.given:
            record.draw = draw
            drawn = draw.release_of(model.name)
            record.release = () if drawn is None else drawn.headers(f"{model.name}@{model.version}")
        return model

    def pin(self, record: CallRecord, name: str, version: str) -> None:
        """Has a call get this version of a model, by a release that has it; raises a 404 where none has."""
        usable, model = self.usable(record), self._models.named.get(name)
        if model is not None and name not in usable:  # a denial, which tells no versions
            known = {**call_context(record, max_tokens=1), **self._would_release(record, name, model)}
            self._decide(record, Action.COMPLETION, self._resources[model.name], known)
        versions = self._models.versions_of(name)
        if not versions:
            raise model_not_found(name, list(usable))
        if version not in versions:
            raise version_not_found(name, version, list(versions))
        release = versions[version]
        if release is not None:
            record.draw = record.new_draw()
            record.draw.asked, record.draw.asked_by = release, "path"

    def usable(self, record: CallRecord) -> dict[str, ServedModel]:
        """By name and alias, the models that this caller may use for something; by a route's name, its default."""
        context = call_context(record, max_tokens=1)
        decide, principal = self._government.decider.decide, record.principal

        def may(name: str, model: ServedModel) -> bool:
            known = {**context, **self._would_release(record, name, model)}
            return any(
                decide(principal, use, self._resources[model.name], known).allowed for use in model.uses
            )

        named = self._models.named
        for route in self._government.routes or ():
            if route.default in named:
                named[route.name] = named[route.default]
        return {name: model for name, model in named.items() if may(name, model)}

    def _would_release(self, record: CallRecord, name: str, model: ServedModel) -> Mapping[str, Any]:
        """What policies are told of the release that a call of this name would have, as far as it has one."""
        try:
            draw = self._would_draw(record)
            self._models.find(name, draw)
        except ApiError:  # one that is asked for and is not served
            return {}
        return _released(draw, model)

    def admit_to_server(self, record: CallRecord, action: Action, *, call: str | None = None) -> None:
        """Decides on a call that is about the server itself; raises a 403. `call`: which one, for the audit log."""
        self._decide(record, action, _SERVER, {}, call=call)

    def admit_to_promote(self, record: CallRecord, model: str, *, call: str) -> None:
        """Decides on moving traffic between the versions of a model; raises a 403. `call`: as above."""
        self._decide(record, Action.PROMOTE, self._resources[model], {}, call=call)

    def admit_to_collection(
        self, record: CallRecord, action: Action, collection: Resource, context: Mapping[str, Any]
    ) -> Decision:
        """Decides on a call to a collection; raises a 403. What it may read of it is in the decision."""
        return self._decide(record, action, collection, context)

    def may(
        self, record: CallRecord, action: Action, collection: Resource, context: Mapping[str, Any]
    ) -> bool:
        """Whether `admit_to_collection` would let a call through; nothing is noted."""
        return self._government.decider.decide(record.principal, action, collection, context).allowed

    def versions_of(self, model: ServedModel) -> list[ServedModel]:
        """All versions of a model that are served."""
        return [each for each in self._models.all_versions if each.name == model.name]

    def content_of(self, record: CallRecord, model: ServedModel, request_bytes: int) -> CallContent | None:
        """The rules that texts of this call pass until it ends; None where there are none."""
        part = self._government.content
        if part is None:
            return None
        given, made = (
            Rules(
                part.table.rules(side, tenant=record.principal.tenant, model=model.name),
                part.table.judges(side, tenant=record.principal.tenant, model=model.name),
            )
            for side in SIDES
        )
        if not given.exist and not made.exist:
            return None
        judge = Judge(record, self._admit_judge, self.reserve)
        return CallContent(record, model, given, made, judge, self._government.audit, request_bytes)

    def forbidden_to(self, record: CallRecord, model: ServedModel) -> ForbiddenPolicy | None:
        """What the answer of this call may not hold; None where anything goes."""
        table = self._government.forbidden
        return None if table is None else table.find(tenant=record.principal.tenant, model=model.name)

    def sight_of(self, record: CallRecord, model: ServedModel) -> Sight | None:
        """What sees this call; None where its line is in no rollout."""
        watching = self._government.watching
        if watching is None:
            return None
        return watching.sight(record, model, partial(self._admits_shadow, record, model))

    def _admits_shadow(self, record: CallRecord, model: ServedModel) -> bool:
        """Whether a candidate may read a call of the same caller and its answer."""
        asked = record.inner()
        known = {**call_context(asked, max_tokens=1), **_released(record.draw, model)}
        try:
            self._decide(asked, Action.SHADOW, self._resources[model.name], known)
        except (ApiError, AuditUnavailableError):
            return False
        return True

    @asynccontextmanager
    async def counted(
        self,
        record: CallRecord,
        model: ServedModel,
        *,
        priority: int | None = None,
        spared: tuple[type[Exception], ...] = (),
    ) -> AsyncIterator[Headers]:
        """Counts the block as a request, whatever becomes of it but for what could not be served, and what is `spared`.

        Gives what a response says of limits. Raises a 429 as `reserve`: before anything is done for the call.
        """
        held = await self._hold(record, model, priority, (1, 0, 0), lambda _: None)
        if held is None:
            yield ()
            return
        if record.trace is not None:
            record.trace.counted(held)
        requests = 1
        try:
            yield held.headers
        except Exception as error:
            requests = 0 if is_unavailable(error) or isinstance(error, spared) else 1
            raise
        finally:
            await held.settle(requests, 0, 0)

    async def reserve(
        self, record: CallRecord, generation: Generation, *, priority: int | None = None
    ) -> Headers:
        """Holds the most tokens that a generation may use until its block is left, and gives what a response says.

        It is a request, or within one, that is counted already. Raises a 429 where that is over a limit; the audit
        log says so, also where a limit ends it later.
        """

        def end(error: Exception) -> None:
            if generation.end(error) and isinstance(error, OverLimitError):
                self._note_limit(record, generation.model, error)

        try:
            held = await self._hold(record, generation.model, priority, (0, *generation.most), end)
        except OverLimitError as error:
            if error.limit in _OF_ANSWERS and any(c.params.max_tokens is None for c in generation.choices):
                tokens = generation.most[1]
                error.message += f"; give max_tokens: as none was given, {tokens} are reserved for the answer"
            raise
        if record.call is not None:
            record.call.reserved(generation, held)
        if held is None:
            return ()
        generation.charge_to(held)
        return held.headers

    async def _hold(
        self,
        record: CallRecord,
        model: ServedModel,
        priority: int | None,
        most: tuple[int, int, int],
        end: Callable[[Exception], object],
    ) -> Held | None:
        """As `Limiter.reserve`; the audit log has the 429."""
        limiter, principal = self._government.limiter, record.principal
        if limiter is None:
            return None
        kind = priority_class(principal.priority_of(priority))
        try:
            return await limiter.reserve(principal.tenant, model.name, kind, most, end)
        except OverLimitError as error:
            self._note_limit(record, model, error)
            raise

    @asynccontextmanager
    async def admitted_to_classify(
        self, asked: CallRecord, route: str, classifier: Classifier, request_bytes: int
    ) -> AsyncIterator[Asked]:
        """The model that a route asks which label fits. Raises as `admit`, and a 429 where the caller may make no call.

        The block counts as no request: the call that it is about does.
        """
        most = classifier.most_tokens
        model = self.admit(
            asked,
            Action.CLASSIFY,
            classifier.model,
            lambda _: call_context(asked, max_tokens=most, route=route),
        )
        held = await self._hold(asked, model, None, (1, 0, 0), lambda _: None)
        try:
            yield Asked(model, self.content_of(asked, model, request_bytes))
        finally:
            if held is not None:
                await held.settle(0, 0, 0)

    def asked_before(self, record: CallRecord) -> CallRecord:
        """The record of what is asked before a call is admitted: by the same caller, in a release that goes with its.

        A release that the call asks for need not be one of what is asked.
        """
        asked = record.inner()
        if self._models.has_releases:
            asked.draw = record.new_draw()
            asked.draw.carried, asked.draw.asked = asked.draw.asked or asked.draw.carried, None
        return asked

    def permits(
        self,
        record: CallRecord,
        action: Action,
        name: str,
        context: Callable[[ServedModel], Mapping[str, Any]],
    ) -> bool:
        """Whether `admit` would let a call through to a model that there is; nothing is noted."""
        try:
            draw = self._would_draw(record)
            model = self._models.find(name, draw)
        except ApiError:  # it is not loaded at the moment
            return False
        if model is None:
            return False
        decide, resource = self._government.decider.decide, self._resources[model.name]
        known = {**context(model), **_released(draw, model)}
        return decide(record.principal, action, resource, known).allowed

    def _would_draw(self, record: CallRecord) -> Draw | None:
        """What would decide the releases of this call; nothing of it stays."""
        if not self._models.has_releases:
            return None
        return record.new_draw() if record.draw is None else record.draw.copy()

    def _admit_judge(self, asked: CallRecord, name: str) -> ServedModel:
        """The model that is asked about a text of a call: a call of its own, by the same caller."""
        return self.admit(asked, Action.JUDGE, name, lambda _: call_context(asked, max_tokens=JUDGE_TOKENS))

    def _note_limit(self, record: CallRecord, model: ServedModel, over: OverLimitError) -> None:
        audit = self._government.audit
        if audit is not None:
            resource = self._resources[model.name]
            audit.note_limit(
                record.request_id, record.principal, record.action or "", resource, over.limit, over.scope
            )

    def _decide(
        self,
        record: CallRecord,
        action: Action,
        resource: Resource,
        context: Mapping[str, Any],
        *,
        call: str | None = None,
    ) -> Decision:
        decision = self._government.decider.decide(record.principal, action, resource, context)
        record.action = action
        if record.trace is not None:
            record.call = record.trace.decided(action, resource.id, context, decision)
        audit = self._government.audit
        if audit is not None:
            audit.note(record.request_id, record.principal, action, resource, decision, call=call)
        if not decision.allowed:
            raise denied(decision.policies, decision.errors)
        return decision


def _released(draw: Draw | None, model: ServedModel) -> Mapping[str, Any]:
    """What policies may ask of the release that a call was given for a model."""
    drawn = None if draw is None else draw.release_of(model.name)
    return {} if drawn is None else drawn.context
