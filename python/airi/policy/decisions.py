"""Who may do what to what: one decision by Cedar's policies for every call, remembered where nothing of it changes.

Cedar denies what no policy permits, and skips a policy that cannot be evaluated. A skipped `forbid` would let through
what it was written against, so here a decision during which any policy failed is a denial.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from airi.errors import ConfigError
from airi.policy.principal import Principal
from airi.policy.rows import RowFilter, row_filters
from airi.policy.schema import parsed_policies

__all__ = ["BUILT_IN", "Action", "Decider", "Decision", "Resource"]

log = logging.getLogger("airi.policy")

BUILT_IN = """
@id("airi.models")
permit (principal, action in [Action::"chat", Action::"completion", Action::"embed", Action::"rerank",
    Action::"classify", Action::"shadow", Action::"tokenize", Action::"list_models", Action::"retrieve",
    Action::"workflow"], resource);
@id("airi.operators")
permit (principal in Group::"operators", action, resource);
@id("airi.anyone")
permit (principal == Tenant::"anyone", action, resource);
"""
"""What holds where a config has no policies: models for everybody who is known, the rest for operators. Without keys
only this machine is served, and its owner may do everything."""

_BESIDE = """
@id("airi.judges")
permit (principal, action == Action::"judge", resource);
@id("airi.classifiers")
permit (principal, action == Action::"classify", resource) when { context has route };
@id("airi.operators-only")
forbid (principal, action in [Action::"admin", Action::"promote"], resource)
unless { principal in Group::"operators" || principal == Tenant::"anyone" };
"""
"""What holds beside any policies. Content rules may have texts judged, and routes have them classified, unless a policy
forbids it. Nobody but operators
administers: policies that permit whatever the action is are written with models in mind."""

_REMEMBERED = 1 << 14
_PRINCIPALS = 1 << 10
_FAILED = re.compile(r"error while evaluating policy `([^`]+)`")


class Action(StrEnum):
    """What a call does."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBED = "embed"
    RERANK = "rerank"
    RETRIEVE = "retrieve"
    INGEST = "ingest"
    """Rows of a collection are written or removed."""
    WORKFLOW = "workflow"
    SHADOW = "shadow"
    PREVIEW = "preview"
    """The call asks for a candidate that nobody else is given yet."""
    JUDGE = "judge"
    """A content rule asks about a text of the caller's."""
    CLASSIFY = "classify"
    """Which label fits a text: the caller asks, or a route of what the caller says."""
    TOKENIZE = "tokenize"
    LIST_MODELS = "list_models"
    METRICS = "metrics"
    ADMIN = "admin"
    PROMOTE = "promote"


@dataclass(frozen=True, slots=True)
class Resource:
    """What a call is made to."""

    kind: str
    """Model, Collection, Workflow or Server."""
    id: str
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)
    """What policies may ask of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a call may go on, and by which policies."""

    allowed: bool
    policies: tuple[str, ...] = ()
    """Ids, sorted: those that permitted, or those that forbade; none where no policy permits."""
    errors: tuple[str, ...] = ()
    """Ids, sorted, of policies that could not be evaluated, such as for numbers that overflow."""
    rows: tuple[RowFilter, ...] = ()
    """What a call that is permitted may read of a collection: the rows of any of these; none: all rows."""


class Decider:
    """Decides by a set of policies that is never changed: a new set is a new Decider.

    *Thread safety*: none, event loop only. *Invariant*: the same call gets the same decision, remembered or not.
    """

    def __init__(
        self, policies: str | None, schema: Mapping[str, Any], resources: Iterable[Resource]
    ) -> None:
        """`policies` in Cedar's syntax, None for `BUILT_IN`; `resources`: all that calls can be made to.

        Judges of content rules and classifiers of routes may be asked unless a policy forbids it; only operators may
        administer.
        Raises ConfigError for policies that are not Cedar or do not fit the schema.
        """
        from cedarpy import Entities, PolicySet, Schema

        text = (BUILT_IN if policies is None else policies) + _BESIDE
        _check(text, schema)
        self._policies = PolicySet.from_str(text)
        self._schema = Schema.from_json_str(json.dumps(schema))
        static = parsed_policies(text)
        self._names = {
            given: policy.get("annotations", {}).get("id", given) for given, policy in static.items()
        }
        self._attributes = _attributes_of_context(static.values())
        """What of a context decides; None: all."""
        self._rows = row_filters(static)
        known = [_entity(resource.kind, resource.id, resource.attributes) for resource in resources]
        self._resources = Entities.from_json_str(json.dumps(known))
        self._entities: dict[tuple[str, tuple[str, ...], int], Any] = {}
        self._remembered: dict[tuple[Any, ...], Decision] = {}
        self._told: set[str] = set()

    def decide(
        self, principal: Principal, action: Action, resource: Resource, context: Mapping[str, Any]
    ) -> Decision:
        """The decision on a call. `context`: what policies may ask of it, as the schema has it for the action."""
        attributes = self._attributes
        asked = context if attributes is None else {k: context[k] for k in attributes if k in context}
        key = (
            principal.tenant,
            principal.groups,
            principal.priority,
            action,
            resource.kind,
            resource.id,
            *asked.items(),
        )
        try:
            found = self._remembered.get(key)
        except TypeError:  # a value of the context cannot be remembered
            return self._decide(principal, action, resource, context)
        if found is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = self._decide(principal, action, resource, context)
        return found

    def _decide(
        self, principal: Principal, action: Action, resource: Resource, context: Mapping[str, Any]
    ) -> Decision:
        from cedarpy import is_authorized

        request = {
            "principal": {"type": "Tenant", "id": principal.tenant},
            "action": {"type": "Action", "id": str(action)},
            "resource": {"type": resource.kind, "id": resource.id},
            "context": dict(context),
        }
        result = is_authorized(request, self._policies, self._entities_of(principal), self._schema)
        if result.diagnostics.errors:
            return Decision(allowed=False, errors=self._failed(result.diagnostics.errors))
        reasons = result.diagnostics.reasons
        names = tuple(sorted(self._names[given] for given in reasons))
        if not result.allowed:
            return Decision(allowed=False, policies=names)
        filters = [self._rows.get(given) for given in sorted(reasons)]
        rows = tuple(each for each in filters if each is not None)
        return Decision(allowed=True, policies=names, rows=rows if len(rows) == len(filters) else ())

    def _failed(self, errors: Iterable[str]) -> tuple[str, ...]:
        """The policies that errors speak of. Each is told once in the log: what it was written for is denied."""
        found = {str(match[1]) for error in errors for match in [_FAILED.match(error)] if match is not None}
        names = {str(self._names.get(given, given)) for given in found}
        for name in sorted(names - self._told):
            log.warning("policy %s could not be evaluated for a call; such calls are denied", name)
        self._told |= names
        return tuple(sorted(names))

    def _entities_of(self, principal: Principal) -> Any:
        """All resources, and the principal with its groups: a token may bring others than its tenant has."""
        key = principal.tenant, principal.groups, principal.priority
        found = self._entities.get(key)
        if found is None:
            if len(self._entities) >= _PRINCIPALS:
                self._entities.clear()
            attributes = {"name": principal.tenant, "priority": principal.priority}
            parents = [{"type": "Group", "id": group} for group in principal.groups]
            own = [_entity("Tenant", principal.tenant, attributes, parents)]
            own += [_entity("Group", group, {}) for group in dict.fromkeys(principal.groups)]
            found = self._entities[key] = self._resources.with_added_json_str(json.dumps(own))
        return found


def _entity(
    kind: str, name: str, attributes: Mapping[str, Any], parents: Iterable[Mapping[str, str]] = ()
) -> dict[str, Any]:
    return {"uid": {"type": kind, "id": name}, "attrs": dict(attributes), "parents": list(parents)}


def _check(text: str, schema: Mapping[str, Any]) -> None:
    from cedarpy import PolicySet, validate_policies

    try:
        PolicySet.from_str(text)
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"policies are not Cedar: {problem}", field="policies") from None
    result = validate_policies(text, dict(schema))
    if not result.validation_passed:
        raise ConfigError(f"policies do not fit their schema: {result.errors[0].error}", field="policies")


def _attributes_of_context(policies: Iterable[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """The attributes of the context that policies read, sorted; None where they read it in another way."""
    names: set[str] = set()
    for policy in policies:
        for condition in policy.get("conditions", ()):
            for found in _uses_of_context(condition["body"]):
                if found is None:
                    return None
                names.add(found)
    return tuple(sorted(names))


def _uses_of_context(body: Any) -> Iterator[str | None]:
    """In an expression of Cedar's JSON: the attribute that each mention of the context reads, None for another use."""
    if isinstance(body, list):
        for part in body:
            yield from _uses_of_context(part)
    elif isinstance(body, dict):
        for kind, value in body.items():
            if kind in (".", "has") and isinstance(value, dict) and value.get("left") == {"Var": "context"}:
                yield value["attr"]
            elif kind == "Var" and value == "context":
                yield None
            else:
                yield from _uses_of_context(value)
