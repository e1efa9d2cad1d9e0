"""From a text to a config, or to one clear line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from airi.config import Config, ConfigFile, load, parse
from airi.config.values import Part
from airi.errors import ConfigError, ConfigFileError
from airi.policy.principal import priority_class

from .conftest import CANARY, MINIMAL, config, lines, with_demo, write

EXAMPLE = Path(__file__).parents[2] / "examples" / "airi.yaml"


def test_three_lines_are_a_config() -> None:
    assert MINIMAL.count("\n") == 3
    found = config(MINIMAL).config
    (model,) = found.models
    assert (model.name, model.location, model.task) == ("demo", "airi-demo", "chat")
    assert (found.server.host, found.server.port, found.tenants, found.policies) == (
        "127.0.0.1",
        8000,
        (),
        None,
    )


def test_the_shipped_example_says_all_there_is_to_say() -> None:
    found = load(EXAMPLE, {}).config
    assert [tenant.name for tenant in found.tenants] == ["acme", "nightly", "platform"]
    acme = found.tenants[0]
    assert acme.auth.oidc is not None
    assert acme.limits.models["drafts"].rpm_limit == 60
    assert acme.limits.budget_duration == 30 * 86400
    assert found.models[0].resources.kv_memory.min == 16 * 2**20
    assert found.content.output[0].detectors == ("pii", "credentials")
    missing = set(Config.model_fields) - found.model_fields_set
    assert not missing


def test_a_config_does_not_show_its_secrets() -> None:
    text = "server: {state: 'postgresql://u:SECRET@h/d', shared_counters: 'redis://:SECRET@h'}\n"
    file = config(with_demo(text.replace("SECRET", CANARY)))
    assert CANARY in file.config.server.state
    for shown in (repr(file), repr(file.config), str(file.config), repr(file.document)):
        assert CANARY not in shown


@pytest.mark.parametrize(
    ("priority", "name"), [(1000, "critical"), (1, "critical"), (0, "standard"), (-1, "sheddable")]
)
def test_classes_of_priority_are_told_by_their_sign(priority: int, name: str) -> None:
    assert priority_class(priority) == name


def test_a_config_cannot_be_changed() -> None:
    found = config(MINIMAL).config
    with pytest.raises(ValidationError):
        found.server.port = 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("server: {port: 70000}", "4: server.port is 70000; accepted: a whole number from 0 to 65535"),
        ("server: {port: '80'}", "4: server.port is '80'; accepted: a whole number from 0 to 65535"),
        ("server: {port: true}", "4: server.port is true; accepted: a whole number from 0 to 65535"),
        ("server: {port: 8.5}", "4: server.port is 8.5; accepted: a whole number from 0 to 65535"),
        ("server: {port: .nan}", "4: server.port is .nan; accepted: a whole number from 0 to 65535"),
        (f"server: {{port: {'9' * 5000}}}", "4: server.port is '***'; accepted: a whole"),
        ("server: 3", "4: server is 3; accepted: a mapping with host, port, grpc_port"),
        ("server: [1]", "4: server is a list; accepted: a mapping with host, port, grpc_port"),
        ("server: {tls: {cert: a.pem}}", "4: server.tls.key is missing; accepted: the path of a file"),
        (
            "server: {state: mysql://x}",
            "4: server.state is 'mysql://x'; accepted: sqlite:///PATH, with",
        ),
        (
            "server: {body_limit: lots}",
            "4: server.body_limit is 'lots'; accepted: bytes, or a size such as 8GiB",
        ),
        ("server: {drain_timeout_s: .inf}", "4: server.drain_timeout_s is .inf; accepted: a positive number"),
        ("server: {host: 'a b'}", "4: server.host is 'a b'; accepted: a host name or an IP address"),
        ("server: {open: {metrics: yes}}", "4: server.open.metrics is 'yes'; accepted: true or false"),
        ("engine: {device: tpu}", "4: engine.device is 'tpu'; accepted: auto, cpu, cuda or cuda:N"),
        ("engine: {block_size: 20}", "4: engine.block_size is 20; accepted: a multiple of 8 up to 256"),
        ("engine: {dtype: int4}", "4: engine.dtype is 'int4'; accepted: auto, float32, bfloat16 or float16"),
        ("engine: {aging_s: -1}", "4: engine.aging_s is -1; accepted: a number above 0"),
        ("tenants: {a: 1}", "4: tenants is a mapping; accepted: a list"),
        ("tenants: [a]", "4: tenants[0] is 'a'; accepted: a mapping with name, auth"),
        ("tenants:\n  - weight: 2", "5: tenants[0].name is missing; accepted: 1 to 63 letters"),
        (
            "tenants: [{name: a, priority: 1e9}]",
            "4: tenants[0].priority is 1e9; accepted: a whole number from -1000",
        ),
        ("tenants: [{name: a, weight: 0}]", "4: tenants[0].weight is 0; accepted: a positive number"),
        (
            "tenants: [{name: a, limits: {rpm_limit: -1}}]",
            "4: tenants[0].limits.rpm_limit is -1; accepted: a whole",
        ),
        (
            "tenants: [{name: a, limits: {budget_duration: 1mo}}]",
            "4: tenants[0].limits.budget_duration is '1mo'; accepted: seconds, or a duration such as 45s",
        ),
        (
            "tenants: [{name: a, limits: {classes: {gold: {}}}}]",
            "4: tenants[0].limits.classes.gold is a key here; accepted: critical, standard or sheddable",
        ),
        (
            "tenants: [{name: a, auth: {oidc: {issuer: 'http://idp.example', audience: x}}}]",
            "4: tenants[0].auth.oidc.issuer is 'http://idp.example'; accepted: an https:// address; http:// for this",
        ),
        ("policies: {engine: rego, text: x}", "4: policies.engine is 'rego'; accepted: cedar"),
        (
            "content: {input: [{name: a, regexes: ['(']}]}",
            "4: content.input[0].regexes[0] is '('; accepted: a regular expression (missing ), unterminated subpattern",
        ),
        (
            "content: {input: [{name: a, detectors: [phone]}]}",
            "4: content.input[0].detectors[0] is 'phone'; accepted: pii, credentials, email",
        ),
        (
            "observability: {log_prompts: true}",
            "4: observability.log_prompts is true; accepted: false; this version",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_accepted(text: str, line: str) -> None:
    (found,) = lines(with_demo(text))
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ("{name: a}", "2: models[0].source is without source; accepted: source, or versions"),
        ("{name: a, source: 's3://x'}", "2: models[0].source is 's3://x'; accepted: a folder, hf://org/name"),
        ("{name: a, source: 'hf://x'}", "2: models[0].source is 'hf://x'; accepted: a folder, hf://org/name"),
        ("{name: a, source: 'oci://r/X:1'}", "2: models[0].source is 'oci://r/X:1'; accepted: a folder"),
        ("{name: a, source: 'models:/x'}", "2: models[0].source is 'models:/x'; accepted: a folder"),
        ("{name: '', source: b}", "2: models[0].name is empty; accepted: a name of letters"),
        (
            "{name: a, source: b, task: paint}",
            "2: models[0].task is 'paint'; accepted: chat, embed or classify",
        ),
        (
            "{name: a, source: b, versions: [{id: v1, source: c}]}",
            "2: models[0].source is both source and versions; accepted: source, or versions",
        ),
        (
            "{name: a, versions: [{id: v1, source: b}, {id: v1, source: c}]}",
            "2: models[0].versions[1].id is 'v1'; accepted: an id that no other version of the model has",
        ),
        (
            "{name: a, source: b, resources: {accelerator: [TPU]}}",
            "2: models[0].resources.accelerator[0] is 'TPU'; accepted: any, cpu, B200",
        ),
        (
            "{name: a, source: b, resources: {kv_memory: {min: 2GiB, max: 1GiB}}}",
            "2: models[0].resources.kv_memory.min is '2GiB'; accepted: at most kv_memory.max",
        ),
        (
            "{name: a, source: b, slo: {ttft_ms: {p95: 3}}}",
            "2: models[0].slo.ttft_ms.p99 is missing; accepted: a pos",
        ),
    ],
)
def test_a_wrong_model_is_named(entry: str, line: str) -> None:
    assert lines(f"version: 1\nmodels: [{entry}]\n")[0].startswith(line)


def test_version_and_models_must_be_there() -> None:
    assert lines("server: {}\n") == [
        "1: version is missing; accepted: 1",
        "1: models is missing; accepted: a list",
    ]
    assert lines("version: 2\nmodels: []\n") == ["1: version is 2; accepted: 1"]
    assert lines("version: 1\nmodels: []\n") == ["2: models is empty; accepted: at least one model"]
    assert lines("version: true\nmodels:\n") == [
        "1: version is true; accepted: 1",
        "2: models is missing; accepted: a list",
    ]


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("server: {prot: 1}", "server.prot", "port"),
        ("tenant: []", "tenant", "tenants"),
        ("tenants: [{name: a, limits: {rpm: 3}}]", "tenants[0].limits.rpm", "rpm_limit"),
        ("engine: {gpu_memory_utilization: 0.9}", "engine.gpu_memory_utilization", "kv_memory"),
        ("server: {api_keys: [x]}", "server.api_keys", "tenants"),
        ("policies: {test: ''}", "policies.test", "text"),
        ("content: {output: [{name: x, pii: [card]}]}", "content.output[0].pii", "detectors"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(text: str, key: str, nearest: str) -> None:
    found = lines(with_demo(text))[0]
    assert found.startswith(f"4: {key} is an unknown key; the nearest is {nearest}; accepted: ")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("enable_preview_features_everywhere", "enable_preview_features_everywhere"),
        ("maximumSpendPerTeamMemberAndDay", "maximumSpendPerTeamMemberAndDay"),
        ("hf_hub_download_timeout_v2", "hf_hub_download_timeout_v2"),
        ("redact-user-api-key-info", "redact-user-api-key-info"),
        ("sk-" + "a1b2c3d4" * 4, "'***'"),
        ("a1b2c3d4" * 4, "'***'"),
    ],
)
def test_names_of_keys_are_told_however_long_and_secrets_in_their_place_are_not(key: str, told: str) -> None:
    (line,) = lines(with_demo(f"server: {{{key}: 1}}"))
    assert line.startswith(f"4: server.{told} is an unknown key")
    (twice,) = lines(with_demo(f"server:\n  {key}: 1\n  {key}: 1\n"))
    assert twice.startswith(f"6: the key {told} is given twice")


def test_a_key_like_no_other_names_all_that_are_known() -> None:
    assert lines(with_demo("zzz: 1"))[0] == (
        "4: zzz is an unknown key; accepted: collections, content, engine, models, observability, policies, "
        "releases, rollouts, routes, server, tenants, version"
    )


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("workflows: [{name: w, steps: [{id: q, input: '${request.text}'}]}]", "workflows"),
        ("server: {distributed: {engine: ray}}", "server.distributed"),
        ("observability: {otlp: 'http://x'}", "observability.otlp"),
    ],
)
def test_what_later_versions_have_is_refused_as_such(text: str, key: str) -> None:
    name = key.rpartition(".")[2]
    hint = f"this version of AIRI does not have {name}; accepted: a file without it"
    assert lines(with_demo(text)) == [f"4: {key} is given; {hint}"]


def test_autoscaling_and_adapters_of_models_are_refused_as_later() -> None:
    found = lines("version: 1\nmodels:\n  - name: a\n    source: b\n    autoscaling: {}\n    base: c\n")
    assert [line.partition(";")[0] for line in found] == [
        "5: models[0].autoscaling is given",
        "6: models[0].base is given",
    ]


def test_every_mistake_of_a_file_is_told_in_the_order_of_its_lines() -> None:
    text = """\
        version: 1
        server:
          port: -1
          hots: x
        models:
          - name: a
            source: 3
          - {name: a, task: chat}
        workflows: {}
        tenants: [{name: "?"}]
        """
    found = lines(text)
    assert [line.partition(":")[0] for line in found] == ["3", "4", "7", "9", "10"]


# -- files -------------------------------------------------------------------------------------


def test_texts_that_a_config_names_are_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text("permit (principal, action, resource);")
    (tmp_path / "words.txt").write_text("heron\n\n  blue bird \n")
    file = write(
        tmp_path,
        with_demo(
            "policies: {file: p.cedar}\ncontent: {input: [{name: w, words: [owl], file: ./words.txt}]}\n"
        ),
    )
    assert file.policies == "permit (principal, action, resource);"
    assert file.words(file.config.content.input[0]) == ("owl", "heron", "blue bird")


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigFileError) as caught:
        write(
            tmp_path,
            with_demo("policies: {file: no.cedar}\ncontent: {input: [{name: w, file: words.txt}]}\n"),
        )
    first, second = (line.rpartition("airi.yaml:")[2] for line in caught.value.lines)
    assert (
        first
        == "4: policies.file is 'no.cedar'; accepted: a file that can be read (No such file or directory)"
    )
    assert (
        second
        == "5: content.input[0].file is 'words.txt'; accepted: a file that can be read (it is not UTF-8)"
    )


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "no.yaml", tmp_path, Path("a\0b.yaml")):
        with pytest.raises(ConfigError, match=r"cannot be read|is no path"):
            load(path)


# -- any document ------------------------------------------------------------------------------

_PARTS: list[type[Part]] = list(Part.__subclasses__())
_KEYS = sorted({name for kind in _PARTS for name in kind.model_fields} | {"x", "<<", "rollouts"})
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["${SECRET}", "${A:-1}", "$$", "${", "8GiB", "30d", "hf://a/b", "auto", "airi-demo", "a", "(", "*"]
    ),
)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=30,
)
_MODELS = st.lists(
    st.fixed_dictionaries(
        {"name": _SCALARS, "source": _SCALARS}, optional={"engine": _DOCUMENTS, "slo": _DOCUMENTS}
    ),
    max_size=3,
)
_CONFIGS = st.fixed_dictionaries(
    {"version": st.just(1), "models": _MODELS},
    optional={name: _DOCUMENTS for name in Config.model_fields if name not in ("version", "models")},
)
_LINE = re.compile(r"f\.yaml:\d+: \S.*\S", re.DOTALL)


def check_any(text: str | bytes) -> None:
    try:
        found: ConfigFile | tuple[str, ...] = parse(text, "f.yaml", {"SECRET": CANARY})
    except ConfigFileError as error:
        found = error.lines
    if isinstance(found, tuple):
        assert found
        for line in found:
            assert _LINE.fullmatch(line), line
            assert line.isprintable(), line
            assert CANARY not in line


@given(_CONFIGS | _DOCUMENTS)
@example({"version": 1, "models": [{"name": "a", "source": "b", "engine": {"seed": float("nan")}}]})
@settings(max_examples=300)
def test_any_document_is_a_config_or_clean_lines(document: Any) -> None:
    check_any(yaml.safe_dump(document, allow_unicode=True))


@given(
    st.text()
    | st.binary()
    | st.lists(st.sampled_from([*"{}[]:-,&*!|>%@`'\"?#\n \t$<", "a", "- ", ": "])).map("".join)
)
@settings(max_examples=300)
def test_any_text_is_a_config_or_clean_lines(text: str | bytes) -> None:
    check_any(text)
