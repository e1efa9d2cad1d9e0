"""Sources are resolved to what they are, and a server runs that and nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from airi.config import ConfigFile
from airi.config.lock import digest_folder, lock_path, pinned_sources, resolve, write_lock
from airi.errors import CheckpointError, ConfigError, ConfigFileError
from tests.engine.oci_registry import running_registry
from tests.engine.test_oci import push

from .conftest import write

TEXT = "version: 1\nmodels:\n  - {name: a, source: ./m}\n"
HUB = "version: 1\nmodels:\n  - {name: a, source: 'hf://org/a@main'}\n"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(tmp_path: Path) -> ConfigFile:
    """A config of one folder with two files."""
    (tmp_path / "m" / "sub").mkdir(parents=True)
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "sub" / "w.bin").write_bytes(b"123")
    return write(tmp_path, TEXT)


def by_hand(files: dict[str, bytes]) -> str:
    """The digest as the module's docstring says it."""
    whole = hashlib.sha256()
    for name in sorted(files):
        own = hashlib.sha256(files[name]).hexdigest()
        whole.update(f"{name}\0{len(files[name])}\0{own}\n".encode())
    return whole.hexdigest()


def test_a_folder_is_its_files_names_and_contents(file: ConfigFile) -> None:
    assert resolve(file)["a"].sha256 == by_hand({"config.json": b"{}", "sub/w.bin": b"123"})


def test_a_digest_changes_with_names_and_contents_alone(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a").write_bytes(b"xy")
    before = digest_folder(folder)
    (folder / ".hidden").write_text("z")
    (folder / ".git").mkdir()
    (folder / ".git" / "x").write_text("z")
    (folder / "a").touch()
    assert digest_folder(folder) == before
    seen = {before}
    for name, data in (("a", b"xz"), ("b", b""), ("b", b"y")):
        (folder / name).write_bytes(data)
        seen.add(digest_folder(folder))
    (folder / "b").rename(folder / "c")
    seen.add(digest_folder(folder))
    assert len(seen) == 5


def test_links_to_files_count_as_the_files(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"123")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").symlink_to(tmp_path / "blob")
    assert digest_folder(tmp_path / "m") == by_hand({"w": b"123"})
    (tmp_path / "m" / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="gone is no file, or a link to nothing"):
        digest_folder(tmp_path / "m")


def test_progress_ends_with_all_bytes(file: ConfigFile) -> None:
    told: list[tuple[str, int, int]] = []
    resolve(file, lambda model, done, total: told.append((model, done, total)))
    assert told == [("a", 2, 5), ("a", 5, 5)]


def test_a_lock_is_json_beside_the_config(file: ConfigFile) -> None:
    path = write_lock(file, resolve(file))
    assert path == lock_path(file) == file.folder / "airi.lock"
    held = json.loads(path.read_text())
    assert held["version"] == 1
    assert held["models"]["a"]["source"] == "./m"
    assert sorted(entry.name for entry in file.folder.iterdir()) == ["airi.lock", "airi.yaml", "m"]


def test_without_a_lock_nothing_is_pinned(file: ConfigFile) -> None:
    assert pinned_sources(file) == {}


def test_a_folder_that_is_as_it_was_is_served(file: ConfigFile) -> None:
    write_lock(file, resolve(file))
    assert pinned_sources(file) == {"a": str(file.folder / "m")}


def refused(file: ConfigFile) -> str:
    with pytest.raises(ConfigFileError) as caught:
        pinned_sources(file)
    (line,) = caught.value.lines
    return line.removeprefix(f"{file.path}:")


def test_a_folder_that_has_changed_is_not_served(file: ConfigFile) -> None:
    write_lock(file, resolve(file))
    (file.folder / "m" / "sub" / "w.bin").write_bytes(b"124")
    assert refused(file) == (
        "3: models[0].source is './m'; accepted: the files that airi.lock was made of; the folder's are others now, or "
        "run `airi lock` again"
    )
    (file.folder / "m" / "config.json").unlink()
    (file.folder / "m" / "sub" / "w.bin").unlink()
    (file.folder / "m" / "sub").rmdir()
    (file.folder / "m").rmdir()
    assert "accepted: a folder that can be read (" in refused(file)


def test_a_source_that_the_lock_does_not_know_is_not_served(file: ConfigFile) -> None:
    write_lock(file, resolve(file))
    other = write(file.folder, TEXT.replace("./m", "m"))
    assert refused(other).startswith(
        "3: models[0].source is 'm'; accepted: what airi.lock says, which has another"
    )
    renamed = write(file.folder, TEXT.replace("name: a", "name: b"))
    assert "which has no such model" in refused(renamed)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "models": {}}', '{"version": 1, "models": {"a": {"x": 1}}}', "[" * 9000],
)
def test_a_lock_that_is_none_is_one_line(file: ConfigFile, text: str) -> None:
    lock_path(file).write_text(text)
    with pytest.raises(ConfigError, match=r"airi\.lock is not a lock of this version; run `airi lock` again"):
        pinned_sources(file)


def test_a_repository_is_resolved_to_a_commit_and_served_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def model_info(self: Any, repo: str, *, revision: str | None, timeout: float) -> Any:
        asked.append((repo, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    file = write(tmp_path, HUB)
    locked = resolve(file)
    assert (asked, locked["a"].commit) == ([("org/a", "main")], COMMIT)
    write_lock(file, locked)
    assert pinned_sources(file) == {"a": f"hf://org/a@{COMMIT}"}


def test_a_hub_that_cannot_be_asked_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(*_: Any, **__: Any) -> Any:
        raise ConnectionError("to 10.0.0.1 refused, with a token")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(ConfigFileError) as caught:
        resolve(write(tmp_path, HUB))
    assert caught.value.lines == (
        f"{tmp_path}/airi.yaml:3: models[0].source is 'hf://org/a@main'; accepted: a source that can be read "
        "(hf://org/a@main: the hub cannot be asked: ConnectionError)",
    )


def test_a_lock_that_cannot_be_written_leaves_the_one_before(
    file: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(file, resolve(file))
    before = lock_path(file).read_text()

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ConfigError, match=r"airi\.lock cannot be written: No space left on device"):
        write_lock(file, {})
    assert lock_path(file).read_text() == before
    assert not list(file.folder.glob(".airi*"))


def test_what_a_registry_gives_is_locked_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRI_CACHE", str(tmp_path / "cache"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with running_registry(tmp_path) as host:
        push(model, f"{host}/acme/tiny:1", monkeypatch)
        file = write(tmp_path, f"version: 1\nmodels:\n  - {{name: a, source: 'oci://{host}/acme/tiny:1'}}\n")
        locked = resolve(file)
        assert locked["a"].sha256 == by_hand({"config.json": b"{}"})
        write_lock(file, locked)
        assert (Path(pinned_sources(file)["a"]) / "config.json").read_text() == "{}"
        (model / "config.json").write_text("[]")
        push(model, f"{host}/acme/tiny:1", monkeypatch)
        with pytest.raises(ConfigFileError, match=r"the files that airi\.lock was made of"):
            pinned_sources(file)
