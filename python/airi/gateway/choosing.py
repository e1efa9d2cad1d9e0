"""Which models a call of a route is for: what its conditions say, and what is told of those that say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airi.gateway.gate import Gate, Government
    from airi.gateway.http import CallRecord
    from airi.gateway.metrics import Metrics
    from airi.gateway.routes import Chosen, ServedRoute

__all__ = ["Chooser"]


class Chooser:
    """Chooses for all routes of a gateway. *Thread safety*: none; event loop only."""

    def __init__(self, gate: Gate, government: Government, metrics: Metrics | None) -> None:
        self._gate, self._government, self._metrics = gate, government, metrics

    def choose(self, route: ServedRoute, record: CallRecord, facts: Mapping[str, Any]) -> Chosen:
        """The models for a call. Raises AuditUnavailableError where what failed cannot be noted."""
        chosen = route.choose(facts)
        self._tell(route, record, chosen)
        return chosen

    def _tell(self, route: ServedRoute, record: CallRecord, chosen: Chosen) -> None:
        failed = {f"rules[{index}]": reason for index, reason in chosen.failed}
        if self._metrics is not None:
            for rule in failed:
                self._metrics.failed_conditions.labels(route.name, rule).inc()
        audit = self._government.audit
        if audit is not None and failed:
            told = tuple(f"{what}: {reason}" for what, reason in failed.items())
            audit.note_route(record.request_id, record.principal, route.name, told)
