"""A caller, as everything that decides about its calls knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from airi.errors import RequestError
from airi.sampling_params import MAX_PRIORITY

__all__ = ["ANYONE", "OPERATORS", "Principal", "PriorityClass", "priority_class"]

PriorityClass = Literal["critical", "standard", "sheddable"]
"""Of a request: priority above 0, 0, below 0. Names as the Gateway API's inference extension has them."""

OPERATORS = "operators"
"""The group that may do everything where a config has no policies."""


def priority_class(priority: int) -> PriorityClass:
    """The class of a request of this priority."""
    return "critical" if priority > 0 else "standard" if priority == 0 else "sheddable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A tenant, and the key or token that spoke for it. Holds neither of the two."""

    tenant: str
    number: int
    """The tenant's, as the core knows it: stable for a name, from 1 on; 0 is anyone."""
    key_id: str | None = None
    """The public id of the key; None for a token and for anyone."""
    groups: tuple[str, ...] = ()
    priority: int = 0
    """Added to what a request asks for itself; higher is served first."""
    max_priority: int = MAX_PRIORITY
    """The highest that a request of it may have, with `priority` added."""
    weight: float = 1.0
    """The tenant's share against others of the same priority."""
    region: str | None = None
    """Where it may be served from or is, as the tenant's entry or its issuer says; never as a request does."""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    """What a verified token says; about people, so it is shown nowhere."""

    def priority_of(self, asked: int | None) -> int:
        """The priority of a request that asks for one of its own, within what the core has.

        Raises RequestError for one above `max_priority`: else a client could leave the limits of its class, and pass
        everybody else.
        """
        asked = asked or 0
        most = max(0, min(MAX_PRIORITY, self.max_priority - self.priority))
        if asked > most:
            accepted = f"-{MAX_PRIORITY} to {most}, by its max_priority"
            raise RequestError(
                f"priority is {asked}; accepted of tenant {self.tenant}: {accepted}", field="priority"
            )
        return max(-MAX_PRIORITY, min(MAX_PRIORITY, self.priority + asked))


ANYONE = Principal(tenant="anyone", number=0)
"""Everybody, where no keys are configured."""
