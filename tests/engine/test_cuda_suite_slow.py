"""As test_cuda_suite, what takes longer."""

from __future__ import annotations

import pytest

from tests.engine.test_cuda_suite import _on_device  # noqa: F401  # a fixture that every test uses
from tests.engine.test_engine_random import test_every_request_ends_once_and_nothing_stays  # noqa: F401

pytestmark = pytest.mark.slow
