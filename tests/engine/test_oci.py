"""Models from a real OCI registry, and from one that lies."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import oras.client
import pytest

from airi.engine.hub import resolve_model_path
from airi.errors import CheckpointError, ConfigError

from .oci_registry import running_registry

# Of "reader" with the password "secret".
HTPASSWD = "reader:$2b$05$.UfcGKMptuVikKpCx3KgbesQzsT6m.ZiZ4YhUQEnZjnUAjIaBDhcK\n"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "additional_chat_templates").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 9000)
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    (folder / "README.md").write_text("never fetched")
    return folder


def push(folder: Path, target: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pushes a folder's files as `oras push` does, and gives the manifest's digest."""
    monkeypatch.chdir(folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    # Titles are paths, as the command's are; the library would keep the last part alone.
    titles = {name: {"org.opencontainers.image.title": name} for name in files}
    (folder.parent / "annotations.json").write_text(json.dumps(titles))
    client = oras.client.OrasClient(insecure=True)
    response = client.push(
        target=target, files=files, annotation_file=str(folder.parent / "annotations.json")
    )
    return str(response.headers["Docker-Content-Digest"])


def test_a_tag_and_its_digest_are_one_folder(
    registry: str, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = push(model, f"{registry}/acme/tiny:1.0", monkeypatch)
    folder = resolve_model_path(f"oci://{registry}/acme/tiny:1.0")
    assert folder == cache / "oci" / digest.removeprefix("sha256:")
    assert resolve_model_path(f"oci://{registry}/acme/tiny@{digest}") == folder
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == ["additional_chat_templates/rag.jinja", "config.json", "model.safetensors"]
    for name in found:
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    # What is named by its digest and is here needs no registry.
    assert resolve_model_path(f"oci://127.0.0.1:1/acme/tiny@{digest}") == folder


def test_a_tag_that_moves_is_another_folder(
    registry: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(model, f"{registry}/acme/moving:latest", monkeypatch)
    before = resolve_model_path(f"oci://{registry}/acme/moving")
    (model / "config.json").write_text('{"new": 1}')
    push(model, f"{registry}/acme/moving:latest", monkeypatch)
    after = resolve_model_path(f"oci://{registry}/acme/moving")
    assert (before / "config.json").read_text() == "{}"
    assert (after / "config.json").read_text() == '{"new": 1}'


def test_what_is_no_model_says_what_it_has(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("hello")
    push(tmp_path / "other", f"{registry}/acme/notes:1", monkeypatch)
    with pytest.raises(CheckpointError, match=r"has no file config.json; it has: notes.txt$"):
        resolve_model_path(f"oci://{registry}/acme/notes:1")
    with pytest.raises(CheckpointError, match=r"acme/absent:1 cannot be fetched: no such repository or tag$"):
        resolve_model_path(f"oci://{registry}/acme/absent:1")
    with pytest.raises(CheckpointError, match=r"oci://127.0.0.1:1/a/b cannot be fetched: "):
        resolve_model_path("oci://127.0.0.1:1/a/b")


def test_credentials_are_dockers(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "guarded").mkdir()
    with running_registry(tmp_path / "guarded", htpasswd=HTPASSWD) as host:
        with pytest.raises(CheckpointError, match="the registry wants credentials"):
            resolve_model_path(f"oci://{host}/acme/tiny:1")
        (home / ".docker").mkdir(parents=True)
        auth = "cmVhZGVyOnNlY3JldA=="  # reader:secret
        (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
        client = oras.client.OrasClient(insecure=True, auth_backend="basic")
        client.auth.set_basic_auth("reader", "secret")
        monkeypatch.chdir(model)
        client.push(target=f"{host}/acme/tiny:1", files=["config.json"])
        assert (resolve_model_path(f"oci://{host}/acme/tiny:1") / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    "reference", ["oci://r", "oci://r/UPPER", "oci://r/a:", "oci://r/a@sha256:1", "oci://"]
)
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"accepted: .*oci://registry/name\[:tag"):
        resolve_model_path(reference)


@contextmanager
def lying(manifest: bytes, blob: bytes, status: int = 200) -> Iterator[str]:
    """A registry that gives this manifest for every name, and this blob for every digest."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = blob if "/blobs/" in self.path else manifest
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def layer(name: str, content: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return {"digest": digest, "size": len(content), "annotations": {"org.opencontainers.image.title": name}}


@pytest.mark.parametrize(
    ("manifest", "blob", "message"),
    [
        (
            {"layers": [layer("config.json", b"{}")]},
            b"[]",
            "config.json is not what the manifest says: sha256:",
        ),
        (
            {"layers": [layer("config.json", b"{}"), layer("../x.safetensors", b"{}")]},
            b"{}",
            "outside of its folder",
        ),
        ({"layers": [layer("config.json", b"{}"), layer("/etc/x", b"{}")]}, b"{}", "outside of its folder"),
        ({"layers": [{"digest": "sha256:../../x"}]}, b"", "its manifest cannot be read"),
        (
            {"layers": [layer("config.json", b"{}") | {"size": 1}]},
            b"{}",
            "config.json is longer than the 1 bytes",
        ),
        ({"layers": [layer("config.json", b"{}") | {"size": -1}]}, b"{}", "its manifest cannot be read"),
        ({"layers": [], "more": "x" * (5 << 20)}, b"", "its manifest is longer than the 4194304 bytes"),
        ({"manifests": []}, b"", "its manifest cannot be read"),
        ([], b"", "its manifest cannot be read"),
    ],
)
def test_a_registry_that_lies_leaves_nothing(cache: Path, manifest: Any, blob: bytes, message: str) -> None:
    with lying(json.dumps(manifest).encode(), blob) as host, pytest.raises(CheckpointError, match=message):
        resolve_model_path(f"oci://{host}/acme/tiny:1")
    assert not list(cache.glob("oci/*"))


def test_another_manifest_than_the_digest_names_is_refused() -> None:
    with lying(b"{}", b"") as host, pytest.raises(CheckpointError, match="is not what it says"):
        resolve_model_path(f"oci://{host}/acme/tiny@sha256:{'0' * 64}")


def test_a_registry_that_fails_is_told_with_its_status() -> None:
    with lying(b"{}", b"", status=500) as host, pytest.raises(CheckpointError, match="with status 500"):
        resolve_model_path(f"oci://{host}/acme/tiny:1")


@pytest.mark.parametrize(
    ("reference", "module", "extra"),
    [("oci://r.example/a:1", "oras.client", "oci"), ("models:/a/1", "mlflow", "mlflow")],
)
def test_without_its_extra_a_source_names_it(
    monkeypatch: pytest.MonkeyPatch, reference: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"needs the extra {extra}: pip install 'airi\[{extra}\]'"):
        resolve_model_path(reference)
