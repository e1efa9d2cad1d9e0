"""One Redis server for the tests of this folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.policy.redis_server import RedisServer, running_redis


@pytest.fixture(scope="session")
def redis_installed() -> None:
    """Skips the test where there is no redis-server, but in CI fails it."""
    if shutil.which("redis-server") is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("redis-server is missing (Debian package redis-server)")
    pytest.skip("redis-server is missing")


@pytest.fixture(scope="session")
def redis_server(redis_installed: None) -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server
