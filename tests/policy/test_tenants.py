"""Tenants: options, numbers, principals, what the engine is told."""

from __future__ import annotations

import math

import pytest

from airi.errors import ConfigError, RequestError
from airi.policy import ANYONE, Principal
from airi.policy.tenants import TenantOptions, Tenants
from airi.sampling_params import MAX_PRIORITY
from airi.state import open_store


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("name", "über", "tenant is 'über'"),
        ("weight", 0.0, "weight of tenant acme is 0"),
        ("weight", math.inf, "weight of tenant acme is inf"),
        ("weight", math.nan, "weight of tenant acme is nan"),
        ("priority", 1001, "priority of tenant acme is 1001"),
        (
            "max_priority",
            1001,
            r"max_priority of tenant acme is 1001; it must be in \[0, 1000\], from its priority on",
        ),
        (
            "max_priority",
            -1,
            r"max_priority of tenant acme is -1; it must be in \[0, 1000\], from its priority on",
        ),
        ("key_prefix", "-sk", "key_prefix is '-sk'"),
    ],
)
def test_options_that_cannot_be_are_refused(field: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        TenantOptions(**{"name": "acme", field: value})  # type: ignore[arg-type]
    assert caught.value.field in (field, "tenant")


def test_two_tenants_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two tenants are named 'acme'"):
        Tenants([TenantOptions(name="acme"), TenantOptions(name="acme", weight=2.0)])


async def test_numbers_stay_when_the_list_changes(state_url: str) -> None:
    async with await open_store(state_url) as store:
        options = [TenantOptions(name=name) for name in ("b", "a")]
        first = await Tenants.numbered(options, store, others=["flag:1"])
        assert [first.number(name) for name in ("b", "a", "flag:1")] == [1, 2, 3]
        later = await Tenants.numbered([TenantOptions(name="c"), *options[1:]], store)
        assert [later.number(name) for name in ("c", "a")] == [4, 2]


def test_without_a_state_numbers_follow_the_list() -> None:
    tenants = Tenants([TenantOptions(name="b"), TenantOptions(name="a")], {"flag:1": 1})
    assert [tenants.number(name) for name in ("flag:1", "b", "a", "c")] == [1, 2, 3, None]


def test_a_listed_tenants_principal_has_its_groups_first_and_each_once() -> None:
    tenants = Tenants([TenantOptions(name="acme", groups=("gold", "all"))])
    principal = tenants.principal("acme", groups=("team", "gold"), claims={"sub": "ada"})
    assert principal is not None
    assert principal.groups == ("gold", "all", "team")
    assert "ada" not in repr(principal)
    assert tenants.principal("other", 9) is None


def test_where_none_is_listed_every_tenant_with_a_number_is_served() -> None:
    assert Tenants().principal("acme", 9, key_id="k") == Principal(tenant="acme", number=9, key_id="k")
    assert Tenants().principal("acme") is None


@pytest.mark.parametrize(
    ("own", "asked", "found"),
    [
        (0, None, 0),
        (3, None, 3),
        (3, 2, 5),
        (10, 0, MAX_PRIORITY),
        (-10, MAX_PRIORITY, -2),
        (-10, None, -MAX_PRIORITY),
    ],
)
def test_a_tenants_priority_is_added_to_a_requests_own_within_bounds(
    own: int, asked: int | None, found: int
) -> None:
    assert Principal(tenant="acme", number=1, priority=own).priority_of(asked) == found


def test_anyone_asks_for_what_it_asks_for() -> None:
    assert [ANYONE.priority_of(asked) for asked in (None, -8, 8)] == [0, -8, 8]
    assert ANYONE.number == 0


@pytest.mark.parametrize(
    ("own", "most", "asked", "refused"),
    [
        (0, None, (None, 0, -1, -8), (1, 8)),
        (4, None, (None, 0, -4, -8), (1, 8)),
        (-4, 0, (None, 4, -8), (5, 8)),
        (-10, None, (None, 0, -8), (1, 8)),
        (0, 1000, (None, -8, 8), ()),
    ],
)
def test_a_request_is_not_served_before_what_its_tenant_may_ask_for(
    own: int, most: int | None, asked: tuple[int | None, ...], refused: tuple[int, ...]
) -> None:
    tenants = Tenants([TenantOptions(name="acme", priority=own, max_priority=most)])
    for principal in (
        tenants.principal("acme", key_id="k"),
        tenants.principal("acme", claims={"sub": "ada"}),
    ):
        assert principal is not None
        for one in asked:
            assert principal.priority_of(one) <= max(-MAX_PRIORITY, own if most is None else most)
        for one in refused:
            accepted = (own if most is None else most) - own
            says = f"priority is {one}; accepted of tenant acme: -8 to {accepted}, by its max_priority"
            with pytest.raises(RequestError, match=f"^{says}$") as caught:
                principal.priority_of(one)
            assert caught.value.field == "priority"


def test_where_no_tenants_are_listed_requests_say_what_is_served_first() -> None:
    principal = Tenants().principal("acme", 9)
    assert principal is not None
    assert principal.priority_of(MAX_PRIORITY) == MAX_PRIORITY


async def test_the_engine_is_told_every_listed_tenants_weight() -> None:
    told: list[tuple[int, float]] = []

    class Engine:
        async def set_tenant(self, tenant: int, weight: float) -> None:
            told.append((tenant, weight))

    await Tenants([TenantOptions(name="a", weight=2.5), TenantOptions(name="b")], {"x": 1}).tell(Engine())
    assert told == [(2, 2.5), (3, 1.0)]
