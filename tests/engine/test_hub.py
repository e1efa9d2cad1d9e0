"""Models by hub reference, against a stub hub; huggingface_hub reads its environment once, so in processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airi.engine.backends import LoadOptions, get_backend
from airi.engine.hub import parse_hub_reference, resolve_model_path
from airi.errors import CheckpointError, ConfigError
from tests.engine.stub_hub import StubHub, serve_stub_hub
from tests.engine.tiny_models import make_checkpoint

# Without the pauses between the attempts of huggingface_hub.
_PROGRAM = """
import sys, time
time.sleep = lambda seconds: None
from airi.engine.hub import resolve_model_path
from airi.errors import AiriError
try:
    print(resolve_model_path(sys.argv[1]))
except AiriError as error:
    print(error)
    sys.exit(3)
"""


@pytest.fixture
def hub(checkpoint: Callable[[str], Path], tmp_path: Path) -> Iterator[StubHub]:
    repository = make_checkpoint("llama", tmp_path / "tiny", max_shard_size="100KB")
    (repository / "tokenizer.json").write_text("{}")
    (repository / "additional_chat_templates").mkdir()
    (repository / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    (repository / "1_Pooling").mkdir()
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        (repository / name).write_text(f'{{"of": "{name}"}}')  # files of the same content are fetched once
    (repository / "pytorch_model.bin").write_bytes(b"never fetched")
    (repository / "README.md").write_text("never fetched")
    with serve_stub_hub() as server:
        server.revisions["acme/tiny", "main"] = repository
        server.revisions["acme/tiny", "v1.0"] = checkpoint("qwen2")
        server.revisions["acme/empty", "main"] = tmp_path / "empty"
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "config.json").write_text("{}")
        yield server


def resolve(model: str, home: Path, **environment: str) -> tuple[int, str]:
    """Exit status and last line of a process that resolves `model` with its cache in `home`."""
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith("HF_")}
    kept |= {"HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, model],
        env=kept,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.strip()


def test_a_snapshot_holds_the_needed_files_only_and_is_reused_offline(hub: StubHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    status, folder = resolve("hf://acme/tiny", home, HF_ENDPOINT=hub.url)
    assert status == 0, folder
    shards = {path.name for path in (tmp_path / "tiny").glob("*.safetensors")}
    names = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert names == shards | {
        "1_Pooling/config.json",
        "additional_chat_templates/rag.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    }
    assert set(hub.fetched) == names
    assert get_backend("cpu").load_model(Path(folder), LoadOptions()).info.family == "llama"
    hub.fetched.clear()
    assert resolve("hf://acme/tiny", home, HF_HUB_OFFLINE="1") == (0, folder)
    assert hub.fetched == []


def test_a_revision_is_fetched_by_its_name(hub: StubHub, tmp_path: Path) -> None:
    status, folder = resolve("hf://acme/tiny@v1.0", tmp_path / "home", HF_ENDPOINT=hub.url)
    assert status == 0, folder
    assert json.loads((Path(folder) / "config.json").read_text())["model_type"] == "qwen2"


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("hf://acme/absent", "no such repository"),
        ("hf://acme/tiny@v9", "no such revision v9"),
        ("hf://acme/empty", "has no model.safetensors"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(
    model: str, reason: str, hub: StubHub, tmp_path: Path
) -> None:
    status, line = resolve(model, tmp_path / "home", HF_ENDPOINT=hub.url)
    assert status == 3
    assert "\n" not in line
    assert line.startswith(model)
    assert reason in line


def test_a_download_that_breaks_off_is_one_line(hub: StubHub, tmp_path: Path) -> None:
    hub.drops = "config.json"
    status, line = resolve("hf://acme/tiny", tmp_path / "home", HF_ENDPOINT=hub.url)
    assert status == 3
    assert "\n" not in line
    assert line.startswith("hf://acme/tiny cannot be fetched: RemoteProtocolError: ")


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_that_cannot_be_reached_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    status, line = resolve("hf://acme/tiny", tmp_path / "home", **environment)
    assert status == 3
    assert "\n" not in line
    assert line.startswith("hf://acme/tiny cannot be fetched: not in the local cache")


@pytest.mark.parametrize(
    "model", ["hf://", "hf://name", "hf://a/b/c", "hf://../b", "hf://a/b@", "hf://a/b@ v"]
)
def test_a_malformed_reference_says_what_is_accepted(model: str) -> None:
    with pytest.raises(ConfigError, match=r"accepted: a folder or hf://org/name\[@revision\]"):
        parse_hub_reference(model)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model folder .*absent does not exist"):
        resolve_model_path(str(tmp_path / "absent"))
    assert resolve_model_path(str(tmp_path)) == tmp_path
