"""The command line of `airi serve`: names, sizes, mistakes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from airi import builtin
from airi.cli import main
from airi.cli import serve as command
from airi.cli._flags import parse_size
from airi.cli._model_flags import named_models
from airi.cli._serve_output import ServeOutput
from airi.engine import EngineOptions, ModelOptions
from airi.errors import ConfigError
from airi.gateway.lifecycle import Listening, bind
from airi.text import Tokenizer
from airi.transport import Progress


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 * 2**30),
        ("500MB", 500 * 10**6),
        ("1.5 gb", 1_500_000_000),
        ("64k", 64_000),
        ("4096", 4096),
        ("10B", 10),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size("kv_memory", text) == size


@pytest.mark.parametrize(
    "text", [pytest.param("9" * 400, id="400 digits"), "", "lots", "-1GB", "8 GiBs", "0", "1e9", "GB"]
)
def test_a_size_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"kv_memory is .*8GiB"):
        parse_size("kv_memory", text)


def test_a_folder_is_served_under_its_base_name_and_further_ones() -> None:
    (one,) = named_models(["/models/small-1b/"], ["chat", "small-1b", "gpt-4o"])
    assert (one.path, one.name, one.aliases) == ("/models/small-1b/", "small-1b", ("chat", "gpt-4o"))
    first, second = named_models(["/m/a", "hf://org/b@main"], ["b=embed", "a=chat", "a=talk"])
    assert (first.name, first.aliases) == ("a", ("chat", "talk"))
    assert (second.name, second.aliases) == ("b", ("embed",))


def test_a_model_may_be_given_another_name_than_its_folders() -> None:
    paths = ["a=/m/a", "org/b:8b=hf://org/a@main", "demo=airi-demo"]
    first, second, third = named_models(paths, ["a=chat", "org/b:8b=talk"])
    assert (first.name, first.path, first.aliases) == ("a", "/m/a", ("chat",))
    assert (second.name, second.path, second.aliases) == ("org/b:8b", "hf://org/a@main", ("talk",))
    assert (third.name, third.path) == ("demo", builtin.resolve(None))


def test_a_path_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3").mkdir()
    for path in ("lr=3", "./x=y", "/m/x=y", "../x=y", "=y", "x="):
        (model,) = named_models([path], [])
        assert (model.path, model.name) == (path, path.rpartition("/")[2])


@pytest.mark.parametrize("name", ["chat", "c=chat", "a=", "="])
def test_a_name_for_no_model_of_several_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="MODEL=NAME, MODEL one of: a, b"):
        named_models(["/m/a", "/m/b"], [name])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "70000"], "port is 70000"),
        (["--log-level", "loud"], "log_level is 'loud'"),
        (["--nope", "model"], "No such option: --nope"),
        (["--kv-memory", "much", "model"], "kv_memory is 'much'"),
        (["--kv-memory", "5XB", "model"], "kv_memory is '5XB'"),
        (["--api-key", "", "model"], "api_key is empty"),
        (["--max-body", "0"], "max_body is '0'"),
        (["--device", "abacus", "model"], "device is 'abacus'"),
        (["--dtype", "int2", "model"], "dtype is 'int2'"),
        (["--block-size", "7", "model"], "block_size is 7"),
        (["--max-num-seqs", "0", "model"], "max_num_seqs is 0"),
        (["--max-num-seqs", "200000000", "model"], "max_num_seqs is 200000000"),
        (["--max-queued", "9" * 20, "model"], f"max_queued is {'9' * 20}"),
        (["--threads", "10000000000", "model"], "threads is 10000000000"),
        (["--max-model-len", "1", "model"], "max_model_len is 1"),
        (["--tls-cert", "cert.pem", "model"], "tls_cert and tls_key go together"),
        (["--engine", "ipc:///x", "model"], "--engine:"),
        (["--engine", "ipc:///x", "--served-model-name", "m"], "--engine:"),
        (["--api-key", ""], "api_key is empty"),
        (["a/m", "b/m"], "model name 'm' is given twice; give one of them another: NAME=b/m"),
        (["m=a/x", "m=b/y"], "model name 'm' is given twice; give one of them another: NAME=b/y"),
        (["m", "--served-model-name", "="], "served_model_name is '='"),
        (
            ["a/m", "b/n", "--kv-min", "o=1GiB"],
            "kv_min is 'o=1GiB'; give a value, or MODEL=VALUE, MODEL one of: m, n",
        ),
        (["a/m", "b/n", "--kv-min", "m=much"], "kv_min is 'much'; give bytes or a size"),
        (["m", "--kv-min", "2GiB", "--kv-max", "1GiB"], "kv_min is 2147483648; it must be at most kv_max"),
        (["m", "--sleepable", "n"], "sleepable is 'n'; give a MODEL, one of: m"),
        (["m", "--model-weight", "m=0"], "weight is 0.0; it must be a positive number"),
        (["m", "--kv-share", "m=half"], "kv_share is 'half'; give a number"),
        (
            ["m", "--public-prefix", "/no/such"],
            "public_prefix is '/no/such', which cannot be read: No such file",
        ),
        (["m", "--public-prefix", "/dev/null"], "public_prefix is '/dev/null', which is empty"),
        (["m", "--max-batch-tokens", "0"], "max_batch_tokens is 0; it must be a whole number from 1"),
        (["m", "--admission", "all"], "admission is 'all'; accepted: max_util, no_evict"),
        (["m", "--schedule-policy", "sjf"], "schedule_policy is 'sjf'; accepted: lpm, fcfs"),
        (["m", "--fairness-gap-tokens", "0"], "fairness_gap_tokens is 0; it must be"),
        (["m", "--locality-quantum-tokens", "0"], "locality_quantum_tokens is 0; it must be"),
        (["m", "--dedupe-steps", "-1"], "dedupe_steps is -1; it must be"),
        (["m", "--decision-records", "-1"], "decision_records is -1; it must be"),
        (["m", "--step-warmup-s", "99"], "step_warmup_s is 99; it must be"),
        (["m", "--itl-ms", "soon"], "itl_ms is 'soon'; give milliseconds"),
        (["m", "--host-kv-memory", "0"], "host_kv_memory is '0'; give bytes or a size"),
        (
            ["m", "--disk-kv-memory", "1GiB"],
            "disk_kv_path is None and disk_kv_memory is 1073741824; give both",
        ),
        (["--engine", "ipc:///x", "--sleepable", "m"], "--engine:"),
        (["--engine", "ipc:///x", "--kv-memory", "1GiB"], "kv_memory does not go with --engine"),
        (["--engine", "ipc:///x", "--dedupe-steps", "1"], "dedupe_steps does not go with --engine"),
        (["m", "--kv-memory", "9TB", "--host-kv-memory", "9TX"], "host_kv_memory is '9TX'"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"airi: {named}")
    assert len(said.strip().splitlines()) == 1


def given(*flags: str, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    """The engine that `airi serve` would start."""
    seen: list[EngineOptions] = []
    monkeypatch.setattr(command, "_run", lambda options, *_: seen.append(options))
    assert main(["serve", *flags]) == 0
    return seen[0]


def test_flags_of_models_are_for_all_or_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["/m/a", "v1=/m/b", "--kv-min", "1GiB", "--kv-min", "v1=2GiB", "--kv-max", "a=4GiB"]
    flags += ["--sleepable", "v1", "--model-weight", "a=3", "--kv-share", "v1=0.5"]
    first, second = given(*flags, monkeypatch=monkeypatch).models
    assert (first.kv_min, first.kv_max, first.sleepable, first.weight) == (2**30, 4 * 2**30, False, 3.0)
    assert (second.kv_min, second.kv_max, second.sleepable, second.kv_share) == (2 * 2**30, None, True, 0.5)
    assert not any(model.is_elastic for model in given("/m/a", monkeypatch=monkeypatch).models)


def test_without_flags_the_engine_is_as_its_own_defaults_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = given("/m/a", monkeypatch=monkeypatch)
    assert found == EngineOptions(models=(ModelOptions(path="/m/a"),))


def test_every_option_of_the_engine_has_a_flag() -> None:
    flags = set(inspect.signature(command.serve).parameters)
    without = {
        "backend",  # for comparison only
        "kv_fraction",
        "aging_s",
        "kv_event_records",
        "hash_key",  # replicas of one command have one
        "seed",
    }
    assert set(EngineOptions.__dataclass_fields__) - flags == without
    renamed = {"path", "name", "aliases", "weight", "public_prefixes"}
    assert set(ModelOptions.__dataclass_fields__) - flags == renamed


SYSTEM = "You are the support desk of a bank. Never ask for a PIN."


def test_a_public_prefix_is_what_every_chat_with_that_system_prompt_begins_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "system.txt"
    file.write_text(f"{SYSTEM}\n")
    flags = [
        f"a={builtin.path()}",
        f"b={builtin.path()}",
        "--isolate-tenants",
        "--public-prefix",
        f"b={file}",
    ]
    options = given(*flags, monkeypatch=monkeypatch)
    assert options.isolate_tenants
    first, second = options.models
    assert first.public_prefixes == ()
    plain, chat = second.public_prefixes
    tokenizer = Tokenizer.load(builtin.path())
    for text in ("Hello", "1 + 1?", "  spaces", "\u00e4"):
        asked = tokenizer.encode_chat(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        )
        assert tuple(asked[: len(chat)]) == chat
        assert SYSTEM in tokenizer.decode(chat)
        assert tuple(tokenizer.encode(f"{SYSTEM}\n{text}")[: len(plain)]) == plain
    assert tokenizer.decode(plain) in SYSTEM
    assert len(tokenizer.decode(plain)) > len(SYSTEM) - 12, "but for what the next letters may change"


def test_a_taken_port_is_found_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "/no/such/model", "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"airi: cannot listen on 127.0.0.1 port {port}: Address already in use\n"
    )


def test_the_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    text = capsys.readouterr().out
    for option in ("--host", "--port", "--kv-memory", "--api-key", "--served-model-name", "--chat-template"):
        assert option in text


def test_the_bars_of_a_terminal_stay_hidden_once_it_listens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: as if stderr were a terminal
    monkeypatch.setenv("TERM", "xterm")
    with ServeOutput() as output:
        output.progress(Progress(model="m", stage="weights", done=1, total=2))
        output.listening(Listening(url="http://127.0.0.1:1", models=("m",)))
        assert "m: weights" in capsys.readouterr().err
        output.progress(Progress(model="m", stage="weights", done=1, total=2))  # the engine starts again
        output.progress(Progress(model="m", stage="weights", done=2, total=2))
    assert capsys.readouterr().err == ""


def test_plain_output_says_each_stage_once_and_where_it_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with ServeOutput() as output:
        output.progress(Progress(model="", stage="starting", done=0, total=1))
        for done in range(5):
            output.progress(Progress(model="m", stage="weights", done=done, total=5))
        output.listening(Listening(url="http://127.0.0.1:1", models=("m", "alias")))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("m: weights") == 1
    assert "engine: starting" in captured.err
    assert "Serving m, alias at http://127.0.0.1:1/v1" in captured.err
    assert """-d '{"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}'""" in captured.err
    assert "AIRI_API_KEY" not in captured.err


def test_where_keys_are_asked_for_the_line_to_try_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    with ServeOutput("airi keys create acme --config airi.yaml") as output:
        output.listening(Listening(url="http://127.0.0.1:1", models=("m",), needs_key=True))
    make, ask = capsys.readouterr().err.splitlines()[-2:]
    assert make == "Make a key: AIRI_API_KEY=$(airi keys create acme --config airi.yaml)"
    assert ask.startswith(
        'Try: curl http://127.0.0.1:1/v1/chat/completions -H "Authorization: Bearer $AIRI_API_KEY" '
    )
