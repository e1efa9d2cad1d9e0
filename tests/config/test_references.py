"""What the parts of a config say of each other."""

from __future__ import annotations

import pytest

from .conftest import config, lines, with_demo

TWO = """\
version: 1
models:
  - {name: a, source: x, aliases: [gpt], price: {input_per_1m: 1}}
  - {name: b, source: y}
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "tenants: [{name: t}, {name: t}]",
            "5: tenants[1].name is 't'; accepted: a name that no other tenant has",
        ),
        (
            "tenants: [{name: t, limits: {models: {c: {rpm_limit: 1}}}}]",
            "5: tenants[0].limits.models.c is the limit of a model that is not served; accepted: one of: a, b",
        ),
        (
            "tenants: [{name: t, limits: {max_budget: 3}}]",
            "5: tenants[0].limits.max_budget is 3; accepted: a budget where every model has a price; none have: b",
        ),
        (
            "tenants: [{name: t, limits: {models: {b: {max_budget: 3}}}}]",
            "5: tenants[0].limits.models.b.max_budget is 3; accepted: a budget for a model with a price; b has none",
        ),
        (
            "tenants:\n- {name: t, auth: {oidc: {issuer: 'https://i', audience: x}}}\n"
            "- {name: u, auth: {oidc: {issuer: 'https://i', audience: x}}}",
            "7: tenants[1].auth.oidc is a mapping; accepted: an issuer and audience that no other tenant has",
        ),
        (
            "tenants: [{name: t, priority: 4, max_priority: 2}]",
            "5: tenants[0].max_priority is 2; accepted: 4, which is its priority, or more",
        ),
        ("policies: {}", "5: policies is without text; accepted: text or file"),
        ("policies: {text: x, file: y}", "5: policies is both text and file; accepted: text or file"),
        (
            "content: {input: [{name: r}]}",
            "5: content.input[0] is a rule without patterns; accepted: a rule with detectors, words, file",
        ),
        (
            "content: {input: [{name: r, words: [x], models: [gpt, c]}]}",
            "5: content.input[0].models[1] is 'c'; accepted: one of: a, gpt, b",
        ),
        (
            "content: {output: [{name: r, words: [x], tenants: [t]}]}",
            "5: content.output[0].tenants[0] is 't'; accepted: none",
        ),
        (
            "content: {output: [{name: r, judge: c}]}",
            "5: content.output[0].judge is 'c'; accepted: one of: a, gpt, b",
        ),
        (
            "content: {input: [{name: r, judge: a, action: redact}]}",
            "5: content.input[0].action is 'redact'; accepted: block, annotate or audit",
        ),
        (
            "content: {output: [{name: r, words: [x], question: Rude}]}",
            "5: content.output[0].question is 'Rude'; accepted: a question beside the judge",
        ),
        (
            "content: {output: [{name: r, words: [x]}, {name: r, words: [y]}]}",
            "5: content.output[1].name is 'r'; accepted: a name that no other rule of output has",
        ),
        (
            "server: {host: 0.0.0.0}",
            "5: server.host is '0.0.0.0'; accepted: 127.0.0.1, ::1 or localhost, unless tenants says who may call",
        ),
        (
            "engine: {disk_kv_path: d}",
            "5: engine.disk_kv_memory is missing; accepted: disk_kv_path and disk_kv_memory",
        ),
    ],
)
def test_what_is_nowhere_else_is_named(text: str, line: str) -> None:
    (found,) = lines(TWO + text)
    assert found.startswith(line)


TASKS = """\
version: 1
models:
  - {name: a, source: x, chat_template: t.jinja}
  - {name: e, source: y, task: embed, aliases: [v]}
  - {name: c, source: z, task: classify}
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "content: {input: [{name: r, judge: v}]}",
            "6: content.input[0].judge is 'v'; accepted: one of: a",
        ),
        (
            "routes: [{name: r, default: a, classifier: {model: c, labels: {x: a, y: a}}}]",
            "6: routes[0].classifier.model is 'c'; accepted: one of: a",
        ),
        (
            "routes: [{name: r, default: e, fallback: [c]}]",
            "6: routes[0] is r; accepted: models of one task; c is for classify and e for embed",
        ),
    ],
)
def test_only_models_for_chat_are_asked_in_words_and_routes_keep_to_one_task(text: str, line: str) -> None:
    (found,) = lines(TASKS + text)
    assert found.startswith(line)


def test_routes_may_be_over_models_of_vectors() -> None:
    assert config(TASKS + "routes: [{name: r, default: e, fallback: [v]}]").config.routes[0].default == "e"


def test_a_model_that_reads_no_chats_has_no_template_and_another_server_runs_chats_alone() -> None:
    upstream = "{base_url: 'http://x/v1', model: m, max_model_len: 64}"
    text = f"""\
        version: 1
        models:
          - {{name: e, source: y, task: embed, chat_template: t.jinja}}
          - {{name: u, task: embed, upstream: {upstream}}}
        """
    assert lines(text) == [
        "3: models[0].chat_template is 't.jinja'; accepted: a model for chat beside it",
        "4: models[1].task is 'embed'; accepted: chat, where another server runs it",
    ]


def test_names_and_aliases_of_models_differ() -> None:
    text = "version: 1\nmodels:\n  - {name: a, source: x, aliases: [b, a]}\n  - {name: b, source: y}\n"
    assert lines(text) == [
        "3: models[0].aliases[1] is 'a'; accepted: a name that no other model, alias or route has",
        "4: models[1].name is 'b'; accepted: a name that no other model, alias or route has",
    ]


def test_models_of_one_engine_agree_on_what_they_share() -> None:
    text = """\
        version: 1
        engine: {max_num_seqs: 8}
        models:
          - {name: a, source: x, engine: {max_num_seqs: 8, dtype: float32, block_size: 16}}
          - {name: b, source: y, engine: {max_num_seqs: 9, dtype: bfloat16, block_size: 32}}
        """
    assert lines(text) == [
        "5: models[1].engine.max_num_seqs is 9; accepted: 8 as in engine: models on one device share it",
        "5: models[1].engine.block_size is 32; accepted: 16 as in models[0]: models on one device share it",
    ]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "'[::1]'", "localhost", "LOCALHOST"])
def test_without_tenants_this_machine_is_served(host: str) -> None:
    assert config(with_demo(f"server: {{host: '{host}'}}".replace("''", "'"))).config.tenants == ()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "'::'", "192.168.1.2", "example.org", "127.0.0.1.example.org", "1270.0.1"]
)
def test_others_are_served_with_tenants_alone(host: str) -> None:
    text = with_demo(f"server:\n  host: {host}\n")
    assert lines(text)[0].startswith("5: server.host is ")
    assert config(text + "tenants: [{name: t}]\n").config.server.host == host.strip("'")
