"""A running issuer and a clock that tests move."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from .issuer import TestIssuer, serving


@pytest.fixture
def issuer() -> Iterator[TestIssuer]:
    with serving(TestIssuer()) as running:
        yield running


class Clock:
    """Seconds since 1970 that pass when told to."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()
