"""A redis-server of the tests' own, on a unix socket in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class RedisServer:
    """One server process; its data lives in `folder`, where `appendonly` says so."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._binary = redis_binary()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"

    def start(self) -> None:
        """Returns when it answers."""
        # fmt: off
        self._process = subprocess.Popen(
            [self._binary, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self._folder),
             "--save", "", *self._options],
            stdout=subprocess.DEVNULL,
        )
        # fmt: on
        import redis

        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            for _ in range(400):
                try:
                    client.ping()
                    return
                except redis.exceptions.ConnectionError:
                    time.sleep(0.025)
        raise RuntimeError("redis-server did not answer within ten seconds")

    def kill(self) -> None:
        """Ends it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def redis_binary() -> str:
    """Where redis-server is. Skips the test where there is none, but in CI fails it."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail("redis-server is missing (Debian package redis-server)")
    pytest.skip("redis-server is missing")


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """A server with these options, without data; killed at the end."""
    # Not pytest's own folder: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="airi-redis-") as folder:
        server = RedisServer(Path(folder), *options)
        server.start()
        try:
            yield server
        finally:
            server.kill()
