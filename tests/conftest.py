"""Kernels run in Triton's interpreter where there is no GPU.

The variable is read when they are imported, and any test may be the first to do so: hence here.
"""

import os

import pytest

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


def pytest_configure(config: pytest.Config) -> None:
    """Two warnings of the interpreter: loop bounds are arrays of one element, and tanh overflows to 1."""
    config.addinivalue_line(
        "filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
    )
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered in exp2:RuntimeWarning")
