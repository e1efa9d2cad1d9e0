"""Decisions are Cedar's, denials where a policy fails, and remembered only while nothing that decides differs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.errors import ConfigError
from airi.policy import ANYONE, Principal
from airi.policy.decisions import Action, Decider, Decision, Resource

GENERAL = Resource("Model", "general", {"name": "general", "task": "chat"})
SECRET = Resource("Model", "secret", {"name": "secret", "task": "chat"})
SERVER = Resource("Server", "airi")
GOLD = Principal(tenant="acme", number=1, groups=("gold",))
BATCH = Principal(tenant="night", number=2, groups=("batch",), priority=-10)

POLICIES = """
@id("gold") permit (principal in Group::"gold", action in [Action::"chat", Action::"embed"], resource);
@id("batch") permit (principal in Group::"batch", action == Action::"chat", resource == Model::"general")
  when { context.max_tokens <= 1024 };
@id("hours") forbid (principal, action, resource == Model::"secret")
  unless { context has region && context.region == "eu" };
"""


def schema() -> dict[str, Any]:
    call = {
        "type": "Record",
        "attributes": {
            "max_tokens": {"type": "Long"},
            "stream": {"type": "Boolean"},
            "region": {"type": "String", "required": False},
        },
    }
    applies: dict[str, Any] = {
        str(action): {
            "appliesTo": {
                "principalTypes": ["Tenant"],
                "resourceTypes": ["Model"],
                "context": call,
            }
        }
        for action in Action
    }
    for action in (Action.ADMIN, Action.METRICS, Action.LIST_MODELS):
        applies[action]["appliesTo"] |= {
            "resourceTypes": ["Server"],
            "context": {"type": "Record", "attributes": {}},
        }
    text = {"type": "String"}
    kinds: dict[str, Any] = {
        "Group": {},
        "Tenant": {
            "memberOfTypes": ["Group"],
            "shape": {"type": "Record", "attributes": {"name": text, "priority": {"type": "Long"}}},
        },
        "Model": {"shape": {"type": "Record", "attributes": {"name": text, "task": text}}},
        "Server": {},
    }
    return {"": {"entityTypes": kinds, "actions": applies}}


def decider(policies: str | None = POLICIES) -> Decider:
    return Decider(policies, schema(), [GENERAL, SECRET, SERVER])


def chat(decide: Decider, principal: Principal, resource: Resource, **context: Any) -> Decision:
    return decide.decide(principal, Action.CHAT, resource, {"max_tokens": 16, "stream": False} | context)


def test_a_decision_names_the_policies_that_made_it() -> None:
    decide = decider()
    assert chat(decide, GOLD, GENERAL) == Decision(allowed=True, policies=("gold",))
    assert chat(decide, GOLD, SECRET) == Decision(allowed=False, policies=("hours",))
    assert chat(decide, GOLD, SECRET, region="eu") == Decision(allowed=True, policies=("gold",))
    assert chat(decide, BATCH, GENERAL) == Decision(allowed=True, policies=("batch",))
    assert chat(decide, BATCH, GENERAL, max_tokens=1025) == Decision(allowed=False)
    assert chat(decide, ANYONE, GENERAL) == Decision(allowed=False)


def test_groups_are_those_of_the_call_whatever_came_before() -> None:
    decide = decider()
    plain = Principal(tenant="acme", number=1)
    for _ in range(2):
        assert chat(decide, GOLD, GENERAL).allowed
        assert not chat(decide, plain, GENERAL).allowed


@settings(deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from([GOLD, BATCH, ANYONE]),
            st.sampled_from([GENERAL, SECRET]),
            st.sampled_from([1, 1024, 1025]),
            st.booleans(),
            st.sampled_from([None, "eu", "us"]),
        ),
        max_size=20,
    )
)
def test_a_remembered_decision_is_the_one_that_cedar_makes(calls: list[Any]) -> None:
    remembering = decider()
    for principal, resource, max_tokens, stream, region in calls:
        context = {"max_tokens": max_tokens, "stream": stream} | ({"region": region} if region else {})
        found = chat(remembering, principal, resource, **context)
        assert found == chat(decider(), principal, resource, **context)


def test_a_policy_that_fails_denies(caplog: pytest.LogCaptureFixture) -> None:
    """Its numbers overflow; Cedar alone would skip it and let the call through."""
    policies = """
    permit (principal, action, resource);
    @id("sum") forbid (principal, action == Action::"chat", resource)
      when { context.max_tokens + 9223372036854775807 < 0 };
    """
    decide = decider(policies)
    for max_tokens in (16, 17, 16):
        found = chat(decide, GOLD, GENERAL, max_tokens=max_tokens)
        assert found == Decision(allowed=False, errors=("sum",)), "a denial that nothing explains is a riddle"
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING",
        "policy sum could not be evaluated for a call; such calls are denied",
    )


def test_values_that_policies_do_not_read_are_not_remembered_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    original = Decider._decide

    def counting(self: Decider, *call: Any) -> Decision:
        asked.append(call[-1])
        return original(self, *call)

    monkeypatch.setattr(Decider, "_decide", counting)
    decide = decider()
    for stream in (True, False):
        chat(decide, GOLD, GENERAL, stream=stream)
    assert len(asked) == 1
    whole = decider('permit (principal, action == Action::"chat", resource) when { context == context };')
    for stream in (True, False):
        chat(whole, GOLD, GENERAL, stream=stream)
    assert len(asked) == 3, "the policy reads the context as a whole"


@pytest.mark.parametrize(
    ("action", "resource"), [(Action.ADMIN, SERVER), (Action.PROMOTE, GENERAL)], ids=["admin", "promote"]
)
def test_a_policy_that_permits_everything_makes_nobody_an_operator(
    action: Action, resource: Resource
) -> None:
    decide = decider('@id("all") permit (principal, action, resource);')
    context = {} if resource is SERVER else {"max_tokens": 16, "stream": False}
    operator = Principal(tenant="ops", number=3, groups=("operators",))
    refused = Decision(allowed=False, policies=("airi.operators-only",))
    for principal in (GOLD, BATCH):
        assert decide.decide(principal, action, resource, context) == refused
    for principal in (operator, ANYONE):
        assert decide.decide(principal, action, resource, context).policies == ("all",)
    named = decider(f'permit (principal in Group::"gold", action == Action::"{action}", resource);')
    assert not named.decide(GOLD, action, resource, context).allowed, "operators are a group, not a policy"


def test_without_policies_models_are_everybodys_and_the_rest_is_of_operators() -> None:
    decide = decider(None)
    operator = Principal(tenant="ops", number=3, groups=("operators",))
    assert chat(decide, BATCH, SECRET) == Decision(allowed=True, policies=("airi.models",))
    assert decide.decide(BATCH, Action.ADMIN, SERVER, {}) == Decision(
        allowed=False, policies=("airi.operators-only",)
    )
    assert decide.decide(operator, Action.ADMIN, SERVER, {}) == Decision(
        allowed=True, policies=("airi.operators",)
    )
    assert decide.decide(ANYONE, Action.ADMIN, SERVER, {}) == Decision(
        allowed=True, policies=("airi.anyone",)
    )


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ("permit (principal, action, resource) wen { true };", r"policies are not Cedar: .*wen"),
        ('permit (principal, action == Action::"chta", resource);', r"do not fit their schema: .*chta"),
        (
            "permit (principal, action, resource) when { context.foo == 1 };",
            r"do not fit their schema: .*foo",
        ),
        (
            'forbid (principal, action == Action::"chat", resource) when { context.region == "eu" };',
            r"region",
        ),
    ],
)
def test_policies_that_could_not_be_evaluated_are_refused(policies: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decider(policies)
