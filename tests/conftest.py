"""Kernels run in Triton's interpreter where there is no GPU, and Ctrl-C interrupts whatever started the tests.

The variable is read when they are imported, and any test may be the first to do so: hence here.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from airi.engine.backends.cuda.detect import has_driver
from tests.state.fixtures import make_state_url, postgres, state_url

__all__ = ["make_state_url", "postgres", "state_url"]


def _has_gpu() -> bool:
    if not has_driver():
        return False
    import torch

    return bool(torch.cuda.is_available())


if not _has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"


# What a script starts in the background ignores Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Machines that run tests are shared: how long an example takes says nothing.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _no_state_is_left_behind() -> Iterator[None]:
    """A config or command that names no state takes the one of the working directory, which may be somebody's own."""
    state = Path.cwd() / "airi.db"
    existed = state.exists()
    yield
    assert existed or not state.exists(), f"{state} was written"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long is slow, before `-m` chooses."""
    lines = (Path(__file__).parent / "slow.txt").read_text().splitlines()
    listed = {line for line in lines if not line.startswith("#")}
    for item in items:
        if item.nodeid in listed or item.nodeid.partition("[")[0] in listed:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config: pytest.Config) -> None:
    """Two warnings of the interpreter: loop bounds are arrays of one element, and tanh overflows to 1."""
    config.addinivalue_line(
        "filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
    )
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered in exp2:RuntimeWarning")
