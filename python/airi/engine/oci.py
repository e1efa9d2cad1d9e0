"""Models from OCI registries: `oci://registry/name[:tag][@sha256:...]`, as `oras push` puts a folder's files there.

Each layer is a file, named by its title (https://github.com/opencontainers/image-spec, annotations). The digest of a
manifest covers the digests of all its layers, and each byte is checked against them, so a folder of the cache is named
by the manifest's digest and never changes. Docker's credentials apply. Registries on this machine are asked in HTTP,
others in HTTPS. Needs the extra `oci`.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec

from airi._hosts import is_loopback
from airi._sources import OCI, SOURCES, is_well_formed
from airi.engine.download import arriving, cache_folder
from airi.engine.hub import TEXT_FILES
from airi.errors import CheckpointError, ConfigError

__all__ = ["fetch_oci"]

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_TITLE, _UNPACK = "org.opencontainers.image.title", "io.deis.oras.content.unpack"
_READ = (*TEXT_FILES, "*.safetensors")
_PATIENCE_S = (10.0, 60.0)  # to connect, and between bytes
_CHUNK = 1 << 20
_MOST_MANIFEST = 4 << 20  # what the distribution specification has registries take
_REASONS = {
    401: "the registry wants credentials; log in with docker or oras",
    403: "the registry denies access to these credentials",
    404: "no such repository or tag",
}


class _Layer(msgspec.Struct):
    digest: Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, msgspec.Meta(ge=0)]
    annotations: dict[str, str] = {}


class _Manifest(msgspec.Struct):
    layers: list[_Layer]


def fetch_oci(reference: str) -> Path:
    """The folder of an artifact's files, fetched where it is not there yet.

    Raises ConfigError for what is no reference, or without the extra, and CheckpointError for what cannot be fetched or
    is not what its digests say.
    """
    if not is_well_formed(reference):
        raise ConfigError(f"model is {reference!r}; accepted: {SOURCES}")
    digest = reference.partition("@sha256:")[2]
    if digest and (known := cache_folder("oci", digest)).is_dir():
        return known
    try:
        import oras.auth
        import oras.client
        import requests
    except ImportError:
        raise ConfigError(f"{reference} needs the extra oci: pip install 'airi[oci]'") from None

    name = reference.removeprefix(OCI)
    client = oras.client.OrasClient(insecure=is_loopback(urlsplit(f"//{name}").hostname or ""))
    # Without its retries, which take minutes to say that nobody listens.
    client.do_request = partial(oras.client.OrasClient.do_request.__wrapped__, client)
    client.session.request = partial(client.session.request, timeout=_PATIENCE_S)
    container = client.get_container(name)
    try:
        with client.session.get(f"{client.prefix}://{container.registry}/v2/", stream=True) as response:
            asks = response.headers
        if asks.get("www-authenticate", "").lower().startswith("basic"):
            client.auth = oras.auth.get_auth_backend("basic", client.session, client.prefix == "http")
        client.auth.load_configs(container)
        return _fetch(client, container, reference, digest)
    except (requests.RequestException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    except (oras.auth.AuthenticationException, ValueError, AttributeError):  # its ways to have no credentials
        reason = _REASONS[401]
    raise CheckpointError(f"{reference} cannot be fetched: {reason}")


def _fetch(client: Any, container: Any, reference: str, digest: str) -> Path:
    url = f"{client.prefix}://{container.manifest_url()}"
    with client.do_request(url, headers={"Accept": _MANIFEST}, stream=True) as response:
        if response.status_code != 200:
            raise _refused(reference, response.status_code)
        manifest = b"".join(_bounded(response, _MOST_MANIFEST, f"{reference}: its manifest"))
    found = hashlib.sha256(manifest).hexdigest()
    if digest not in ("", found):
        raise CheckpointError(
            f"{reference} is not what it says: the registry gives a manifest of sha256:{found}"
        )
    folder = cache_folder("oci", found)
    if folder.is_dir():
        return folder
    layers = list(_files(reference, manifest))
    with arriving(folder) as partial:
        for layer, name in layers:
            _download(client, container, reference, layer, partial / name)
    return folder


def _files(reference: str, manifest: bytes) -> Iterator[tuple[_Layer, str]]:
    """The layers that the engine reads, each with the name of its file."""
    try:
        layers = msgspec.json.decode(manifest, type=_Manifest).layers
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{reference} is no artifact of files: its manifest cannot be read") from None
    names = [layer.annotations.get(_TITLE, "") for layer in layers]
    if "config.json" not in names:
        shown = ", ".join(name[:100] or "a layer without a title" for name in names[:10]) or "nothing"
        raise CheckpointError(f"{reference} has no file config.json; it has: {shown}")
    for layer, name in zip(layers, names, strict=True):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise CheckpointError(f"{reference} has a file {name[:100]!r}, which is outside of its folder")
        is_archive = layer.annotations.get(_UNPACK) == "true"
        if not is_archive and any(fnmatch.fnmatchcase(name, pattern) for pattern in _READ):
            yield layer, name


def _download(client: Any, container: Any, reference: str, layer: _Layer, path: Path) -> None:
    """Writes a layer's file, checked against its digest and its size."""
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with client.get_blob(container, layer.digest, stream=True) as response, path.open("wb") as file:
        if response.status_code != 200:
            raise _refused(reference, response.status_code)
        for chunk in _bounded(response, layer.size, f"{reference}: {path.name}"):
            digest.update(chunk)
            file.write(chunk)
    if layer.digest != f"sha256:{digest.hexdigest()}":
        raise CheckpointError(
            f"{reference}: {path.name} is not what the manifest says: sha256:{digest.hexdigest()} for {layer.digest}"
        )


def _bounded(response: Any, most: int, what: str) -> Iterator[bytes]:
    """The parts of a body. Raises CheckpointError as soon as it is longer than it may be."""
    size = 0
    for chunk in response.iter_content(_CHUNK):
        size += len(chunk)
        if size > most:
            raise CheckpointError(f"{what} is longer than the {most} bytes that it may have")
        yield chunk


def _refused(reference: str, status: int) -> CheckpointError:
    reason = _REASONS.get(status, f"the registry answers with status {status}")
    return CheckpointError(f"{reference} cannot be fetched: {reason}")
