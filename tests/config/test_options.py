"""What the engine and the gateway get of a config."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from airi import builtin
from airi.config.models import Engine, EngineSettings
from airi.config.options import check_served, engine_options, server_options
from airi.config.tenants import Algorithm, Auth, Oidc, Tenant
from airi.engine.options import EngineOptions, ModelOptions
from airi.errors import ConfigFileError
from airi.policy.oidc import ALGORITHMS, OidcOptions
from airi.policy.tenants import TenantOptions

from .conftest import MINIMAL, config, with_demo

FULL = """\
    version: 1
    server:
      host: "::1"
      port: 0
      body_limit: 1MiB
      drain_timeout_s: 3
      cors: {origins: ["https://a.example"]}
      tls: {cert: c.pem, key: k.pem}
      open: {openapi: true}
    engine:
      device: cpu
      threads: 2
      kv_memory: 1GiB
      host_kv_memory: 2GiB
      disk_kv_path: disk
      disk_kv_memory: 3GiB
      max_num_seqs: 8
      max_model_len: 256
      record_steps: /tmp/steps
    models:
      - name: one
        versions: [{id: v1, source: ./models/one}]
        aliases: [gpt]
        chat_template: t.jinja
        engine: {dtype: float32, max_model_len: 128, max_num_batched_tokens: 64, enable_prefix_caching: true}
        resources: {share: 3, kv_share: 2, kv_memory: {min: 1MiB, max: 1GB}, sleepable: true}
        slo: {ttft_ms: {p99: 400}, itl_ms: {p99: 40}}
      - {name: two, source: "hf://org/two@main", chat_template: t.jinja}
    tenants: [{name: t}]
    observability: {prometheus: false}
    """


def test_a_minimal_config_is_the_engine_that_flags_would_give_without_any() -> None:
    file = config(MINIMAL)
    expected = EngineOptions(models=(ModelOptions(path=str(builtin.path()), name="demo"),))
    assert engine_options(file) == expected
    options = server_options(file)
    assert (options.host, options.port, options.app.needs_key, options.app.open_pages) == (
        "127.0.0.1",
        8000,
        False,
        (),
    )


def test_everything_that_is_said_of_the_engine_reaches_it() -> None:
    options = engine_options(config(FULL, path="/etc/airi/airi.yaml"))
    one, two = options.models
    assert one == ModelOptions(
        path="/etc/airi/models/one",
        name="one",
        aliases=("gpt",),
        dtype="float32",
        max_model_len=128,
        weight=3,
        kv_share=2,
        kv_min=2**20,
        kv_max=10**9,
        sleepable=True,
        ttft_ms=400,
        itl_ms=40,
    )
    assert two == ModelOptions(path="hf://org/two@main", name="two")
    assert (options.device, options.threads, options.kv_memory, options.max_num_seqs) == ("cpu", 2, 2**30, 8)
    assert (options.max_batch_tokens, options.max_model_len) == (64, 256)
    assert (options.disk_kv_path, options.record_steps) == ("/etc/airi/disk", "/tmp/steps")


def test_everything_that_is_said_of_the_server_reaches_it() -> None:
    options = server_options(config(FULL, path="/etc/airi/airi.yaml"))
    assert (options.host, options.port, options.drain_timeout_s) == ("::1", 0, 3)
    assert (options.tls_cert, options.tls_key) == (Path("/etc/airi/c.pem"), Path("/etc/airi/k.pem"))
    assert options.chat_template == Path("/etc/airi/t.jinja")
    app = options.app
    assert (app.needs_key, app.body_limit, app.cors_origins) == (True, 2**20, ("https://a.example",))
    assert (app.metrics_page, app.open_pages) == (False, ("/openapi.json",))


def test_tenants_reach_those_who_know_callers() -> None:
    text = """\
        version: 1
        server: {state: "sqlite:///x.db"}
        models: [{name: a, source: x}]
        tenants:
          - name: acme
            auth:
              key_prefix: sk-acme
              oidc: {issuer: "https://i.example", audience: airi, accept_groups: [ops], region_claim: geo}
            region: eu
            groups: [gold]
            priority: 10
            max_priority: 12
            weight: 3
          - {name: lab}
        """
    app = server_options(config(text)).app
    assert app.state == f"sqlite:///{Path.cwd() / 'x.db'}"
    acme, lab = app.tenants
    oidc = OidcOptions(
        issuer="https://i.example", audience="airi", accept_groups=("ops",), region_claim="geo"
    )
    assert acme == TenantOptions(
        name="acme",
        groups=("gold",),
        priority=10,
        max_priority=12,
        weight=3,
        region="eu",
        key_prefix="sk-acme",
        oidc=oidc,
    )
    assert lab == TenantOptions(name="lab")
    assert server_options(config(MINIMAL)).app.state is None


def test_every_option_of_a_tenant_has_a_key() -> None:
    keys = {*Tenant.model_fields, *Auth.model_fields} - {"auth", "limits"}
    assert keys == set(TenantOptions.__dataclass_fields__)
    assert set(Oidc.model_fields) == set(OidcOptions.__dataclass_fields__)
    assert get_args(Algorithm) == ALGORITHMS


def test_every_option_of_the_engine_has_a_key() -> None:
    renamed = {"max_num_batched_tokens": "max_batch_tokens", "enable_prefix_caching": "prefix_caching"}
    keys = {renamed.get(name, name) for name in Engine.model_fields}
    elsewhere = {
        "models",
        "ttft_ms",  # slo of models
        "itl_ms",
        "backend",  # for comparison only
        "kv_fraction",
        "kv_event_records",
        "hash_key",  # replicas of one config have one
    }
    assert set(EngineOptions.__dataclass_fields__) - keys == elsewhere
    assert keys - set(EngineOptions.__dataclass_fields__) == {"replicas"}  # of engines


def test_defaults_of_the_engine_are_the_engines_own() -> None:
    options = EngineOptions(models=(ModelOptions(path="x"),))
    for name in Engine.model_fields.keys() - EngineSettings.model_fields.keys() - {"replicas"}:
        default = Engine.model_fields[name].default
        assert default is None or default == getattr(options, name), name


def test_a_folder_called_as_the_built_in_model_comes_first(tmp_path: Path) -> None:
    (tmp_path / "airi-demo").mkdir()
    (model,) = engine_options(config(MINIMAL, path=str(tmp_path / "airi.yaml"))).models
    assert model.path == str(tmp_path / "airi-demo")


def test_a_lock_takes_the_place_of_a_source() -> None:
    file = config(FULL)
    options = engine_options(file, sources={"two": "hf://org/two@0123"})
    assert [model.path for model in options.models] == ["models/one", "hf://org/two@0123"]


def test_what_the_engine_alone_can_tell_has_a_line_too() -> None:
    file = config(with_demo("engine:\n  device: cpu\n  kv_cache_dtype: fp8\n"))
    with pytest.raises(ConfigFileError) as caught:
        engine_options(file)
    assert caught.value.lines == ("airi.yaml:6: engine: kv_cache_dtype is 'fp8'; on CPUs it must be 'auto'",)


@pytest.mark.parametrize(
    ("served", "mistakes"),
    [
        ({"one": ("gpt", "more"), "two": ()}, []),
        (
            {"two": (), "three": ()},
            [
                "airi.yaml:21: models[0].name is 'one'; accepted: what the engine serves, one of: two, three",
                "airi.yaml:20: models is without three; accepted: all that the engine serves",
            ],
        ),
        (
            {"one": ("chat",), "two": ()},
            [
                "airi.yaml:23: models[0].aliases[0] is 'gpt'; accepted: an alias that the engine has for one: chat"
            ],
        ),
    ],
)
def test_an_engine_that_runs_must_serve_the_models_of_the_config(
    served: dict[str, tuple[str, ...]], mistakes: list[str]
) -> None:
    file = config(FULL)
    if not mistakes:
        check_served(file, served)
        return
    with pytest.raises(ConfigFileError) as caught:
        check_served(file, served)
    assert list(caught.value.lines) == mistakes
