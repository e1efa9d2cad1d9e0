"""Servers for the outside clients: the built-in model, which really answers and ends, and one of vectors beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.engine.encoder_folders import embedder
from tests.gateway.conftest import serve_process

KEY = "sk-clients"
GRPC = ("--grpc-port", "0")
SERVE = ("--api-key", KEY, "--kv-memory", "64MiB", "--log-level", "warning")
NAMED = ("--served-model-name", "airi-demo=tiny")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Where the servers listen."""

    url: str
    tight_url: str
    """Of a server that runs one request at a time and lets one wait."""
    grpc: str
    """Host and port of the first one's gRPC."""


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two servers that live as long as the tests; both must end well."""
    vectors = f"embedder={embedder(tmp_path_factory.mktemp('models') / 'm')}"
    tight_options = ("--max-num-seqs", "1", "--max-queued", "1")
    with (
        serve_process("airi-demo", vectors, *NAMED, *SERVE, *GRPC) as (process, url, said),
        serve_process("airi-demo", *NAMED, *SERVE, *tight_options) as (tight, tight_url, tight_said),
    ):
        [port] = [found[1] for line in said if (found := re.search(r"gRPC at port (\d+)", line))]
        yield Served(url=url, tight_url=tight_url, grpc=f"127.0.0.1:{port}")
        for server, lines in ((process, said), (tight, tight_said)):
            server.terminate()
            assert server.wait(60) == 0
            assert "Traceback" not in "".join(lines)
