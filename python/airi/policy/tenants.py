"""The tenants that are served: what each is due, and which principal a key or a token makes."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from airi.errors import ConfigError
from airi.policy.principal import ANYONE, Principal
from airi.sampling_params import MAX_PRIORITY

if TYPE_CHECKING:
    from airi.policy.oidc import OidcOptions
    from airi.state import Store

__all__ = ["DEFAULT_PREFIX", "TellsTenants", "TenantOptions", "Tenants", "check_name", "check_prefix"]

DEFAULT_PREFIX = "sk-airi"
MOST_PRIORITY = 1000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_NO_CLAIMS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantOptions:
    """One tenant, as a user describes it."""

    name: str
    groups: tuple[str, ...] = ()
    priority: int = 0
    """Added to the priority of its requests."""
    max_priority: int | None = None
    """The highest priority of its requests, with its own added; None: its own."""
    weight: float = 1.0
    """Its share of the device against others of the same priority."""
    region: str | None = None
    """What policies may ask as `context.region`, where a token does not say."""
    key_prefix: str = DEFAULT_PREFIX
    """What its new keys begin with."""
    oidc: OidcOptions | None = None
    """Whose tokens speak for it, next to its keys."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_prefix(self.key_prefix)
        if not -MOST_PRIORITY <= self.priority <= MOST_PRIORITY:
            raise ConfigError(
                f"priority of tenant {self.name} is {self.priority}; it must be in [-{MOST_PRIORITY}, {MOST_PRIORITY}]",
                field="priority",
            )
        if self.max_priority is not None and not self.priority <= self.max_priority <= MOST_PRIORITY:
            raise ConfigError(
                f"max_priority of tenant {self.name} is {self.max_priority}; it must be in "
                f"[{self.priority}, {MOST_PRIORITY}], from its priority on",
                field="max_priority",
            )
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"weight of tenant {self.name} is {self.weight:g}; it must be a positive number",
                field="weight",
            )

    @property
    def highest_priority(self) -> int:
        """`max_priority`, also where it was left out."""
        return self.priority if self.max_priority is None else self.max_priority


class TellsTenants(Protocol):
    """What takes weights: an EngineClient."""

    def set_tenant(self, tenant: int, weight: float) -> Awaitable[None]:
        """Gives a tenant its share."""
        ...


class Tenants:
    """Makes principals. Where tenants are listed, nobody else is served: a name that left the list has no access.

    *Thread safety*: immutable after construction.
    """

    def __init__(
        self, options: Iterable[TenantOptions] = (), numbers: Mapping[str, int] | None = None
    ) -> None:
        self._options: dict[str, TenantOptions] = {}
        for option in options:
            if self._options.setdefault(option.name, option) is not option:
                raise ConfigError(f"two tenants are named {option.name!r}; names must differ", field="name")
        self._numbers = dict(numbers or {})
        for name in self._options:
            self._numbers.setdefault(name, max(self._numbers.values(), default=0) + 1)

    @classmethod
    async def numbered(
        cls, options: Iterable[TenantOptions], store: Store, *, others: Iterable[str] = ()
    ) -> Tenants:
        """With numbers that are kept in the store, so that they mean the same in every gateway and after a restart.

        `others` are numbered, too, without being tenants of the list. Raises StateError.
        """
        options = tuple(options)
        return cls(options, await store.number_tenants([*(option.name for option in options), *others]))

    @property
    def options(self) -> tuple[TenantOptions, ...]:
        """The listed ones."""
        return tuple(self._options.values())

    @property
    def numbers(self) -> dict[str, int]:
        """All numbers that are known, by name."""
        return dict(self._numbers)

    def number(self, name: str) -> int | None:
        """The number of a tenant, or of another name that was given one."""
        return self._numbers.get(name)

    def principal(
        self,
        name: str,
        number: int | None = None,
        *,
        key_id: str | None = None,
        groups: Iterable[str] = (),
        region: str | None = None,
        claims: Mapping[str, Any] = _NO_CLAIMS,
    ) -> Principal | None:
        """The principal of a tenant; None for one that is not served.

        `groups` come on top of the tenant's own, `region` in place of it.
        """
        option = self._options.get(name)
        if option is None and self._options:
            return None
        number = self._numbers.get(name) if number is None else number
        if number is None:
            return None
        # Where nobody is listed, nobody was told to come behind others.
        option = option or TenantOptions(name=name, max_priority=MAX_PRIORITY)
        return Principal(
            tenant=name,
            number=number,
            key_id=key_id,
            groups=tuple(dict.fromkeys((*option.groups, *groups))),
            priority=option.priority,
            max_priority=option.highest_priority,
            weight=option.weight,
            region=region or option.region,
            claims=claims,
        )

    async def tell(self, engine: TellsTenants) -> None:
        """Gives the engine every listed tenant's weight. Raises ConfigError where it refuses one."""
        for name, option in self._options.items():
            await engine.set_tenant(self._numbers[name], option.weight)


def check_name(name: str) -> None:
    """Raises ConfigError for what cannot be a tenant's name."""
    if not _NAME.fullmatch(name) or name == ANYONE.tenant:
        raise ConfigError(
            f"tenant is {name[:100]!r}; give 1 to 63 letters, digits, dots, dashes and underscores, "
            f"beginning with a letter or digit, and not {ANYONE.tenant!r}",
            field="tenant",
        )


def check_prefix(prefix: str) -> None:
    """Raises ConfigError for what keys cannot begin with."""
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"key_prefix is {prefix[:100]!r}; give 1 to 32 letters, digits, dashes and underscores, "
            "beginning with a letter or digit",
            field="key_prefix",
        )
