"""A registry of the tests' own: Debian's docker-registry, on loopback, with its data in a folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

_CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {data}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextmanager
def running_registry(folder: Path, *, htpasswd: str | None = None) -> Iterator[str]:
    """Its host and port. `htpasswd`: the line of who may read and write; left out, everybody."""
    if shutil.which("docker-registry") is None:
        assert not os.environ.get("CI"), "docker-registry is missing"
        pytest.skip("needs docker-registry (Debian package docker-registry)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = _CONFIG.format(data=json.dumps(str(folder / "data")), port=port)
    if htpasswd is not None:
        (folder / "htpasswd").write_text(htpasswd)
        config += f"auth: {{htpasswd: {{realm: test, path: {json.dumps(str(folder / 'htpasswd'))}}}}}\n"
    (folder / "registry.yml").write_text(config)
    command = ["docker-registry", "serve", str(folder / "registry.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(400):
                try:
                    requests.get(f"http://127.0.0.1:{port}/v2/", timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.025)
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
