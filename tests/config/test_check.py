"""What `airi check` finds out: models, memory, files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from airi.bench.shapes import SHAPES, make_checkpoint
from airi.config import ConfigFile, fit, load
from airi.config.check import check
from airi.config.lock import resolve, write_lock
from airi.config.options import engine_options
from airi.engine.arena import format_bytes
from airi.errors import ConfigFileError
from tests.engine.encoder_folders import embedder, reranker

from .conftest import MINIMAL, with_demo, write

GIB = 2**30
EXAMPLE = Path(__file__).parents[2] / "examples" / "airi.yaml"


def found(file: ConfigFile) -> list[str]:
    """What is wrong, without the file's name."""
    with pytest.raises(ConfigFileError) as caught:
        check(file)
    return [line.removeprefix(f"{file.path}:") for line in caught.value.lines]


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "has_driver", lambda: False)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with a model of two million parameters, in `m`."""
    (tmp_path / "m").mkdir()
    make_checkpoint(SHAPES["llama-2m"], tmp_path / "m")
    return tmp_path


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(fit, "available_memory", lambda: count)


@pytest.mark.usefixtures("_no_gpu")
def test_the_shipped_example_has_no_mistake(tmp_path: Path) -> None:
    copy = tmp_path / "airi.yaml"
    copy.write_text(EXAMPLE.read_text())
    report = check(load(copy, {}))
    assert report.summary == "2 models, 3 tenants, 4 content rules, policies"
    note, forbidden = report.notes
    assert note.startswith("fits this machine: ")
    assert "support 5.0 MiB, drafts@d1 5.0 MiB" in note
    said = r"forbidden texts for support: 11 patterns, \d+ states; masks of \d+ tokens take \d+ ms, the first \d+ us"
    assert re.fullmatch(said, forbidden)


@pytest.mark.usefixtures("_no_gpu")
def test_a_minimal_file_has_no_mistake(tmp_path: Path) -> None:
    assert check(write(tmp_path, MINIMAL)).summary == "1 model"


@pytest.mark.usefixtures("_no_gpu")
def test_a_model_that_is_not_there_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"architectures": ["OddForCausalLM"]}))
    text = "version: 1\nmodels:\n" + "".join(
        f"  - {{name: {name}, source: {source}}}\n"
        for name, source in (("a", "./no"), ("b", "empty"), ("c", "odd"), ("d", "airi.yaml"))
    )
    lines = found(write(tmp_path, text))
    assert (
        lines[0]
        == "3: models[0].source is './no'; accepted: a model that can be served (there is no such folder)"
    )
    assert lines[1].startswith("4: models[1].source is 'empty'; accepted: a model that can be served (")
    assert "config.json is missing" in lines[1]
    assert lines[2].startswith("5: models[2].source is 'odd'; accepted: a model that can be served (")
    assert (
        lines[3] == "6: models[3].source is 'airi.yaml'; accepted: a model that can be served (it is a file)"
    )


@pytest.mark.usefixtures("_no_gpu")
def test_models_that_read_texts_whole_are_looked_at_like_others(two: Path) -> None:
    for name, make in (("e", embedder), ("r", reranker)):
        make(two / name)
    models = (
        "- {name: a, source: m}\n- {name: e, source: e, task: TASK}\n- {name: r, source: r, task: classify}\n"
    )
    forbid = "content: {forbid: [{name: f, words: [heron]}]}\n"
    text = f"version: 1\nmodels:\n{models}{forbid}"
    fits, forbidden = check(write(two, text.replace("TASK", "embed"))).notes
    assert fits.startswith("fits this machine: ")
    assert forbidden.startswith("forbidden texts for a: "), "answers are of the one model that makes texts"
    for task in ("chat", "classify"):
        (line,) = found(write(two, text.replace("TASK", task)))
        assert line == f"4: models[1].task is '{task}'; accepted: embed, as its checkpoint is of such a model"


@pytest.mark.usefixtures("_no_gpu")
def test_a_window_that_the_model_does_not_have_is_named_where_it_stands(two: Path) -> None:
    text = "version: 1\nmodels:\n  - name: a\n    source: m\n    engine: {max_model_len: 999999}\n"
    (line,) = found(write(two, text))
    assert line.startswith(
        "5: models[0].engine.max_model_len is 999999; accepted: a model that can be served ("
    )


@pytest.mark.usefixtures("_no_gpu")
def test_what_does_not_fit_this_machine_is_told_with_the_amounts(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "version: 1\nmodels:\n- {name: a, source: m, resources: {kv_memory: {min: 1GiB}}}\n- {name: b, source: m}\n"
    file = write(two, text)
    free(monkeypatch, 8 * GIB)
    (note,) = check(file).notes
    assert note.startswith("fits this machine: ")
    assert note.endswith("of 8.0 GiB")
    free(monkeypatch, GIB)
    (line,) = found(file)
    assert line.startswith("2: models is 1.0 GiB, ")
    assert "MiB of weights (a " in line
    assert ", b " in line
    assert line.endswith(" and 1.0 GiB of keys and values; accepted: at most 1.0 GiB on this machine")


@pytest.mark.usefixtures("_no_gpu")
def test_replicas_have_to_fit_beside_each_other(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "version: 1\nengine: {replicas: 3, kv_memory: 3GiB}\nmodels: [{name: a, source: m}]\n"
    file = write(two, text)
    free(monkeypatch, 4 * GIB)
    (note,) = check(file).notes
    assert note.startswith("fits this machine, for each of 3 replicas: ")
    assert note.endswith("1.0 GiB of keys and values, of 1.3 GiB")
    free(monkeypatch, 3 * GIB)
    (line,) = found(file)
    assert line.endswith("; accepted: at most 1.0 GiB on this machine, for each of 3 replicas")


@pytest.mark.usefixtures("_no_gpu")
def test_a_plan_of_memory_that_does_not_add_up_is_told(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 8 * GIB)
    model = "{name: a, source: m, resources: {kv_memory: {max: 8KiB}}}"
    text = f"version: 1\nengine: {{kv_memory: 64MiB}}\nmodels: [{model}]\n"
    (line,) = found(write(two, text))
    assert line.startswith(
        "3: models is more than fits this machine; accepted: a plan of memory that adds up (kv_max"
    )


def test_accelerators_are_judged_by_their_names(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_names(names: str, kv: str, names_of_other: str = "any") -> ConfigFile:
        return write(
            two,
            "version: 1\nengine: {device: cuda}\nmodels:\n"
            f"  - {{name: a, source: m, resources: {{accelerator: [{names}], kv_memory: {{min: {kv}}}}}}}\n"
            f"  - {{name: b, source: m, resources: {{accelerator: [{names_of_other}]}}}}\n",
        )

    assert [note.partition(":")[0] for note in check(with_names("H200, l4", "10GiB")).notes] == [
        "fits H200",
        "fits L4",
    ]
    assert [note.partition(":")[0] for note in check(with_names("H200, L4", "60GiB")).notes] == ["fits H200"]
    lines = found(with_names("H100, L4", "100GiB"))
    assert [line.rpartition("; ")[2] for line in lines] == [
        "accepted: at most 74.5 GiB on H100",
        "accepted: at most 22.4 GiB on L4",
    ]
    (line,) = found(with_names("H100", "1GiB", "L4"))
    assert line == (
        "5: models[1].resources.accelerator is a list; accepted: one that the other models name too, as all run on "
        "one device"
    )


ROLLOUT = """\
version: 1
models:
  - {name: a, versions: [{id: v1, source: m}, {id: v2, source: m}, {id: v3, source: m}]}
  - {name: b, versions: [{id: w1, source: m}]}
  - {name: c, source: m}
engine: {kv_memory: 64MiB}
releases:
  a: {one: {a: v1, b: w1}, two: {a: v2, b: w1}}
rollouts:
  a:
    candidate: two
    steps: [{set_weight: 50}]
"""


def weights_of(file: ConfigFile) -> int:
    """Of the model in `m`."""
    options = engine_options(file)
    info = fit._open(Path(options.models[0].path), options, options.models[0], on_device=False)
    return fit._weight_bytes(options, info)


@pytest.mark.usefixtures("_no_gpu")
def test_a_candidate_has_to_fit_beside_what_is_served(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(two, ROLLOUT)
    each, kv = weights_of(file), 64 << 20
    free(monkeypatch, 4 * each + kv)  # v1 and v2 of a, and b and c once
    (note,) = check(file).notes
    assert note.startswith("fits this machine: ")
    free(monkeypatch, 4 * each + kv - 1)
    (line,) = found(file)
    one, all_, room = (format_bytes(size) for size in (each, 4 * each, kv - 1))
    assert line == (
        f"11: rollouts.a.candidate is two: one beside it takes {format_bytes(4 * each + kv)}, {all_} of weights "
        f"(a@v1 {one}, b@w1 {one}, c {one}, a@v2 {one}) and 64.0 MiB of keys and values; accepted: at most "
        f"{format_bytes(4 * each + kv - 1)} on this machine, so engine.kv_memory of at most {room}"
    )
    # What is served is not at fault, and without a rollout nobody loads the other.
    check(write(two, ROLLOUT.partition("rollouts:")[0]))


@pytest.mark.usefixtures("_no_gpu")
def test_weights_that_do_not_fit_beside_each_other_leave_nothing_to_lower(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ROLLOUT.replace("    candidate: two\n", "").replace("kv_memory: 64MiB", "kv_memory: 16MiB")
    text = text.replace("releases:\n  a: {one: {a: v1, b: w1}, two: {a: v2, b: w1}}\n", "")
    file = write(two, text)
    free(monkeypatch, 3 * weights_of(file) + (17 << 20))
    (line,) = found(file)
    assert line.startswith("8: rollouts.a is v2: v1 beside it takes ")
    assert "; accepted: weights that leave 16.0 MiB of " in line


@pytest.mark.usefixtures("_no_gpu")
def test_the_least_memory_of_all_has_to_be_there_for_a_candidate_too(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = ROLLOUT.replace("{name: a, ", "{name: a, resources: {kv_memory: {min: 30MiB}}, ")
    free(monkeypatch, GIB)
    (line,) = found(write(two, text))
    assert line.endswith("accepted: resources.kv_memory.min of all models within these, which are 72.0 MiB")


def test_a_candidate_that_was_never_fetched_is_a_note(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, GIB)
    text = ROLLOUT.replace("{id: v2, source: m}", '{id: v2, source: "hf://acme/absent"}')
    monkeypatch.setattr(fit, "has_driver", lambda: False)
    notes = check(write(two, text)).notes
    assert notes[-1] == (
        "rollouts.a: a@v2 is not on this machine yet, so whether two fits beside one is not known"
    )


@pytest.mark.usefixtures("_no_gpu")
def test_a_device_that_is_not_there_is_named(two: Path) -> None:
    (line,) = found(write(two, "version: 1\nengine: {device: cuda}\nmodels: [{name: a, source: m}]\n"))
    assert line.startswith(
        "2: engine.device is 'cuda'; accepted: a device that there is (no GPU's driver was found)"
    )


def test_a_gpu_of_this_machine_is_judged_by_what_is_free(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "has_driver", lambda: True)
    monkeypatch.setattr("airi.engine.backends.cuda.detect.obstacle", lambda *_: None)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: (3 * GIB, 80 * GIB))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    text = "version: 1\nengine: {device: 'cuda:1', kv_memory: 2GiB}\nmodels: [{name: a, source: m}]\n"
    (note,) = check(write(two, text)).notes
    assert note.startswith("fits GPU 1: ")
    assert note.endswith("of 3.0 GiB")
    (line,) = found(write(two, text.replace("2GiB", "3GiB")))
    assert line.endswith("accepted: at most 3.0 GiB on GPU 1")


@pytest.mark.usefixtures("_no_gpu")
def test_a_repository_that_was_never_fetched_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    file = write(tmp_path, "version: 1\nmodels: [{name: a, source: 'hf://org/never-there'}]\n")
    assert check(file).notes == (
        "a: hf://org/never-there is not on this machine yet, so its size is not known",
    )


@pytest.mark.usefixtures("_no_gpu")
def test_files_that_are_named_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("{% if %}")
    (tmp_path / "k.pem").write_text("")
    text = """\
        version: 1
        server:
          tls: {cert: c.pem, key: k.pem}
        models:
          - name: demo
            source: airi-demo
            chat_template: bad.jinja
        observability: {audit: ./no/audit.jsonl}
        engine: {record_steps: no/steps}
        """
    lines = found(write(tmp_path, text))
    assert lines[0] == "3: server.tls.cert is 'c.pem'; accepted: a file that can be read"
    assert lines[1].startswith(
        "8: observability.audit is './no/audit.jsonl'; accepted: a file in a folder that can"
    )
    assert lines[2].startswith(
        "9: engine.record_steps is 'no/steps'; accepted: a file in a folder that can be"
    )
    assert lines[3].startswith("7: models[0].chat_template is 'bad.jinja'; accepted: a chat template (")


@pytest.mark.usefixtures("_no_gpu")
def test_mistakes_of_all_kinds_are_told_together(tmp_path: Path) -> None:
    text = with_demo("policies:\n  text: permit (x);\nobservability: {audit: no/a}\n").replace(
        "airi-demo", "./no"
    )
    assert [line.split()[1] for line in found(write(tmp_path, text))] == [
        "policies.text",
        "observability.audit",
        "models[0].source",
    ]


@pytest.mark.usefixtures("_no_gpu")
def test_a_lock_of_other_sources_is_told(two: Path) -> None:
    file = write(two, "version: 1\nmodels: [{name: a, source: m}]\n")
    write_lock(file, resolve(file))
    assert check(file).summary == "1 model"
    other: Any = write(two, "version: 1\nmodels: [{name: a, source: ./m}]\n")
    assert found(other) == [
        "2: models[0].source is './m'; accepted: what airi.lock says, or run `airi lock` again"
    ]
