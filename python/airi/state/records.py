"""Rows of the state, as values."""

from __future__ import annotations

from dataclasses import dataclass, field

from airi.errors import ConfigError

__all__ = ["MOST_CHARGE", "Budget", "Charge", "DocumentRecord", "KeyRecord"]

MOST_CHARGE = 2**53
"""Of one charge, in either direction: a thousand of the largest still add up within 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """One API key, without its secret. Times are whole seconds since 1970, UTC."""

    id: str
    """Public: stands in the key's text, in lists and in logs."""
    tenant: str
    number: int
    """The tenant's, stable for its name."""
    prefix: str
    digest: str = field(repr=False)
    """SHA-256 of the key's whole text, in hexadecimal."""
    created: int
    expires: int | None = None
    revoked: int | None = None
    replaced_by: str | None = None
    """The key that it was rotated to."""
    retires: int | None = None
    """When a rotated key ends."""

    @property
    def ends(self) -> int | None:
        """The first second in which it is not accepted any more; None: it has no end."""
        return min((at for at in (self.expires, self.revoked, self.retires) if at is not None), default=None)

    def state(self, now: float) -> str:
        """ "active", "rotated" (until it retires), "retired", "revoked" or "expired"."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        if self.retires is not None:
            return "rotated" if now < self.retires else "retired"
        return "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What is to be added to one budget of one period. Negative amounts give back."""

    scope: str
    """Whose budget: any text that the ledger makes."""
    period_start: int
    """Seconds since 1970 at which the budget's period began."""
    micro: int = 0
    """Money, in millionths of a currency unit."""
    device_us: int = 0
    """Device time, in microseconds."""

    def __post_init__(self) -> None:
        for name in ("micro", "device_us"):
            if not -MOST_CHARGE <= getattr(self, name) <= MOST_CHARGE:
                raise ConfigError(
                    f"{name} of a charge is {getattr(self, name)}; it must be within 2^53", field=name
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one scope has spent in one period, all gateways together."""

    scope: str
    period_start: int
    spent_micro: int
    device_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentRecord:
    """A document of lifecycle, as it stood when it was read."""

    kind: str
    name: str
    revision: int
    """From 1 on; goes up by 1 whenever it is replaced."""
    body: str
    """JSON, of which the state knows nothing."""
