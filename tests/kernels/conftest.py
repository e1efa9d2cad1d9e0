"""What the interpreter warns of."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Two warnings of the interpreter: loop bounds are arrays of one element, and tanh overflows to 1."""
    config.addinivalue_line(
        "filterwarnings", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
    )
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered in exp2:RuntimeWarning")
