"""Kernels run in Triton's interpreter where there is no GPU.

The variable is read when they are imported, and any test may be the first to do so: hence here.
"""

import os

from airi.engine.backends.cuda.detect import has_driver


def _has_gpu() -> bool:
    if not has_driver():
        return False
    import torch

    return bool(torch.cuda.is_available())


if not _has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"
