"""Rows that policies give: any of those that permit a call adds its own, and nobody reads more."""

from __future__ import annotations

import pytest

from airi.errors import ConfigError
from airi.policy import Principal
from airi.policy.decisions import Action, Decider, Resource
from airi.policy.rows import RowFilter, all_of, any_of
from airi.policy.schema import cedar_schema

KB = Resource("Collection", "kb", {"name": "kb", "data_class": "public"})
RED = Principal(tenant="red", number=1, groups=("staff", "gold"))
BLUE = Principal(tenant="blue", number=2)
POLICIES = """
@id("own") @rows("{team: '${principal.name}'}")
permit (principal, action == Action::"retrieve", resource);
@id("staff") @rows("{team: {$in: '${principal.groups}'}, year: {$gte: 2020}}")
permit (principal in Group::"staff", action == Action::"retrieve", resource);
@id("librarian")
permit (principal == Tenant::"librarian", action == Action::"retrieve", resource);
"""


def rows_of(principal: Principal) -> object:
    decider = Decider(POLICIES, cedar_schema(), [KB])
    context = {
        "max_tokens": 0,
        "n": 1,
        "stream": False,
        "tools": False,
        "priority": 0,
        "priority_class": "standard",
        "release_asked": False,
    }
    decision = decider.decide(principal, Action.RETRIEVE, KB, context)
    assert decision.allowed
    return any_of(decision.rows, principal)


def test_a_policy_gives_the_rows_of_its_filter_with_the_caller_in_it() -> None:
    assert rows_of(BLUE) == {"team": "blue"}


def test_several_policies_give_the_rows_of_each() -> None:
    own, staff = {"team": "red"}, {"team": {"$in": ["staff", "gold"]}, "year": {"$gte": 2020}}
    assert rows_of(RED) == {"$or": [own, staff]}


def test_a_policy_without_a_filter_gives_all_rows() -> None:
    assert rows_of(Principal(tenant="librarian", number=3)) is None


def test_a_filter_of_a_request_only_takes_rows_away() -> None:
    policy, asked = {"team": "blue"}, {"$or": [{"team": "red"}, {"team": {"$exists": False}}]}
    assert all_of(policy, asked) == {"$and": [policy, asked]}
    assert all_of(None, asked) == asked
    assert all_of(policy, None) == policy
    assert all_of(None, None) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("team", "@rows is no filter"),
        ("{}", "@rows is no filter"),
        ("[", "@rows is neither JSON nor YAML"),
        ("!!python/object:os.system {}", "@rows is neither JSON nor YAML"),
        ("{team: '${principal.claims}'}", "has '${principal.claims}'; accepted: '${principal.name}'"),
        ("{team: 'x-${principal.name}'}", "has 'x-${principal.name}'"),
        ("{team: '${principal.groups}'}", "which are several; accepted: it alone under $in or $nin"),
        ("{'${principal.name}': 1}", "has the key"),
        ("{$not: " * 20 + "{a: 1}" + "}" * 20, "nested too deep"),
        ("{a: " + "x" * 20_000 + "}", "has 20005 characters"),
    ],
)
def test_what_is_no_filter_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RowFilter(text)
    assert says in str(caught.value)


def test_a_forbid_takes_no_rows() -> None:
    with pytest.raises(ConfigError, match="@rows is at a forbid"):
        Decider('@rows("{a: 1}") forbid (principal, action, resource);', cedar_schema(), [KB])
