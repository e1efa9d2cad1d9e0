"""What a config's tenants may use, as the ledger takes it, and what tokens cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airi.config.load import ConfigFile
from airi.config.models import Price
from airi.config.tenants import Limits as GivenLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airi.policy.ledger import Budget, Limits, LimitTable, Scope

__all__ = ["cost_micro", "limit_table"]

_MICRO = 10**6
_PICO_PER_MICRO = 10**6


def limit_table(file: ConfigFile) -> LimitTable:
    """The limits of every scope for which a config has some."""
    from airi.policy.ledger import LimitTable

    return LimitTable({scope: _limits(given) for scope, given in _scopes(file) if given.are_any})


def cost_micro(price: Price | None, *, input_tokens: int, output_tokens: int) -> int:
    """What tokens cost, in millionths of the currency, rounded up; 0 where there is no price.

    Whole numbers throughout: a price is taken as picos of the currency for a token.
    """
    if price is None:
        return 0
    pico = [round(per_1m * _PICO_PER_MICRO) for per_1m in (price.input_per_1m, price.output_per_1m)]
    return -(-(input_tokens * pico[0] + output_tokens * pico[1]) // _PICO_PER_MICRO)


def _scopes(file: ConfigFile) -> Iterator[tuple[Scope, GivenLimits]]:
    from airi.policy.ledger import Scope

    for tenant in file.config.tenants:
        yield Scope(tenant=tenant.name), tenant.limits
        for model, limits in tenant.limits.models.items():
            yield Scope(tenant=tenant.name, model=model), limits
        for priority_class, limits in tenant.limits.classes.items():
            yield Scope(tenant=tenant.name, priority_class=priority_class), limits


def _limits(given: GivenLimits) -> Limits:
    from airi.policy.ledger import Limits

    return Limits(
        requests_per_minute=given.rpm_limit,
        tokens_per_minute=given.tpm_limit,
        input_tokens_per_minute=given.input_tpm_limit,
        output_tokens_per_minute=given.output_tpm_limit,
        max_parallel_requests=given.max_parallel_requests,
        budget=_budget(given.max_budget, given.budget_duration),
        device_seconds=_budget(given.max_device_seconds, given.device_seconds_duration),
    )


def _budget(amount: float | None, period_s: int | None) -> Budget | None:
    from airi.policy.ledger import Budget

    # Down: never more than was said.
    return None if amount is None else Budget(amount_micro=int(amount * _MICRO), period_s=period_s)
