"""Policies that are no Cedar, or speak of what there is not, by their lines."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

import pytest

from airi.config.cedar import check_policies, policy_mistakes
from airi.errors import ConfigFileError
from airi.policy.schema import ACTIONS

from .conftest import config, with_demo, write

TENANTS = "tenants: [{name: acme, groups: [gold]}]\n"
BLOCK = with_demo(TENANTS + "policies:\n  text: |\n")
FIRST = BLOCK.count("\n") + 1
"""The line of the policies' first."""


def mistakes(policies: str) -> list[tuple[int, str]]:
    """Lines within the policies, and what is wrong there."""
    found = policy_mistakes(config(BLOCK + indent(policies, "    ")))
    assert all(mistake.path == ("policies", "text") for mistake in found)
    return [(mistake.line - FIRST + 1, f"{mistake.what}; {mistake.hint}") for mistake in found]


def test_policies_that_are_right_have_no_mistake() -> None:
    policies = """\
// a comment; with a semicolon
permit (principal in Group::"gold", action in [Action::"chat", Action::"embed", Action::"retrieve"], resource);
permit (principal == Tenant::"acme", action == Action::"chat", resource == Model::"demo")
  when { context.max_tokens <= 1024 && context.stream && !context.tools };
forbid (principal, action == Action::"retrieve", resource) when { resource.data_class == "pii; \\"x" }
  unless { context has region && context.region == "eu" };
"""
    assert mistakes(policies) == []
    assert policy_mistakes(config(with_demo(""))) == []


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_can_be_spoken_of(action: str) -> None:
    assert mistakes(f'permit (principal, action == Action::"{action}", resource);') == []


@pytest.mark.parametrize(
    ("policies", "line", "says"),
    [
        (
            "permit (principal,\n\naction resource);",
            3,
            "is not Cedar: unexpected token `resource`; accepted: Cedar",
        ),
        ("permit (principal, action, resource);\n\nallow (x);", 3, "is not Cedar: "),
        (
            "permit (principal, action, resource)\nwhen { true }",
            2,
            "is not Cedar: unexpected end of input; accepted: st",
        ),
        ('permit (principal, action, resource)\nwhen { "abc };', 2, "is not Cedar: invalid token"),
        (
            "permit (principle, action, resource);",
            1,
            "is not Cedar: found an invalid variable in the policy scope",
        ),
        (
            "permit (\n  principal == ?principal, action, resource);",
            1,
            "has a template; accepted: policies without",
        ),
        (
            'permit (principal, action == Action::"chat", resource)\nwhen {\n  context.max_tokns < 3 };',
            3,
            'does not fit: attribute `max_tokns` in context for Action::"chat" not found; accepted: what',
        ),
        (
            'permit (principal, action == Action::"chat", resource) when {\n context.region == "eu" };',
            2,
            "does not fit: unable to guarantee safety of access to optional attribute `region`",
        ),
        (
            'permit (principal, action == Action::"chat", resource)\nwhen { context.stream < 3 };',
            1,
            "does not fit: unexpected type: expected Long but saw Bool",
        ),
        (
            'permit (principal in\n  Group::"silver", action, resource);',
            2,
            'speaks of Group::"silver", which is nowhere else; accepted: one of: gold',
        ),
        (
            'permit (principal, action == Action::"chat",\n resource == Model::"dmeo");',
            2,
            'speaks of Model::"dmeo", which is nowhere else; accepted: one of: demo',
        ),
        (
            '@id("a") permit (principal, action, resource);\n@id("a") forbid (principal, action, resource);',
            2,
            'has the id "a" twice; accepted: ids that differ',
        ),
    ],
)
def test_a_mistake_is_told_with_its_line(policies: str, line: int, says: str) -> None:
    ((found, told),) = mistakes(policies)
    assert (found, told[: len(says)]) == (line, says)


def test_an_unknown_action_and_an_unknown_type_are_told() -> None:
    told = mistakes('permit (principal == User::"x",\n action == Action::"cht", resource);')
    assert {line for line, _ in told} == {1, 2}
    assert any("unrecognized action" in what for _, what in told)
    assert any("unrecognized entity type `User`" in what for _, what in told)


def test_every_statement_is_looked_at() -> None:
    found = mistakes("permit (x);\npermit (principal, action, resource);\npermit (y);\n")
    assert [line for line, _ in found] == [1, 3]


def test_groups_may_come_from_an_identity_provider() -> None:
    oidc = "{issuer: 'https://i.example', audience: x, accept_groups: [GROUP]}"
    tenant = f"tenants: [{{name: a, auth: {{oidc: {oidc}}}}}]\n"
    text = 'policies:\n  text: permit (principal in Group::"operators", action, resource);\n'
    for group, count in (("operators", 0), ("'*'", 0), ("other", 1)):
        assert len(policy_mistakes(config(with_demo(tenant.replace("GROUP", group) + text)))) == count


def test_callers_without_a_key_have_a_name() -> None:
    text = 'policies:\n  text: permit (principal == Tenant::"anyone", action, resource);\n'
    assert policy_mistakes(config(with_demo(text))) == []
    assert len(policy_mistakes(config(with_demo(TENANTS + text)))) == 1


def test_a_file_of_policies_has_lines_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text("permit (principal, action, resource);\npermit (x);\n")
    file = write(tmp_path, with_demo("policies: {file: p.cedar}\n"))
    with pytest.raises(ConfigFileError) as caught:
        check_policies(file)
    assert caught.value.lines[0].startswith(f"{tmp_path / 'p.cedar'}:2: is not Cedar: ")


def test_a_text_in_quotes_has_the_line_that_it_begins_in() -> None:
    file = config(
        with_demo('policies:\n  text: "permit (principal, action, resource);\n\n    permit (x);"\n')
    )
    (found,) = policy_mistakes(file)
    assert found.line == 5
