"""LiteLLM's configs, translated: what has a counterpart, a line for what has none, and no secret."""

from __future__ import annotations

from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from airi.config import Config, parse
from airi.config.litellm import Translation, translate
from airi.errors import ConfigFileError

SECRET = "hunter2canary"
FULL = f"""\
model_list:
  - model_name: llama
    litellm_params:
      model: hosted_vllm/meta-llama/Llama-3.1-8B-Instruct
      api_base: http://10.0.0.1:8000/v1
      api_key: sk-{SECRET}
      rpm: 100
      tpm: 20000
      temperature: 0.2
    model_info: {{input_cost_per_token: 0.0000002, output_cost_per_token: 1.0e-6}}
  - model_name: llama
    litellm_params: {{model: openai/meta-llama/Llama-3.1-8B-Instruct}}
  - model_name: gpt-4o
    litellm_params: {{model: azure/gpt-4o, api_key: os.environ/AZURE}}
  - model_name: "openai/*"
    litellm_params: {{model: "openai/*"}}
  - model_name: vectors
    litellm_params: {{model: huggingface/BAAI/bge-m3}}
    model_info: {{mode: embedding}}
router_settings:
  model_group_alias: {{gpt-3.5-turbo: llama, x: {{model: gpt-4o}}, y: {{model: llama, hidden: true}}}}
  routing_strategy: least-busy
  redis_host: os.environ/REDIS_HOST
  redis_port: 6380
  redis_password: {SECRET}
general_settings:
  master_key: sk-{SECRET}
  database_url: postgresql://u:{SECRET}@h/d
  max_parallel_requests: 50
litellm_settings:
  model_alias_map: {{z: llama}}
  max_budget: 100
  budget_duration: 1mo
  callbacks: [prometheus, langfuse]
environment_variables: {{KEY: {SECRET}}}
guardrails:
  - guardrail_name: pii
    litellm_params:
      guardrail: presidio
      mode: [pre_call, post_call]
      pii_entities_config: {{CREDIT_CARD: MASK, EMAIL_ADDRESS: BLOCK, PERSON: MASK}}
  - {{guardrail_name: secrets, litellm_params: {{guardrail: hide-secrets, mode: pre_call}}}}
  - {{guardrail_name: other, litellm_params: {{guardrail: aporia, mode: during_call}}}}
"""


def translated(text: str, environ: dict[str, str] | None = None) -> tuple[Config, list[str]]:
    """The config, which must be right, and keys that were not translated."""
    found = translate(dedent(text), "l.yaml")
    keys = [line.split()[1] for line in found.lost]
    return parse(found.text, "airi.yaml", environ or {}).config, keys


def test_models_limits_prices_and_aliases_are_translated() -> None:
    config, _ = translated(FULL, {"REDIS_HOST": "r", "REDIS_PASSWORD": "p"})
    (model,) = config.models
    assert (model.name, model.source) == ("llama", "hf://meta-llama/Llama-3.1-8B-Instruct")
    assert model.aliases == ("gpt-3.5-turbo", "y", "z")
    assert model.price is not None
    assert (model.price.input_per_1m, model.price.output_per_1m) == (0.2, 1.0)
    tenant, platform = config.tenants
    assert (tenant.name, tenant.groups) == ("default", ())
    assert (platform.name, platform.groups) == ("platform", ("operators",)), (
        "keys of callers are no operator's"
    )
    assert platform.limits.max_budget is None
    limits = tenant.limits
    assert (limits.max_parallel_requests, limits.max_budget, limits.budget_duration) == (50, 100, 30 * 86400)
    assert (limits.models["llama"].rpm_limit, limits.models["llama"].tpm_limit) == (100, 20000)
    assert config.server.shared_counters == "redis://:p@r:6380"
    assert config.server.state == "sqlite:///./airi.db"


def test_guardrails_of_patterns_become_rules() -> None:
    config, _ = translated(FULL)
    rules = [(rule.name, rule.detectors, rule.action) for rule in config.content.input]
    assert rules == [
        ("pii-redact", ("payment_card",), "redact"),
        ("pii-block", ("email",), "block"),
        ("secrets", ("credentials",), "redact"),
    ]
    assert [rule.name for rule in config.content.output] == ["pii-redact", "pii-block"]


def test_everything_that_was_not_translated_has_its_line() -> None:
    found = translate(FULL, "l.yaml")
    assert all(line.startswith("l.yaml:") and " is not translated: " in line for line in _lost(found))
    assert [tuple(line.removeprefix("l.yaml:").split()[:2]) for line in _lost(found)] == [
        ("5:", "model_list[0].litellm_params.api_base"),
        ("6:", "model_list[0].litellm_params.api_key"),
        ("9:", "model_list[0].litellm_params.temperature"),
        ("11:", "model_list[1]"),
        ("13:", "model_list[2]"),
        ("15:", "model_list[3]"),
        ("17:", "model_list[4]"),
        ("21:", "router_settings.model_group_alias.x"),
        ("22:", "router_settings.routing_strategy"),
        ("25:", "router_settings.redis_password"),
        ("27:", "general_settings.master_key"),
        ("28:", "general_settings.database_url"),
        ("34:", "litellm_settings.callbacks[1]"),
        ("35:", "environment_variables"),
        ("41:", "guardrails[0].litellm_params.pii_entities_config.PERSON"),
        ("43:", "guardrails[2]"),
    ]


def _lost(found: Translation) -> list[str]:
    return [line for line in found.lost if " is translated inexactly: " not in line]


def test_what_means_something_else_here_has_a_line() -> None:
    found = translate(FULL, "l.yaml")
    assert [line for line in found.lost if line not in _lost(found)] == [
        "l.yaml:33: litellm_settings.budget_duration is translated inexactly: a month becomes 30d",
        "l.yaml:37: guardrails[0].guardrail_name is translated inexactly: it applies to every call here, and did only "
        "where a request named it",
        "l.yaml:42: guardrails[1].guardrail_name is translated inexactly: it applies to every call here, and did only "
        "where a request named it",
    ]


@pytest.mark.parametrize("entities", ["", ", pii_entities_config: {PERSON: MASK}"])
def test_a_guardrail_that_is_off_by_default_is_no_rule_for_everybody(entities: str) -> None:
    text = """\
        guardrails:
          - {guardrail_name: on, litellm_params: {guardrail: hide-secrets, mode: pre_call, default_on: true}}
          - guardrail_name: off
            litellm_params: {guardrail: hide-secrets, mode: pre_call, default_on: false%s}
        """
    found = translate(dedent(text % entities), "l.yaml")
    config, keys = translated(text % entities)
    assert [rule.name for rule in config.content.input] == ["on"]
    assert keys == ["model_list", "guardrails[1]"]
    why = "it is off unless a request names it; a rule of AIRI applies to every call"
    assert found.lost[-1] == f"l.yaml:3: guardrails[1] is not translated: {why}"


def test_no_secret_is_copied_or_told() -> None:
    found = translate(FULL, "l.yaml")
    assert SECRET not in found.text
    assert SECRET not in "\n".join(found.lost)


def test_variables_stay_variables() -> None:
    text = """\
        model_list: [{model_name: a, litellm_params: {model: vllm/o/m}}]
        general_settings: {database_url: os.environ/MY_DB}
        router_settings: {redis_url: os.environ/MY_REDIS}
        """
    config, keys = translated(text, {"MY_DB": "postgresql://h/d", "MY_REDIS": "redis://r"})
    assert (config.server.state, config.server.shared_counters) == ("postgresql://h/d", "redis://r")
    assert keys == []
    assert translated(text)[0].server.shared_counters is None


def test_a_config_without_models_that_can_run_here_is_told() -> None:
    config, keys = translated("model_list: [{model_name: g, litellm_params: {model: gpt-4o}}]\n")
    assert [model.name for model in config.models] == ["airi-demo"]
    assert keys == ["model_list", "model_list[0]"]
    assert translated("litellm_settings: {}\n")[0].tenants == ()


def test_a_budget_without_prices_is_told() -> None:
    text = """\
        model_list: [{model_name: a, litellm_params: {model: vllm/o/m}}]
        litellm_settings: {max_budget: 5, budget_duration: 30d}
        """
    found = translate(dedent(text), "l.yaml")
    assert found.lost == ("l.yaml:2: litellm_settings.max_budget is not translated: no price is given for a",)


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("hosted_vllm/org/m", "hf://org/m"),
        ("huggingface/together/org/m", "hf://org/m"),
        ("together_ai/org/m", "hf://org/m"),
        ("openai/gpt-4o", None),
        ("gpt-4o", None),
        ("bedrock/us.x-v1:0", None),
        ("vllm/../m", None),
        ("vllm/org/m@x", None),
        ("ollama/llama3", None),
    ],
)
def test_what_is_named_as_on_the_hub_is_found_there(model: str, source: str | None) -> None:
    config, _ = translated(f"model_list: [{{model_name: a, litellm_params: {{model: '{model}'}}}}]\n")
    assert config.models[0].source == (source or "airi-demo")


def test_what_is_no_yaml_is_a_line() -> None:
    with pytest.raises(ConfigFileError, match=r"l\.yaml:1: "):
        translate("[", "l.yaml")


_KEYS = [
    "model_list",
    "model_name",
    "litellm_params",
    "model",
    "model_info",
    "mode",
    "rpm",
    "tpm",
    "max_budget",
    "budget_duration",
    "master_key",
    "general_settings",
    "router_settings",
    "model_group_alias",
    "redis_url",
    "redis_host",
    "redis_port",
    "redis_password",
    "database_url",
    "litellm_settings",
    "callbacks",
    "guardrails",
    "guardrail_name",
    "guardrail",
    "default_on",
    "input_cost_per_token",
    "pii_entities_config",
    "CREDIT_CARD",
    "max_parallel_requests",
    "a",
    "llama",
]
_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["a", "llama", "vllm/o/m", "os.environ/X", "30d", "$x", "${", "presidio", "pre_call", "redis://h"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_KEYS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=25,
)
_MODEL = st.fixed_dictionaries(
    {
        "model_name": _ANY,
        "litellm_params": st.fixed_dictionaries(
            {"model": st.just("vllm/o/m") | _ANY}, optional={"rpm": _ANY}
        ),
    },
    optional={"model_info": _ANY},
)
_SECTIONS = ("general_settings", "router_settings", "litellm_settings", "guardrails")


@given(
    st.fixed_dictionaries(
        {"model_list": st.lists(_MODEL, max_size=3) | _ANY}, optional=dict.fromkeys(_SECTIONS, _ANY)
    )
)
@settings(max_examples=200)
def test_whatever_is_translated_is_a_config(document: dict[str, Any]) -> None:
    translated(yaml.safe_dump(document, allow_unicode=True))
