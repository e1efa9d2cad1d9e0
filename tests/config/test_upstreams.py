"""Models of other servers in a config: what they have, what they cannot have, and keys that nobody is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airi.config import ConfigFile, parse
from airi.config.check import check
from airi.config.fit import check_fit
from airi.config.lock import resolve
from airi.config.options import engine_options, server_options
from airi.errors import ConfigFileError

UPSTREAM = {"base_url": "http://gpu1:8000/v1", "model": "Qwen/Qwen3-8B", "max_model_len": 4096}


def config(
    model: dict[str, Any] | None = None, upstream: dict[str, Any] | None = None, **parts: Any
) -> ConfigFile:
    far = {"name": "far", "upstream": UPSTREAM | (upstream or {})} | (model or {})
    models = [{"name": "own", "source": "airi-demo"}, far]
    return parse(json.dumps({"version": 1, "models": models} | parts), "airi.yaml", {"KEY": "sk-of-far"})


def mistakes(*args: Any, **parts: Any) -> str:
    with pytest.raises(ConfigFileError) as caught:
        check(config(*args, **parts))
    return "\n".join(caught.value.lines)


def test_it_is_served_beside_models_of_the_engine_and_none_of_its() -> None:
    file = config(
        {"aliases": ["away"]}, {"api_key": "${KEY}", "timeout_s": "2m", "circuit_breaker": {"failures": 2}}
    )
    assert [model.name for model in engine_options(file).models] == ["own"]
    [model] = server_options(file).upstreams
    assert (model.aliases, model.max_model_len, model.place) == (("away",), 4096, 1)
    options = model.options
    assert (options.name, options.base_url, options.model) == ("far", "http://gpu1:8000/v1", "Qwen/Qwen3-8B")
    assert (options.api_key, options.timeout_s, options.breaker_failures) == ("sk-of-far", 120, 2)
    assert "sk-of-far" not in repr(options) + repr(file.config) + repr(model)
    assert set(resolve(file)) == {"own"}


def test_a_server_may_have_no_engine_at_all() -> None:
    file = parse(json.dumps({"version": 1, "models": [{"name": "far", "upstream": UPSTREAM}]}))
    assert check(file).summary == "1 model"
    assert check_fit(file).notes == ()
    assert server_options(file).chat_template is None


@pytest.mark.parametrize(
    ("model", "upstream", "said"),
    [
        ({"source": "airi-demo"}, {}, "models[1].source is 'airi-demo'; accepted: a model without source"),
        (
            {"engine": {"dtype": "auto"}},
            {},
            "models[1].engine is a mapping; accepted: a model without engine",
        ),
        (
            {"resources": {"share": 2}},
            {},
            "models[1].resources is a mapping; accepted: a model without resources",
        ),
        ({"slo": {"ttft_ms": {"p99": 9}}}, {}, "models[1].slo is a mapping; accepted: a model without slo"),
        (
            {},
            {"base_url": "gpu1:8000"},
            "base_url is 'gpu1:8000'; accepted: an address such as http://gpu1:8000/v1",
        ),
        (
            {},
            {"base_url": "https://me:pw@gpu1/v1"},
            "accepted: an address without a user; api_key has the key",
        ),
        ({}, {"base_url": "http://gpu1/v1?a=b"}, "accepted: an address such as"),
        ({}, {"base_url": "http://gpu1/v1/chat/completions"}, "accepted: an address such as"),
        ({}, {"api_key": "two words"}, "models[1].upstream.api_key is ***; accepted: a key"),
        ({}, {"max_model_len": 1}, "max_model_len is 1; accepted: a whole number from 2"),
        ({}, {"idle_timeout_s": 0}, "idle_timeout_s is 0; accepted: seconds, or a duration"),
        ({}, {"max_retries": 99}, "max_retries is 99; accepted: a whole number from 0 to 10"),
        ({}, {"api_base": "x"}, "api_base is an unknown key; the nearest is base_url"),
    ],
)
def test_each_mistake_is_a_line(model: dict[str, Any], upstream: dict[str, Any], said: str) -> None:
    assert said in mistakes(model, upstream)
    assert "two words" not in mistakes(model, upstream)
    assert "pw" not in mistakes(model, upstream)


def test_the_window_must_be_said() -> None:
    document = {
        "version": 1,
        "models": [{"name": "far", "upstream": {k: UPSTREAM[k] for k in ("base_url", "model")}}],
    }
    with pytest.raises(ConfigFileError, match="max_model_len is missing; accepted: a whole number"):
        parse(json.dumps(document))


@pytest.mark.parametrize("models", [[], ["far"], ["own", "away"]])
def test_what_is_forbidden_must_be_kept_from_masks_that_there_are(models: list[str]) -> None:
    rule = {"name": "names", "words": ["Bob"]} | ({"models": models} if models else {})
    said = mistakes({"aliases": ["away"]}, content={"forbid": [rule]})
    assert "another server chooses the tokens of far" in said
    check(config(content={"forbid": [{"name": "names", "words": ["Bob"], "models": ["own"]}]}))


def test_it_can_judge_and_takes_no_devices_time() -> None:
    rule = {"name": "harm", "judge": "far", "action": "block"}
    check(config(content={"input": [rule]}))
    limits = {"models": {"far": {"max_device_seconds": 9}}}
    said = mistakes(tenants=[{"name": "acme", "auth": {"key_prefix": "sk-acme"}, "limits": limits}])
    assert "far takes no time of a device here" in said


@pytest.mark.parametrize("name", ["api_key", "cache_salt_key"])
@pytest.mark.parametrize(("written", "shown"), [("plain", "***"), ("${KEY}", "${KEY}")])
def test_a_key_is_not_shown_whatever_it_looks_like(name: str, written: str, shown: str) -> None:
    masked = config(upstream={name: written}).document.root.masked()
    assert masked["models"][1]["upstream"][name] == shown


def test_a_tokenizer_is_a_folder(tmp_path: Path) -> None:
    file = config(upstream={"tokenizer": str(tmp_path)})
    assert "tokenizer" in mistakes(upstream={"tokenizer": str(tmp_path)})
    assert server_options(file).upstreams[0].tokenizer == tmp_path
